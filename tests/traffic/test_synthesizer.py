"""The Mooncake synthesizer against the published data set, and its options one by one."""

import itertools

import pytest

from pytest_dynamo_bench import MooncakeTrace, SynthesizedMooncake
from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.traffic import TrafficRequest, describe, synthesize
from pytest_dynamo_bench.traffic.synthesizer import _Tree

BLOCK = 512
PUBLISHED = SynthesizedMooncake(
    "conversation",
    requests=10_000,
    prefix_len_multiplier=16,
    prompt_len_multiplier=10,
    max_isl=110_000,
    seed=0,
)


def requests_of(*rows: tuple[float, list[int], int, int]) -> list[TrafficRequest]:
    """Requests from (timestamp, ids, tokens of the last block, output tokens)."""
    return [
        TrafficRequest(
            f"{index}", f"{index}", 0, time, 0.0, (len(ids) - 1) * BLOCK + last, output, tuple(ids)
        )
        for index, (time, ids, last, output) in enumerate(rows)
    ]


# Blocks 0-1 are shared by three requests, 2-3 by two of them; one ends there.
SMALL = requests_of(
    (0, [0, 1, 2, 3], 512, 10),
    (0, [0, 1, 2, 3, 4, 5], 100, 20),
    (50, [0, 1, 6], 7, 30),
    (90, [7, 8, 9, 10], 9, 40),
)


def small(**options) -> list[TrafficRequest]:
    source = SynthesizedMooncake("conversation", **{"requests": 400, **options})
    return list(synthesize(SMALL, source))


@pytest.fixture(scope="module")
def published():
    return PUBLISHED.load()


def test_figures_are_those_of_the_published_data_set(published):
    """Ten seeds gave mean ISLs of 38,804 to 40,328, hit rates of 0.439 to 0.450 and mean OSLs of
    339 to 348; the published single draw, 39,186, 44.1 % and 344, lies among them, below the
    average of ten in ISL (39,646) and hit rate (0.446). Seed 0 is 1.3 % above the published ISL,
    1.0 % below the OSL and 0.1 points above the hit rate; tolerances are about what seeds differ.
    """
    figures = describe(published)
    assert figures.requests == 10_000
    assert figures.mean_isl == pytest.approx(39_186, rel=0.02)
    assert figures.mean_osl == pytest.approx(344, rel=0.02)
    assert figures.reusable_share == pytest.approx(0.441, abs=0.012)
    blocks = [block for request in published.requests for block in request.hash_ids]
    assert len(blocks) == pytest.approx(770_934, rel=0.02)
    assert len(set(blocks)) == pytest.approx(430_838, rel=0.03)


def test_extremes_are_those_of_the_published_data_set(published):
    """The shortest prompt is fixed by the multipliers: 16 blocks of the root, and a suffix of ten
    with one token in the last. The longest is the last below 110,000 that a draw came upon.
    """
    inputs = [request.input_tokens for request in published.requests]
    outputs = [request.output_tokens for request in published.requests]
    assert min(inputs) == 12_801
    assert 109_000 < max(inputs) <= 110_000  # published: 109,459
    assert (min(outputs), max(outputs)) == (1, 2_000)


def test_shared_context_is_that_of_the_published_data_set(published):
    """Published: 22,400 tokens shared and 16,786 unique per request, 57.2 % shared."""
    tree = _Tree(MooncakeTrace("conversation").load().requests, 16).blocks
    shared = [sum(b < tree for b in r.hash_ids) * BLOCK for r in published.requests]
    unique = [r.input_tokens - s for r, s in zip(published.requests, shared, strict=True)]
    assert sum(shared) / 10_000 == pytest.approx(22_400, rel=0.03)
    assert sum(unique) / 10_000 == pytest.approx(16_786, rel=0.03)


def test_the_same_seed_gives_the_same_bits(published):
    fresh = tuple(itertools.islice(PUBLISHED.generate(), 200))
    assert fresh == published.requests[:200]
    first = fresh[0]
    assert small(seed=1) == small(seed=1) != small(seed=2)
    # Pinned, so that a change of the draws does not go unnoticed.
    assert (first.input_tokens, first.output_tokens, fresh[199].input_tokens) == PINNED


PINNED = (13_265, 938, 102_993)


def test_walks_follow_the_tree_and_its_frequencies():
    """Three of four requests begin with the shared node; of them one in three ends after the
    second node, one has a suffix there, one a suffix after the first.
    """
    made = small(requests=4_000, seed=3)
    starts = [request.hash_ids[:2] == (0, 1) for request in made]
    assert sum(starts) / 4_000 == pytest.approx(0.75, abs=0.03)
    ended = [r for r in made if r.hash_ids == (0, 1, 2, 3)]
    assert len(ended) / 4_000 == pytest.approx(0.25, abs=0.03)
    assert {r.input_tokens for r in ended} == {4 * BLOCK}
    # Suffixes were 2, 1 and 4 blocks long, and are new every time.
    loose = [r for r in made if r.hash_ids[0] > 3]
    assert {len(r.hash_ids) for r in loose} == {1, 2, 4}
    ids = [block for r in loose for block in r.hash_ids]
    assert len(ids) == len(set(ids))


def test_prefixes_and_suffixes_are_scaled_apart():
    made = small(prefix_len_multiplier=2.5, prompt_len_multiplier=3)
    assert {len(r.hash_ids) for r in made if r.hash_ids[0] == 0} >= {12}
    assert {len(r.hash_ids) for r in made if r.hash_ids[0] != 0} == {3, 6, 12}
    shorter = small(prefix_len_multiplier=0.5, prompt_len_multiplier=0.1)
    assert max(len(r.hash_ids) for r in shorter) == 3


def test_lengths_are_limited_and_speed_applied():
    made = small(max_isl=3 * BLOCK, min_isl=600, min_osl=15, max_osl=35, osl_multiplier=0.99)
    assert all(600 <= r.input_tokens <= 3 * BLOCK for r in made)
    assert {r.output_tokens for r in made} == {15, 19, 29, 35}
    slow, fast = small(), small(speedup_ratio=2)
    assert fast[-1].timestamp_ms == pytest.approx(slow[-1].timestamp_ms / 2)


def test_copies_of_the_tree_share_nothing():
    one, three = small(), small(prefix_root_multiplier=3)
    roots = {request.hash_ids[0] for request in three if len(request.hash_ids) > 4}
    assert len({block % 3 for block in roots}) == 3
    assert len({r.hash_ids[0] for r in one if r.hash_ids[:2] == (0, 1)}) == 1


def test_limits_that_nothing_meets_are_an_error():
    with pytest.raises(TrafficError, match="none of 100,000 consecutive requests has 90,000"):
        small(min_isl=90_000)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"requests": 0}, "requests"),
        ({"requests": 2.5}, "requests"),
        ({"prefix_len_multiplier": 0}, "prefix_len_multiplier"),
        ({"prompt_len_multiplier": "10"}, "prompt_len_multiplier"),
        ({"prefix_root_multiplier": 0}, "prefix_root_multiplier"),
        ({"osl_multiplier": -1}, "osl_multiplier"),
        ({"speedup_ratio": 0}, "speedup_ratio"),
        ({"max_isl": 0}, "max_isl"),
        ({"min_isl": 10, "max_isl": 5}, "min_isl"),
        ({"min_osl": 10, "max_osl": 5}, "min_osl"),
        ({"seed": -1}, "seed"),
    ],
)
def test_errors_name_the_field(options, field):
    with pytest.raises(BenchmarkError, match=f"{field}:"):
        SynthesizedMooncake("conversation", **options)


def test_an_unknown_trace_is_an_error_at_once():
    with pytest.raises(TrafficError, match=r"no file 'nowhere\.jsonl'"):
        SynthesizedMooncake("nowhere.jsonl")

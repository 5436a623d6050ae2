"""Every metric is one object: its formula against the plain definition, its names, its pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Claim, Goodput
from pytest_dynamo_bench.attribution_runs import run_attribution
from pytest_dynamo_bench.cli.common import check_metric
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import (
    METRICS,
    SHORT_NAMES,
    full_name,
    headings,
    parse_metric,
)
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.verdicts.regression import Tolerance, parse_tolerances

RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
LIMITS = Goodput(time_to_first_token_ms=50, inter_token_latency_ms=20)
GPUS = 4


# --- formulas ----------------------------------------------------------------------------
# What the definitions in docs/results.md say, record by record; None where it is not defined.


def itl(r):
    tokens = r.completion_tokens or 0
    if tokens < 2 or r.chunk_ms[-1] <= r.chunk_ms[0]:
        return None
    return (r.chunk_ms[-1] - r.chunk_ms[0]) / (tokens - 1)


def gaps(r):
    return [after - before for before, after in zip(r.chunk_ms, r.chunk_ms[1:], strict=False)]


def token_gaps(r):
    if r.chunk_tokens is not None:
        pairs = zip(gaps(r), r.chunk_tokens[1:], strict=True)
        return [gap / count for gap, count in pairs for _ in range(count)]
    return gaps(r) if r.completion_tokens == len(r.chunk_ms) else []


def good(r):
    return r.chunk_ms[0] - r.sent_ms <= 50 and (itl(r) is None or itl(r) <= 20)


def share(part, whole):
    return None if part is None or whole is None else (part, whole)


DISTRIBUTIONS = {
    "time_to_first_token": lambda r: r.chunk_ms[0] - r.sent_ms,
    "inter_token_latency": itl,
    "request_latency": lambda r: r.chunk_ms[-1] - r.sent_ms,
    "time_to_first_token_from_schedule": lambda r: r.chunk_ms[0] - r.scheduled_ms,
    "request_latency_from_schedule": lambda r: r.chunk_ms[-1] - r.scheduled_ms,
    "schedule_delay": lambda r: r.sent_ms - r.scheduled_ms,
    "output_token_throughput_per_user": lambda r: None if itl(r) is None else 1000 / itl(r),
    "encoder_time": lambda r: r.encoder_ms,
    "image_decode_time": lambda r: r.image_decode_ms,
    "image_transfer_time": lambda r: r.image_transfer_ms,
    "kv_transfer_time": lambda r: r.kv_transfer_ms,
}
GAPS = {"inter_chunk_latency": gaps, "inter_token_gap": token_gaps}
RATIOS = {
    "kv_hit_rate": lambda r: share(r.cached_tokens, r.input_tokens),
    "host_hit_rate": lambda r: share(r.host_tokens, r.input_tokens),
    "given_up_reuse": lambda r: share(r.given_up_tokens, r.input_tokens),
    "embedding_hit_rate": lambda r: share(r.image_cache_hits or 0, r.images or None),
    "worker_decode_share": lambda r: share(r.images_decoded or 0, r.images or None),
    "split_share": lambda r: (
        None
        if None in (r.prefill_worker, r.decode_worker)
        else (r.prefill_worker != r.decode_worker, 1)
    ),
    # All of these are first turns; of later ones see below.
    "same_worker_share": lambda r: None,
    "tokens_per_step": lambda r: (
        None if r.decode_steps is None else share(r.completion_tokens or None, r.decode_steps + 1)
    ),
    "other_rank_share": lambda r: None if r.prefill_rank is None else (r.prefill_rank > 0, 1),
}
# What each request adds, and by what the sum is divided beside the duration.
RATES = {
    "output_token_throughput": (lambda r: r.completion_tokens or 0, 1),
    "output_token_throughput_per_gpu": (lambda r: r.completion_tokens or 0, GPUS),
    "request_throughput": (lambda r: 1, 1),
    "goodput": (good, 1),
    "goodput_per_gpu": (good, GPUS),
}

TIMES = st.floats(0, 1e4).map(lambda value: round(value, 3))
COUNTS = st.none() | st.integers(0, 5)


@st.composite
def a_record(draw, index):
    due = draw(TIMES)
    sent = due + draw(TIMES)
    steps = draw(st.lists(st.sampled_from([0.0, 0.5, 7.0, 25.0]), min_size=1, max_size=5))
    chunks = tuple((sent + np.cumsum(steps)).tolist())
    tokens = draw(st.none() | st.lists(st.integers(1, 3), min_size=len(chunks),
                                       max_size=len(chunks)).map(tuple))  # fmt: skip
    worker = st.none() | st.sampled_from(["a", "b"])
    return RequestRecord(
        f"{index:02d}", "s", 0, due, sent,
        () if draw(st.integers(0, 9)) == 0 else chunks, chunks[-1] + 1.0,
        draw(st.integers(1, 1000)), 5,
        completion_tokens=draw(st.none() | st.just(len(chunks)) | COUNTS),
        chunk_tokens=tokens, cached_tokens=draw(COUNTS), host_tokens=draw(COUNTS),
        given_up_tokens=draw(COUNTS),
        images=draw(COUNTS), image_cache_hits=draw(COUNTS), images_decoded=draw(COUNTS),
        image_decode_ms=draw(st.none() | TIMES), image_transfer_ms=draw(st.none() | TIMES),
        encoder_ms=draw(st.none() | TIMES), kv_transfer_ms=draw(st.none() | TIMES),
        prefill_worker=draw(worker), decode_worker=draw(worker),
        prefill_rank=draw(COUNTS), decode_steps=draw(COUNTS),
        error=draw(st.sampled_from([None, None, None, "HTTP 500"])),
    )  # fmt: skip


RECORDS = st.integers(0, 12).flatmap(lambda count: st.tuples(*map(a_record, range(count))))


@given(RECORDS)
def test_formulas_agree_with_the_definitions_record_by_record(records):
    metrics = Metrics(Run("b", "c", "local", GPUS, records, "2026-01-01T00:00:00Z"), LIMITS)
    counted = sorted((r for r in records if r.succeeded and r.chunk_ms),
                     key=lambda r: (r.scheduled_ms, r.request_id))  # fmt: skip
    assert {*DISTRIBUTIONS, *GAPS, *RATIOS, *RATES} == set(METRICS)
    for name in METRICS:
        sample = metrics.sample(f"{name}.mean" if METRICS[name].distribution else name)
        weights = None
        if name in GAPS:
            pairs = [(r, value) for r in counted for value in GAPS[name](r)]
        elif name in RATES:
            pairs = [(r, RATES[name][0](r)) for r in counted]
            assert sample.factor == 1 / RATES[name][1]
            assert sample.duration_seconds == metrics.duration_seconds or not records
            assert sample.end_ms.tolist() == [r.end_ms for r in counted]
        else:
            function = {**DISTRIBUTIONS, **RATIOS}[name]
            pairs = [(r, value) for r in counted if (value := function(r)) is not None]
        if name in RATIOS:
            weights = [value[1] for _, value in pairs]
            pairs = [(r, value[0]) for r, value in pairs]
        assert sample.values.tolist() == [value for _, value in pairs], name
        assert (None if weights is None else weights) == (
            None if sample.weights is None else sample.weights.tolist()
        ), name
        assert list(sample.request_ids) == [r.request_id for r, _ in pairs], name
        assert sample.time_ms.tolist() == [r.scheduled_ms for r, _ in pairs], name


def test_what_a_simulation_does_not_know_it_does_not_have():
    record = RequestRecord("0", "s", 0, 0.0, 0.0, (1.0, 2.0), 3.0, 1, 2, completion_tokens=2)
    run = Run("b", "c", "replay", 1, [record], "2026-01-01T00:00:00Z", simulated=True)
    for name, metric in METRICS.items():
        if "every chunk" in metric.needs:
            assert Metrics(run).distribution(name).count == 0
    assert Metrics(run).inter_token_latency.count == 1


def test_a_later_turn_is_compared_with_the_turn_before_it():
    served = [("s", 0, "a"), ("s", 1, "a"), ("s", 2, "b"), ("t", 0, "b"), ("t", 1, None),
              ("t", 2, "b"), ("u", 1, "a"), ("s", 3, "b")]  # fmt: skip
    records = [
        RequestRecord(
            str(i), session, turn, float(i), float(i), (i + 1.0,), i + 2.0, 1, 1,
            prefill_worker=worker,
        )
        for i, (session, turn, worker) in enumerate(served)
    ]  # fmt: skip
    run = Run("b", "c", "local", 1, records, "2026-01-01T00:00:00Z")
    assert Metrics(run).same_worker_share == pytest.approx(2 / 3)


def test_token_counts_that_do_not_fit_the_chunks_are_not_known():
    record = RequestRecord("0", "s", 0, 0.0, 0.0, (1.0, 2.0), 3.0, 1, 2, chunk_tokens=(1,))
    run = Run("b", "c", "local", 1, [record], "2026-01-01T00:00:00Z")
    assert Metrics(run).inter_token_gap.count == 0


# --- names -------------------------------------------------------------------------------


def test_short_names_are_of_one_metric_each_and_none_is_a_full_name():
    short = [name for metric in METRICS.values() for name in metric.short_names]
    assert len(set(short)) == len(short) and not set(short) & set(METRICS)
    assert SHORT_NAMES["ttft"] == "time_to_first_token"
    assert SHORT_NAMES["tpot"] == SHORT_NAMES["itl"] == "inter_token_latency"


@pytest.mark.parametrize("short", SHORT_NAMES)
def test_a_short_name_is_accepted_wherever_a_metric_is_named(short):
    full, suffix = SHORT_NAMES[short], ".p90" if METRICS[SHORT_NAMES[short]].distribution else ""
    assert full_name(short + suffix) == full + suffix
    assert Tolerance(short + suffix, 0.1) == Tolerance(full + suffix, 0.1)
    assert parse_tolerances(f"{short}{suffix}:10%") == parse_tolerances(f"{full}{suffix}:10%")
    assert check_metric(short + suffix) == full + suffix
    by_short, by_full = (
        Claim("c", name + suffix, "kv", "agg", not_higher_by=0.1) for name in (short, full)
    )
    assert by_short == by_full and hash(by_short) == hash(by_full)
    assert by_short.metric == full + suffix
    record = RequestRecord("0", "s", 0, 0.0, 0.0, (1.0, 2.0), 3.0, 1, 2, completion_tokens=2)
    metrics = Metrics(Run("b", "c", "local", 1, [record], "2026-01-01T00:00:00Z"))
    assert metrics.sample(short + suffix).metric == full + suffix
    assert repr(getattr(metrics, short)) == repr(getattr(metrics, full))


def test_a_name_that_is_none_says_what_was_meant():
    for wrong, meant in (("tttf", "ttft"), ("godput", "goodput"), ("request_latencie", "request")):
        with pytest.raises(ValueError, match=f"{wrong!r} is not a metric; did you mean '{meant}"):
            parse_metric(wrong)
    with pytest.raises(BenchmarkError, match="did you mean 'ttft'"):
        run_attribution(None, "a", "b", metric="tfft.mean")


# --- where they are shown ----------------------------------------------------------------


def test_the_page_has_every_metric_as_it_is_defined():
    rows = [
        f"| `{m.name}` | {', '.join(f'`{short}`' for short in m.short_names)} | "
        f"{m.unit}{', distribution' if m.distribution else ''} | {m.definition} |"
        for m in METRICS.values()
    ]
    page = RESULTS.read_text(encoding="utf-8")
    table = page.partition("| metric |")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == rows, "docs/results.md, Metrics: should be\n" + "\n".join(rows)


def test_every_heading_names_a_statistic_that_there_is():
    for table in ("report", "terminal", "changes", "point", "sweep"):
        assert [full_name(name) for name, _ in headings(table)] == [n for n, _ in headings(table)]


def test_definitions_do_without_numpy():
    code = (
        "import sys, pytest_dynamo_bench.metric_definitions;"
        "print([m for m in ('numpy', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr

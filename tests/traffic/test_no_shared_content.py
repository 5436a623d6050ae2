"""Prompts that share no block share no content, whatever generated them.

Engines hash pieces of a prompt that are shorter than a block here, and take a piece with the
same tokens for the same wherever it stands.
"""

from __future__ import annotations

import gzip
import itertools
import json

import numpy as np
import pytest

from pytest_dynamo_bench import traffic as all_traffic
from pytest_dynamo_bench.traffic import (
    AgenticCoding,
    Concurrency,
    MooncakeTrace,
    PooledImages,
    SlidingWindowImages,
    SynthesizedMooncake,
    SyntheticTraffic,
    TraceFile,
    TrafficSource,
)
from pytest_dynamo_bench.traffic.prompts import (
    COMMON_WORDS,
    VOCABULARY_TOKENS,
    block_token_ids,
    english_text,
    prompt_texts,
)

LOOP = Concurrency(2)
MOST_WORDS = 300_000
# In so many words of a vocabulary a run is shared by chance once in a million runs of these tests.
RUN, RUN_OF_COMMON_WORDS = 8, 16


def mooncake_file(path):
    rows = [
        {"timestamp": at, "input_length": 1400, "output_length": 9, "hash_ids": ids}
        for at, ids in enumerate([[0, 1, 2], [0, 1, 3], [2**40 - 1, 5, 4], [2**39, 7, 6]])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def dynamo_file(path):
    rows = [
        {
            "schema": "dynamo.request.trace.v1", "event_type": "request_end",
            "request": {
                "request_id": f"r{index}", "request_received_ms": 10 * index, "output_tokens": 5,
                "replay": {
                    "input_length": 64 * len(hashes), "trace_block_size": 64,
                    "input_sequence_hashes": hashes,
                },
            },
        }
        for index, hashes in enumerate([[2**63, 1, 2], [2**63, 3], [4, 5, 6, 7]])
    ]  # fmt: skip
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def text_file(path):
    rows = [{"text": f"{n} " * 3000, "output_length": 4, "timestamp": n} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sources(path):
    images = {"schedule": LOOP, "text_tokens": 700, "osl": 5, "image_width": 8, "image_height": 8}
    return [
        MooncakeTrace("conversation"),
        SyntheticTraffic(isl=8192, osl=1, requests=40, schedule=LOOP),
        SynthesizedMooncake("conversation", requests=60, prefix_root_multiplier=3),
        AgenticCoding(12, LOOP),
        SlidingWindowImages(users=20, turns=5, window=2, **images),
        PooledImages(requests=90, images_per_request=2, pool=30, **images),
        TraceFile(str(mooncake_file(path / "mooncake.jsonl"))),
        TraceFile(str(dynamo_file(path / "dynamo.jsonl.gz"))),
        TraceFile(str(text_file(path / "text.jsonl"))),
    ]


def shared_runs(pieces, run):
    """How often ``run`` words in a row are in two pieces; a piece is a block id and its words."""
    numbers = {}
    hashes, owners = [], []
    for block, words in pieces.items():
        ids = np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint64)
        windows = np.lib.stride_tricks.sliding_window_view(ids, run) if len(ids) >= run else []
        with np.errstate(over="ignore"):
            rolled = np.zeros(len(windows), dtype=np.uint64)
            for column in range(run if len(windows) else 0):
                rolled = rolled * np.uint64(0x9E3779B97F4A7C15) + windows[:, column]
                rolled ^= rolled >> np.uint64(29)
        hashes.append(rolled)
        owners.append(np.full(len(windows), block, dtype=np.uint64))
    together, owner = np.concatenate(hashes), np.concatenate(owners)
    order = np.argsort(together, kind="stable")
    together, owner = together[order], owner[order]
    return int(((together[1:] == together[:-1]) & (owner[1:] != owner[:-1])).sum())


def blocks_of(traffic, text_of):
    """Block id to the words that stand for it, of as many requests as are looked at."""
    pieces, words = {}, 0
    for request in traffic.requests:
        text = text_of(request.hash_ids, request.input_tokens).split(" ")
        assert len(text) == request.input_tokens
        for place, block in enumerate(request.hash_ids):
            own = text[place * traffic.block_tokens : (place + 1) * traffic.block_tokens]
            if len(own) > len(pieces.get(block, ())):
                words += len(own) - len(pieces.get(block, ()))
                pieces[block] = own
        if words > MOST_WORDS:
            break
    return pieces


def test_every_generator_is_looked_at(tmp_path):
    every = {item for item in vars(all_traffic).values()
             if isinstance(item, type) and issubclass(item, TrafficSource)}  # fmt: skip
    assert {type(source) for source in sources(tmp_path)} == every - {TrafficSource}


@pytest.mark.parametrize("index", range(9))
def test_distinct_blocks_share_no_run_of_tokens(tmp_path, index):
    traffic = sources(tmp_path)[index].load()
    size = traffic.block_tokens
    pieces = blocks_of(traffic, lambda ids, n: prompt_texts([(ids, n)], size)[0])
    assert len(pieces) > 5
    assert shared_runs(pieces, RUN) == 0


@pytest.mark.parametrize(
    "text_of",
    [
        lambda ids, n: prompt_texts([(ids, n)], 512, words=COMMON_WORDS)[0],
        lambda ids, n: prompt_texts([(ids, n)], 512, words=COMMON_WORDS[:32])[0],
        lambda ids, n: english_text(ids, n, 512),
    ],
    ids=["words of a real model", "as few as are taken", "a dataset for AIPerf"],
)
def test_nor_do_they_in_common_words(text_of):
    traffic = SyntheticTraffic(isl=8192, osl=1, requests=40, schedule=LOOP).load()
    assert shared_runs(blocks_of(traffic, text_of), RUN_OF_COMMON_WORDS) == 0


def test_a_run_that_is_shared_is_found():
    pieces = {1: list("abcdefghij"), 2: list("zabcdefghk"), 3: list("hijklmnopq")}
    assert (shared_runs(pieces, 8), shared_runs(pieces, 9)) == (1, 0)


@pytest.mark.parametrize("size", [16, 64, 128])
def test_dynamo_hashes_no_piece_of_two_prompts_alike(size):
    dynamo = pytest.importorskip("dynamo.llm")
    traffic = SyntheticTraffic(isl=8192, osl=1, requests=64, schedule=LOOP).load()
    hashes = [
        set(
            dynamo.compute_block_hash_for_seq(
                np.concatenate([block_token_ids(b, 512) for b in request.hash_ids]).tolist(), size
            )
        )
        for request in traffic.requests
    ]
    assert {len(own) for own in hashes} == {8192 // size}
    assert not any(one & other for one, other in itertools.combinations(hashes, 2))


def test_ids_that_are_alike_make_blocks_that_are_not():
    """Neighbours, powers of two, and multiples of what the generator adds."""
    gamma = 0x9E3779B97F4A7C15
    ids = {*range(600), *(2**n for n in range(64)), *(2**n - 1 for n in range(65)),
           *(n * gamma % 2**64 for n in range(600))}  # fmt: skip
    pieces = {block: block_token_ids(block, 512, VOCABULARY_TOKENS).tolist() for block in ids}
    assert shared_runs(pieces, RUN) == 0

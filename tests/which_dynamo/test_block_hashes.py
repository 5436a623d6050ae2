"""The blocks of prompts are named as Dynamo names them, in whatever Python it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.targets.local.block_hashes import block_hashes
from pytest_dynamo_bench.targets.local.engine_events import chain
from pytest_dynamo_bench.traffic import TrafficRequest
from pytest_dynamo_bench.traffic.prompts import block_token_ids
from tests.which_dynamo.environments import each_other, skip_unless_there

llm = pytest.importorskip("dynamo.llm", reason="needs ai-dynamo")


def request(number, tokens, ids):
    return TrafficRequest(f"r{number}", f"r{number}", 0, 0.0, 0.0, tokens, 2, tuple(ids))


def expected(requests, block_tokens, size):
    found = {}
    for each in requests:
        tokens = [t for i in each.hash_ids for t in block_token_ids(i, block_tokens).tolist()]
        full = tokens[: each.input_tokens // size * size]
        found[each.request_id] = chain(llm.compute_block_hash_for_seq(full, size))
    return found


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(16, 64), (512, 64), (64, 64), (48, 32)]),
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), max_size=4),
    st.integers(0, 47),
)
def test_as_if_every_prompt_were_hashed_whole(sizes, prompts, short):
    block_tokens, size = sizes
    requests = [
        request(i, max(1, len(ids) * block_tokens - short % block_tokens), ids)
        for i, ids in enumerate(prompts)
    ]
    found = block_hashes(resolve(None), requests, block_tokens, size)
    assert found == expected(requests, block_tokens, size)


@each_other
def test_another_release_names_them_as_this_one_does(python):
    skip_unless_there(python)
    requests = [request(0, 500, [1, 2]), request(1, 1024, [1, 3])]
    assert block_hashes(resolve(python), requests, 512, 64) == expected(requests, 512, 64)

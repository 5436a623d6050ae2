"""Prompts have exactly the tokens and exactly the shared prefixes of their block ids."""

from __future__ import annotations

import hashlib
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.traffic import TrafficRequest
from pytest_dynamo_bench.traffic.prompts import (
    block_token_ids,
    prompt_text,
    prompt_texts,
)

LARGEST_ID = 2**64 - 1
IDS = st.lists(st.integers(0, LARGEST_ID), min_size=1, max_size=6)


def shared_words(a: str, b: str) -> int:
    pairs = zip(a.split(), b.split(), strict=False)
    return next(
        (i for i, (x, y) in enumerate(pairs) if x != y), min(len(a.split()), len(b.split()))
    )


@given(IDS, st.integers(1, 512))
def test_a_prompt_has_exactly_its_tokens(ids, last):
    tokens = (len(ids) - 1) * 512 + last
    assert len(prompt_text(tuple(ids), tokens, 512).split()) == tokens


@given(IDS, IDS)
def test_prompts_share_exactly_the_blocks_that_they_share(a, b):
    shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                  min(len(a), len(b)))  # fmt: skip
    words = shared_words(prompt_text(tuple(a), len(a) * 512, 512),
                         prompt_text(tuple(b), len(b) * 512, 512))  # fmt: skip
    # Blocks with different ids differ within their first five words, which spell the key.
    assert shared * 512 <= words < shared * 512 + 5 or words == min(len(a), len(b)) * 512


def test_prompts_are_the_same_on_every_machine():
    text = prompt_text((0, 7402, 182_789), 1100, 512)
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert digest[:16] == GOLDEN


GOLDEN = "b699a710baa6d5fa"


MOST = 2**64 - 1


def split_mix(state):
    """What SplitMix64 draws in a state."""
    mixed = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & MOST
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MOST
    return mixed ^ mixed >> 31


def defined(block_id, tokens, vocabulary):
    """The definition, a number at a time: a key's digits, and then the key with each position."""
    gamma = 0x9E3779B97F4A7C15
    key = split_mix((block_id * gamma + 0xD1B54A32D192ED03) & MOST)
    digits, found = [], []
    while vocabulary ** len(digits) <= MOST:
        digits.append(key // vocabulary ** len(digits) % vocabulary)
    for position in range(1, tokens + 1):
        both = key ^ split_mix(position * gamma & MOST)
        mixed = (both * 0xBF58476D1CE4E5B9) & MOST
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & MOST
        found.append((mixed ^ mixed >> 31) % vocabulary)
    return [*digits, *found[len(digits) :]][:tokens]


@given(st.integers(0, LARGEST_ID), st.integers(1, 40), st.sampled_from([2, 777, 8192, 151_936]))
def test_token_ids_are_those_of_the_definition(block_id, tokens, vocabulary):
    found = block_token_ids(block_id, tokens, vocabulary).tolist()
    assert found == defined(block_id, tokens, vocabulary)


@given(
    st.lists(st.tuples(IDS, st.integers(1, 16)), max_size=5),
    st.sampled_from([None, ["a", "ü"], [f"x{i}" for i in range(777)]]),
    st.sampled_from([0, 7]),
)
def test_prompts_made_together_are_those_made_alone(prompts, words, template):
    prompts = [(tuple(ids), 16 * (len(ids) - 1) + last) for ids, last in prompts]
    together = prompt_texts(prompts, 16, words=words, template_tokens=template)
    assert together == [
        prompt_text(ids, tokens, 16, words=words, template_tokens=template)
        for ids, tokens in prompts
    ]
    for (_, tokens), text in zip(prompts, together, strict=True):
        assert len(text.split(" ")) == max(tokens - template, 1)


def test_a_request_is_the_same_in_another_process():
    request = TrafficRequest("a", "b", 1, 2.0, 3.0, 4, 5, (6,), (7,))
    assert pickle.loads(pickle.dumps(request)) == request


def test_ids_and_lengths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 blocks of 512 for 513 tokens"):
        prompt_text((1,), 513, 512)
    with pytest.raises(ValueError, match="is outside 0"):
        block_token_ids(LARGEST_ID + 1, 4)


def test_a_real_tokenizer_counts_one_token_a_word(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    from pytest_dynamo_bench.engines import model_dimensions
    from pytest_dynamo_bench.targets.local.model_directory import write_model_directory

    write_model_directory(tmp_path / "model", model_dimensions("Qwen/Qwen3-32B"))
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))
    encoded = tokenizer.encode(prompt_text((5, 6), 800, 512))
    assert len(encoded.ids) == 800
    assert encoded.ids[:512] == block_token_ids(5, 512).tolist()

"""Prompts with an exact number of tokens and exactly the shared prefixes of their block ids.

The words are those of a tokenizer that the local target makes: ``w0`` … ``w8191``, separated
by spaces, one word one token. A block's words follow from its id by integer arithmetic
alone, so that they are the same on every machine; the first five spell the id itself, so
that blocks with different ids never start alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

VOCABULARY_TOKENS = 8192
_ID_DIGITS = 5
_WORDS = np.array([f"w{index}" for index in range(VOCABULARY_TOKENS)], dtype=object)


def word(token: int) -> str:
    """The text of a token id."""
    return str(_WORDS[token])


def block_token_ids(block_id: int, tokens: int) -> npt.NDArray[np.uint64]:
    """The first ``tokens`` token ids of a block.

    The ids after the leading digits come from SplitMix64 (Steele, Lea and Flood, OOPSLA
    2014) over the position within the block.
    """
    if not 0 <= block_id < VOCABULARY_TOKENS**_ID_DIGITS:
        raise ValueError(
            f"block id {block_id} is outside 0 … {VOCABULARY_TOKENS}**{_ID_DIGITS} - 1"
        )
    seed = (block_id * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        state = np.uint64(seed) + np.arange(1, tokens + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    ids = (state ^ (state >> np.uint64(31))) % np.uint64(VOCABULARY_TOKENS)
    digits = [
        block_id // VOCABULARY_TOKENS**place % VOCABULARY_TOKENS for place in range(_ID_DIGITS)
    ]
    ids[:_ID_DIGITS] = digits[: len(ids)]
    return ids


def prompt_text(hash_ids: tuple[int, ...], input_tokens: int, block_tokens: int) -> str:
    """The prompt of a request: ``input_tokens`` words, block after block.

    Raises:
        ValueError: the ids do not cover the prompt.
    """
    if len(hash_ids) != -(-input_tokens // block_tokens):
        raise ValueError(f"{len(hash_ids)} blocks of {block_tokens} for {input_tokens} tokens")
    remaining = input_tokens
    parts = []
    for block_id in hash_ids:
        parts.append(block_token_ids(block_id, min(block_tokens, remaining)))
        remaining -= block_tokens
    return " ".join(_WORDS[np.concatenate(parts)])

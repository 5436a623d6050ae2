"""Prompts with an exact number of tokens and exactly the shared prefixes of their block ids.

The words are by default those of a tokenizer that the local target makes: ``w0`` … ``w8191``,
separated by spaces, one word one token. For a real model any words can take their place that
its tokenizer counts as one token each. A block's words follow from its id by integer
arithmetic alone, so that they are the same on every machine; the first few spell the id
itself, so that blocks with different ids never start alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VOCABULARY_TOKENS = 8192
_ID_DIGITS = 5
_IDS = VOCABULARY_TOKENS**_ID_DIGITS
WORDS = tuple(f"w{index}" for index in range(VOCABULARY_TOKENS))


def word(token: int) -> str:
    """The text of a token id."""
    return WORDS[token]


def block_token_ids(
    block_id: int, tokens: int, vocabulary_tokens: int = VOCABULARY_TOKENS
) -> npt.NDArray[np.uint64]:
    """The first ``tokens`` token ids of a block, each below ``vocabulary_tokens``.

    The ids after the leading digits come from SplitMix64 (Steele, Lea and Flood, OOPSLA
    2014) over the position within the block.
    """
    if not 0 <= block_id < _IDS:
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
    ids = (state ^ (state >> np.uint64(31))) % np.uint64(vocabulary_tokens)
    digits, rest, reach = [], block_id, 1
    while reach < _IDS:
        digits.append(rest % vocabulary_tokens)
        rest, reach = rest // vocabulary_tokens, reach * vocabulary_tokens
    ids[: len(digits)] = digits[: len(ids)]
    return ids


def prompt_text(
    hash_ids: tuple[int, ...],
    input_tokens: int,
    block_tokens: int,
    *,
    words: Sequence[str] = WORDS,
    template_tokens: int = 0,
) -> str:
    """The prompt of a request: words, block after block.

    Args:
        hash_ids: a block id for every ``block_tokens`` tokens.
        input_tokens: of the whole prompt.
        block_tokens: tokens of a block.
        words: to choose from, each of them one token; at least two.
        template_tokens: tokens that the server puts around a message; so many words less are
            sent, cut off at the end, but at least one is.

    Raises:
        ValueError: the ids do not cover the prompt.
    """
    if len(hash_ids) != -(-input_tokens // block_tokens):
        raise ValueError(f"{len(hash_ids)} blocks of {block_tokens} for {input_tokens} tokens")
    remaining = max(input_tokens - template_tokens, 1)
    parts = []
    for block_id in hash_ids:
        if remaining <= 0:
            break
        parts.append(block_token_ids(block_id, min(block_tokens, remaining), len(words)))
        remaining -= block_tokens
    return " ".join([words[index] for index in np.concatenate(parts).tolist()])

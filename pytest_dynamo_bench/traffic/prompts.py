"""Prompts with an exact number of tokens and exactly the shared prefixes of their block ids.

The words are by default those of a tokenizer that the local target makes: ``w0`` … ``w8191``,
separated by spaces, one word one token. For a real model any words can take their place that
its tokenizer counts as one token each. A block's words follow from its id by integer
arithmetic alone, so that they are the same on every machine; the first few spell the id
itself, so that blocks with different ids never start alike.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VOCABULARY_TOKENS = 8192
_ID_DIGITS = 5
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_IDS = VOCABULARY_TOKENS**_ID_DIGITS
WORDS = tuple(f"w{index}" for index in range(VOCABULARY_TOKENS))
_WORDS = np.array(WORDS, dtype=object)
# Common English words, each one token of usual tokenizers.
_COMMON_WORDS = """
the of and to in is you that it he was for on are as with his they at be this have from or one had
by word but not what all were we when your can said there use an each which she do how their if
will up other about out many then them these so some her would make like him into time has look
two more write go see number no way could people my than first water been call who oil its now
find long down day did get come made may part over new sound take only little work know place year
live me back give most very after thing our just name good sentence man think say great where help
through much before line right too mean old any same tell boy follow came want show also around
form three small set put end does another well large must big even such because turn here why ask
went men read need land different home us move try kind hand picture again change off play spell
air away animal house point page letter mother answer found study still learn should world high
every near add food between own below country plant last school father keep tree never start city
earth eye light thought head under story saw left few while along might close something seem next
hard open example begin life always those both paper together got group often run
"""
COMMON_WORDS = tuple(dict.fromkeys(_COMMON_WORDS.split()))
_ENGLISH = np.array(_COMMON_WORDS.split(), dtype=object)


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
    seed = (block_id * _GOLDEN_GAMMA + 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    # In place: numbers are few, and each array made anew costs as much as the arithmetic.
    ids = _gammas(tokens) + np.uint64(seed)
    ids ^= ids >> _SHIFTS[0]
    ids *= _FACTORS[0]
    ids ^= ids >> _SHIFTS[1]
    ids *= _FACTORS[1]
    ids ^= ids >> _SHIFTS[2]
    ids %= np.uint64(vocabulary_tokens)
    digits, rest, reach = [], block_id, 1
    while reach < _IDS:
        digits.append(rest % vocabulary_tokens)
        rest, reach = rest // vocabulary_tokens, reach * vocabulary_tokens
    ids[: len(digits)] = digits[: len(ids)]
    return ids


@functools.lru_cache(maxsize=64)
def _gammas(tokens: int) -> npt.NDArray[np.uint64]:
    """What SplitMix64 adds to its seed, step after step."""
    return np.arange(1, tokens + 1, dtype=np.uint64) * np.uint64(_GOLDEN_GAMMA)


def prompt_text(
    hash_ids: tuple[int, ...],
    input_tokens: int,
    block_tokens: int,
    *,
    words: Sequence[str] | None = None,
    template_tokens: int = 0,
) -> str:
    """The prompt of a request: words, block after block.

    Args:
        hash_ids: a block id for every ``block_tokens`` tokens.
        input_tokens: of the whole prompt.
        block_tokens: tokens of a block.
        words: to choose from, each of them one token; at least two. Those of the local
            target's tokenizer when None.
        template_tokens: tokens that the server puts around a message; so many words less are
            sent, cut off at the end, but at least one is.

    Raises:
        ValueError: the ids do not cover the prompt.
    """
    count = VOCABULARY_TOKENS if words is None else len(words)
    ids = _token_ids(hash_ids, input_tokens, block_tokens, count)
    ids = ids[: max(input_tokens - template_tokens, 1)]
    if words is None:
        return " ".join(_WORDS[ids].tolist())
    return " ".join([words[index] for index in ids.tolist()])


def english_text(hash_ids: tuple[int, ...], input_tokens: int, block_tokens: int) -> str:
    """The same prompt for models with tokenizers of their own: as many common English words.

    Raises:
        ValueError: the ids do not cover the prompt.
    """
    ids = _token_ids(hash_ids, input_tokens, block_tokens)
    return " ".join(_ENGLISH[ids % np.uint64(len(_ENGLISH))].tolist())


def _token_ids(
    hash_ids: tuple[int, ...],
    input_tokens: int,
    block_tokens: int,
    vocabulary_tokens: int = VOCABULARY_TOKENS,
) -> npt.NDArray[np.uint64]:
    if len(hash_ids) != -(-input_tokens // block_tokens):
        raise ValueError(f"{len(hash_ids)} blocks of {block_tokens} for {input_tokens} tokens")
    remaining = input_tokens
    parts = []
    for block_id in hash_ids:
        parts.append(block_token_ids(block_id, min(block_tokens, remaining), vocabulary_tokens))
        remaining -= block_tokens
    return parts[0] if len(parts) == 1 else np.concatenate(parts)

"""Prompts with an exact number of tokens and exactly the shared prefixes of their block ids.

The words are by default those of a tokenizer that the local target makes: ``w0`` … ``w8191``,
separated by spaces, one word one token. For a real model any words can take their place that
its tokenizer counts as one token each. A block's words follow from its id by integer
arithmetic alone, so that they are the same on every machine.

Caches hash pieces of a prompt, often shorter than a block here, so that distinct blocks must not
have a piece in common at any offset. No two of them start alike: the first words spell the
block's key, which is another one for every id. From there on, ``r`` words of one are ``r`` of
another by chance only, which is to be expected ``n**2 / 2 / v**r`` times among ``n`` words of a
vocabulary of ``v``: for all 94 million of the conversation trace and 8 of 8,192 in a row 2e-16
times, and for 16 of 277 common ones 4e-24 times.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

VOCABULARY_TOKENS = 8192
_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_SEED = np.uint64(0xD1B54A32D192ED03)
_FIRST_SHIFT, *_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_IDS = 2**64
WORDS = tuple(f"w{index}" for index in range(VOCABULARY_TOKENS))
# Each with a space after it and zeros up to the same length: in this form they fit a cache, where
# thousands of strings do not, and are copied without being looked at one by one.
_WORDS = np.array([f"{word} " for word in WORDS], dtype=np.bytes_)
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

    A block's key is its id, mixed. Its first tokens are the digits of the key; the one at a
    later position is mixed from the key and what is drawn for the position. All mixing is that
    of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), which maps no two numbers to the same.
    Keys are combined with positions by an exclusive or, where SplitMix64 adds: sums of other
    keys and other positions would be the same along whole runs. What its first step would do
    to them, key and position have had already.

    Raises:
        ValueError: no block has that id.
    """
    ids: npt.NDArray[np.uint64] = _blocks([block_id], tokens, vocabulary_tokens)[0]
    return ids


def _blocks(
    block_ids: Sequence[int], tokens: int, vocabulary_tokens: int
) -> npt.NDArray[np.uint64]:
    """(blocks, tokens) the first token ids of several blocks."""
    try:
        keys = np.array(block_ids, dtype=np.uint64)
    except OverflowError:
        wrong = next(block_id for block_id in block_ids if not 0 <= block_id < _IDS)
        raise ValueError(f"block id {wrong} is outside 0 … 2**64 - 1") from None
    keys = _mixed(keys * _GOLDEN_GAMMA + _FIRST_SEED)[:, None]
    ids = _finished(_positions(tokens) ^ keys)
    ids[:, : len(_places(vocabulary_tokens))] = keys // _places(vocabulary_tokens)[:tokens]
    if vocabulary_tokens & (vocabulary_tokens - 1):
        ids %= np.uint64(vocabulary_tokens)
    else:
        # The same, ten times as fast.
        ids &= np.uint64(vocabulary_tokens - 1)
    return ids


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output function, in place."""
    numbers ^= numbers >> _FIRST_SHIFT
    return _finished(numbers)


def _finished(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Its steps after the first, in place: a new array costs more than a step."""
    numbers *= _FACTORS[0]
    shifted = numbers >> _SHIFTS[0]
    numbers ^= shifted
    numbers *= _FACTORS[1]
    numbers ^= np.right_shift(numbers, _SHIFTS[1], out=shifted)
    return numbers


@functools.lru_cache(maxsize=64)
def _positions(tokens: int) -> npt.NDArray[np.uint64]:
    """What SplitMix64 draws for the positions of a block, from seed 0."""
    return _mixed(np.arange(1, tokens + 1, dtype=np.uint64) * _GOLDEN_GAMMA)


@functools.lru_cache(maxsize=8)
def _places(vocabulary_tokens: int) -> npt.NDArray[np.uint64]:
    """What the digits of a key count, from the first on, as many as the largest key has."""
    places = [1]
    while places[-1] * vocabulary_tokens < _IDS:
        places.append(places[-1] * vocabulary_tokens)
    return np.array(places, dtype=np.uint64)


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
    prompt = hash_ids, input_tokens
    return prompt_texts([prompt], block_tokens, words=words, template_tokens=template_tokens)[0]


def prompt_texts(
    prompts: Sequence[tuple[tuple[int, ...], int]],
    block_tokens: int,
    *,
    words: Sequence[str] | None = None,
    template_tokens: int = 0,
) -> list[str]:
    """Several prompts, each as :func:`prompt_text` makes it, in half the time.

    Args:
        prompts: ``hash_ids`` and ``input_tokens`` of each.
    """
    count = VOCABULARY_TOKENS if words is None else len(words)
    texts = []
    for (_, tokens), ids in zip(prompts, _token_ids(prompts, block_tokens, count), strict=True):
        ids = ids[: max(tokens - template_tokens, 1)]
        if words is None:
            # Signed, as numpy counts places: otherwise it converts each number.
            spaced = _WORDS.take(ids.view(np.int64)).tobytes()
            text = spaced.replace(b"\0", b"").decode("ascii")
            texts.append(text.removesuffix(" "))
        else:
            texts.append(" ".join([words[index] for index in ids.tolist()]))
    return texts


def english_text(hash_ids: tuple[int, ...], input_tokens: int, block_tokens: int) -> str:
    """The same prompt for models with their own tokenizers: as many common English words.

    Raises:
        ValueError: the ids do not cover the prompt.
    """
    (ids,) = _token_ids([(hash_ids, input_tokens)], block_tokens, VOCABULARY_TOKENS)
    return " ".join(_ENGLISH[ids % np.uint64(len(_ENGLISH))].tolist())


def _token_ids(
    prompts: Sequence[tuple[tuple[int, ...], int]], block_tokens: int, vocabulary_tokens: int
) -> list[npt.NDArray[np.uint64]]:
    """The token ids of each prompt. Blocks of the same length are made together."""
    blocks: dict[int, list[int]] = defaultdict(list)
    lengths = []
    for hash_ids, tokens in prompts:
        if len(hash_ids) != -(-tokens // block_tokens):
            raise ValueError(f"{len(hash_ids)} blocks of {block_tokens} for {tokens} tokens")
        whole = len(hash_ids) - 1
        lengths.append([*[block_tokens] * whole, tokens - whole * block_tokens])
        for length, block_id in zip(lengths[-1], hash_ids, strict=True):
            blocks[length].append(block_id)
    made = {n: iter(_blocks(ids, n, vocabulary_tokens)) for n, ids in blocks.items()}
    parts = [[next(made[length]) for length in own] for own in lengths]
    return [own[0] if len(own) == 1 else np.concatenate(own) for own in parts]

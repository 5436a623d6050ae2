"""Longer or larger traffic with the reuse of a real trace: Mooncake's trace, synthesized.

The algorithm is that of Dynamo's ``datagen synthesize``. The prompts of a trace form a
tree: requests that share a prefix share a path from the root. The part of the tree that more
than one request went through is kept; what only one request had is a *suffix*, of which
only the length is kept. New requests walk the tree with the frequencies of the trace, and end
in a suffix of new blocks. Lengths are scaled by making each node of the tree, and each suffix,
longer.

Unlike the original, which has no seed, the same seed gives the same requests everywhere: all
values come from ``random.Random(seed).random()``, which Python guarantees to keep. They differ from
those of the original; only distributions can be compared.

Means are preserved. The spread of prompt lengths is not, because prefix and suffix are drawn
independently.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.traffic.fields import check_number, check_whole
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    FixedSchedule,
    GeneratedTraffic,
    Schedule,
    TrafficRequest,
)
from pytest_dynamo_bench.traffic.mooncake import MooncakeTrace

_MOST_DISCARDED_IN_A_ROW = 100_000
_TO_SUFFIX, _END = -1, -2


@dataclass(frozen=True)
class SynthesizedMooncake(GeneratedTraffic):
    """Requests synthesized from a Mooncake trace; options as of ``datagen synthesize``.

    Against the published data set of DeepSeek-V3.2 (prefix x16, prompt x10, at most 110,000
    tokens, 10,000 requests) see ``tests/traffic/test_synthesizer.py``.

    Attributes:
        trace: ``"conversation"``, or the path of a Mooncake trace (see :class:`MooncakeTrace`).
        requests: number of requests.
        prefix_len_multiplier: length factor of every node of the shared tree; above 1 it is
            rounded up to a whole number, as in the original.
        prefix_root_multiplier: disjoint copies of the tree; each request uses one at random.
        prompt_len_multiplier: length factor of the suffixes.
        osl_multiplier: factor of output lengths, rounded down, at least 1.
        speedup_ratio: divides the times between arrivals.
        min_isl: shorter prompts are discarded, tokens.
        max_isl: longer prompts are discarded, tokens. As in the original, discarded requests are
            not replaced, which lowers the request rate.
        min_osl: shorter outputs get this length, tokens.
        max_osl: longer outputs get this length, tokens.
        seed: seed of all random values.
        schedule: how the requests are sent.

    Raises:
        BenchmarkError: a field is invalid; the message names it.
        TrafficError: the trace does not exist.
    """

    trace: str
    requests: int = 100_000
    prefix_len_multiplier: float = 1.0
    prompt_len_multiplier: float = 1.0
    prefix_root_multiplier: int = 1
    osl_multiplier: float = 1.0
    speedup_ratio: float = 1.0
    min_isl: int | None = None
    max_isl: int | None = None
    min_osl: int | None = None
    max_osl: int | None = None
    seed: int = 0
    schedule: Schedule = field(default_factory=FixedSchedule)

    def __post_init__(self) -> None:
        owner = type(self).__name__
        MooncakeTrace(self.trace)
        check_whole(owner, "seed", self.seed, 0)
        for name in ("requests", "prefix_root_multiplier"):
            check_whole(owner, name, getattr(self, name), 1)
        for name in (
            "prefix_len_multiplier", "prompt_len_multiplier", "osl_multiplier", "speedup_ratio",
        ):  # fmt: skip
            check_number(owner, name, getattr(self, name), above=0)
        for name in ("min_isl", "max_isl", "min_osl", "max_osl"):
            if getattr(self, name) is not None:
                check_whole(owner, name, getattr(self, name), 1)
        for low, high in (("min_isl", "max_isl"), ("min_osl", "max_osl")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise BenchmarkError(f"{owner}: {low}: {least} is greater than {high}: {most}")

    @property
    def content(self) -> str:
        limit = f", at most {self.max_isl:,} tokens" if self.max_isl is not None else ""
        return (
            f"{self.requests:,} requests synthesized from the Mooncake {self.trace} trace "
            f"(prefix x{self.prefix_len_multiplier:g}, prompt x{self.prompt_len_multiplier:g}"
            f"{limit}, seed {self.seed})"
        )

    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one; only the tree is held in memory.

        Raises:
            TrafficError: the trace cannot be read, or hardly any request is within the limits.
        """
        return synthesize(MooncakeTrace(self.trace).load().requests, self)


def synthesize(
    original: Sequence[TrafficRequest], options: SynthesizedMooncake
) -> Iterator[TrafficRequest]:
    """Make ``options.requests`` requests like those of ``original``.

    ``options.trace`` is not read. Timestamps are whole milliseconds.

    Raises:
        TrafficError: after 100,000 requests in a row none was within the limits on length.
    """
    tree = _Tree(original, options.prefix_len_multiplier)
    draws = _Draws(original, options, tree.suffix_lengths)
    chance = random.Random(options.seed)
    made = discarded = 0
    timestamp_ms = 0
    next_id = tree.blocks
    # Ids of a copy's own blocks would depend on how many requests there are; interleaving
    # copies (id x copies + copy) keeps them apart without knowing that.
    copies = options.prefix_root_multiplier
    while made < options.requests:
        for _ in range(draws.rows_per_timestamp.draw(chance)):
            shared, has_suffix = tree.walk(chance)
            blocks = len(shared)
            suffix = range(0)
            if has_suffix:
                suffix = range(next_id, next_id + draws.suffix_blocks.draw(chance))
                next_id += len(suffix)
                blocks += len(suffix)
                input_tokens = (blocks - 1) * BLOCK_TOKENS + draws.last_block_tokens.draw(chance)
            else:
                input_tokens = blocks * BLOCK_TOKENS
            output_tokens = draws.output_tokens.draw(chance)
            copy = int(chance.random() * copies) if copies > 1 else 0
            if input_tokens > (options.max_isl or input_tokens) or input_tokens < (
                options.min_isl or 1
            ):
                discarded += 1
                if discarded >= _MOST_DISCARDED_IN_A_ROW:
                    raise TrafficError(
                        f"SynthesizedMooncake: none of {discarded:,} consecutive requests has "
                        f"{options.min_isl or 1:,} to {options.max_isl or 'any number of'} tokens; "
                        "change min_isl, max_isl or the multipliers"
                    )
                continue
            discarded = 0
            name = f"{made:06d}"
            yield TrafficRequest(
                request_id=name,
                session_id=name,
                turn=0,
                timestamp_ms=float(timestamp_ms),
                delay_ms=0.0,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                hash_ids=tuple(block * copies + copy for block in itertools.chain(shared, suffix)),
            )
            made += 1
            if made == options.requests:
                return
        timestamp_ms += round(draws.gaps_ms.draw(chance) / options.speedup_ratio)


class _Empirical:
    """Draws from the values that were seen, each as likely as it was frequent."""

    def __init__(self, values: Iterator[int] | Sequence[int], default: int) -> None:
        counts = Counter(values) or Counter([default])
        self._values = sorted(counts)
        self._cumulative = list(itertools.accumulate(counts[value] for value in self._values))

    def draw(self, chance: random.Random) -> int:
        place = chance.random() * self._cumulative[-1]
        return self._values[bisect.bisect_right(self._cumulative, place)]


class _Draws:
    """What is drawn independently of the walk."""

    def __init__(
        self,
        original: Sequence[TrafficRequest],
        options: SynthesizedMooncake,
        suffix_lengths: Sequence[int],
    ) -> None:
        times = [round(request.timestamp_ms) for request in original]
        self.rows_per_timestamp = _Empirical(list(Counter(times).values()), 1)
        gaps = [after - before for before, after in itertools.pairwise(times)]
        self.gaps_ms = _Empirical([gap for gap in gaps if gap > 0], 1)
        self.last_block_tokens = _Empirical(
            [r.input_tokens - (len(r.hash_ids) - 1) * BLOCK_TOKENS for r in original], BLOCK_TOKENS
        )
        low, high = options.min_osl or 1, options.max_osl
        outputs = (max(low, int(r.output_tokens * options.osl_multiplier)) for r in original)
        self.output_tokens = _Empirical(
            [length if high is None else min(length, high) for length in outputs], 1
        )
        factor = options.prompt_len_multiplier
        self.suffix_blocks = _Empirical(
            [max(1, round(length * factor)) for length in suffix_lengths], 1
        )


class _Tree:
    """The part of the prefix tree that more than one request went through.

    Nodes are chains of blocks without a branch in between. Of each node the blocks are known
    (as a range of ids), and where requests went from there, with how often: to another node, to
    their own suffix, or nowhere.
    """

    def __init__(self, original: Sequence[TrafficRequest], prefix_multiplier: float) -> None:
        visits, ends, children = self._trie(original)
        self.suffix_lengths: list[int] = []
        self.blocks = 0  # ids below this are of the tree
        self._ranges: list[range] = []
        self._ways: list[tuple[list[int], list[int]]] = []
        waiting = [(0, 0)]
        self._add([], prefix_multiplier)
        while waiting:
            block, node = waiting.pop()
            targets: list[int] = []
            weights: list[int] = []
            suffixes = 0
            for child in children[block].values():
                chain = self._chain(child, visits, children)
                if visits[child] == 1:
                    self.suffix_lengths.append(len(chain))
                    suffixes += 1
                    continue
                targets.append(self._add(chain, prefix_multiplier))
                weights.append(visits[child])
                waiting.append((chain[-1], targets[-1]))
            for target, weight in ((_TO_SUFFIX, suffixes), (_END, ends[block])):
                if weight:
                    targets.append(target)
                    weights.append(weight)
            self._ways[node] = targets, list(itertools.accumulate(weights))

    @staticmethod
    def _trie(
        original: Sequence[TrafficRequest],
    ) -> tuple[list[int], list[int], list[dict[int, int]]]:
        """Of every block of the tree: requests through it, requests that end there, children."""
        visits, ends = [len(original)], [0]
        children: list[dict[int, int]] = [{}]
        for request in original:
            block = 0
            for hash_id in request.hash_ids:
                child = children[block].get(hash_id)
                if child is None:
                    child = children[block][hash_id] = len(visits)
                    visits.append(0)
                    ends.append(0)
                    children.append({})
                visits[child] += 1
                block = child
            ends[block] += 1
        return visits, ends, children

    @staticmethod
    def _chain(first: int, visits: Sequence[int], children: Sequence[dict[int, int]]) -> list[int]:
        """The blocks from ``first`` on that exactly the same requests went through."""
        chain = [first]
        while len(children[chain[-1]]) == 1:
            (only,) = children[chain[-1]].values()
            if visits[only] != visits[first]:
                break
            chain.append(only)
        return chain

    def _add(self, chain: Sequence[int], prefix_multiplier: float) -> int:
        length = len(chain)
        if length and prefix_multiplier > 1:
            length *= ceil(prefix_multiplier)
        elif length:
            length = max(1, round(length * prefix_multiplier))
        self._ranges.append(range(self.blocks, self.blocks + length))
        self._ways.append(([], []))
        self.blocks += length
        return len(self._ranges) - 1

    def walk(self, chance: random.Random) -> tuple[list[int], bool]:
        """The shared blocks of a new prompt, and whether its own suffix follows."""
        node = 0
        blocks: list[int] = []
        while True:
            targets, cumulative = self._ways[node]
            node = targets[bisect.bisect_right(cumulative, chance.random() * cumulative[-1])]
            if node < 0:
                return blocks, node == _TO_SUFFIX
            blocks.extend(self._ranges[node])

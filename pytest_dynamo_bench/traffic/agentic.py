"""Sessions of coding agents: long shared prefixes, many turns, contexts that grow until reset.

The algorithm is that of AIPerf's ``synthesize agentic-code``, with the parameters of its
manifest ``1k_sessions_200k_ctx``. A prompt has layers: tools and system prompt, the
same for all (32,000 tokens); the repository, the same within a group of sessions (10,000); what
the session starts with; and then, turn by turn, the previous output and new tokens. A session
ends when its context is full (*retire*), or by a chance that grows with the context
(*reset*). Some sessions end early and are taken up again later, with all their context, under
a new session id (*restart*).

The same seed gives the same sessions everywhere: each session has a separate random generator,
``random.Random(f"{seed}/{index}").random()``. The values differ from AIPerf's; only distributions
can be compared. Sessions are generated one at a time; only pending restarts are kept in memory.
"""

from __future__ import annotations

import bisect
import functools
import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist

from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.traffic.fields import check_number, check_whole
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    Concurrency,
    GeneratedTraffic,
    TrafficRequest,
)

# Ranges of block ids: as many groups, blocks of a group, and blocks of a session as AIPerf
# leaves room for.
_MOST_GROUPS, _BLOCKS_OF_GROUP, _BLOCKS_OF_SESSION = 1_000, 200, 4_000
_LEAST_DELAY_FACTOR, _DELAY_FACTOR_SLOPE = 0.2, 0.8
_RESTART_FIRST_TURN, _RESTART_LAST_TURN = 5, 14
_RESTARTS_END_AT = 0.75
_RESTART_LEAST_GAP = 0.02
_MOST_REJECTIONS = 10_000


@dataclass(frozen=True)
class Lognormal:
    """A lognormal distribution by its mean and median before it is cut off.

    ``mu = ln(median)``, ``sigma = sqrt(2 ln(mean / median))``. Values outside ``least`` …
    ``most`` are drawn again. If ``most`` cuts off much, the mean of the drawn values is below
    ``mean``.
    """

    mean: float
    median: float
    least: float = 0.0
    most: float = math.inf

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_number(owner, "median", self.median, above=0)
        check_number(owner, "mean", self.mean, least=self.median)
        check_number(owner, "least", self.least, least=0, most=self.median)
        check_number(owner, "most", self.most, least=self.median)

    def draw(self, chance: random.Random) -> float:
        """One value."""
        sigma = math.sqrt(2 * math.log(self.mean / self.median))
        for _ in range(_MOST_REJECTIONS):
            place = chance.random()
            # 0 is possible, and has no quantile.
            if place > 0:
                value = self.median * math.exp(sigma * _NORMAL.inv_cdf(place))
                if self.least <= value <= self.most:
                    return value
        raise AssertionError(f"{self} almost never draws a value within its limits")


_NORMAL = NormalDist()


@dataclass(frozen=True)
class AgenticCoding(GeneratedTraffic):
    """Coding-agent sessions, as a benchmark's traffic; the defaults are the published manifest.

    Attributes:
        sessions: primary sessions; restarts come on top (1,131 make about 1,205).
        seed: decides every draw.
        schedule: sessions in flight. There are no arrival times for a fixed schedule.
        max_prompt_tokens: a session ends if its next prompt would be longer.
        global_tokens: length of the prefix shared by all prompts.
        group_tokens: length of the prefix shared by a group, after the global one.
        groups: number of groups; the k-th is chosen with weight ``1 / k ** zipf_alpha``.
        zipf_alpha: skew of the groups' sizes.
        session_start: further tokens of a session's first prompt.
        new_tokens: tokens that a later turn adds to the previous prompt and output.
        output_tokens: length of outputs.
        agentic_share: share of agent delays between turns; the others are human delays.
        agentic_delay_ms: agent delays.
        human_delay_ms: human delays.
        reset_probability: probability of ending after a turn with an empty context ...
        reset_scaling: ... multiplied by this with a full one, linear in between.
        restart_probability: probability of a restart after turn 5 to 14, for the first
            session; it falls to 0 over the first three quarters of all sessions.

    Raises:
        BenchmarkError: a field is invalid; the message names it.
    """

    sessions: int
    schedule: Concurrency
    seed: int = 42
    max_prompt_tokens: int = 200_000
    global_tokens: int = 32_000
    group_tokens: int = 10_000
    groups: int = 100
    zipf_alpha: float = 0.6
    session_start: Lognormal = field(default_factory=lambda: Lognormal(15_000, 5_000, most=50_000))
    new_tokens: Lognormal = field(default_factory=lambda: Lognormal(6_000, 4_000, most=50_000))
    output_tokens: Lognormal = field(
        default_factory=lambda: Lognormal(1_000, 800, least=30, most=10_000)
    )
    agentic_share: float = 0.7
    agentic_delay_ms: Lognormal = field(default_factory=lambda: Lognormal(5_000, 2_000))
    human_delay_ms: Lognormal = field(default_factory=lambda: Lognormal(30_000, 15_000))
    reset_probability: float = 0.05
    reset_scaling: float = 1.5
    restart_probability: float = 0.3

    def __post_init__(self) -> None:
        owner = type(self).__name__
        check_whole(owner, "sessions", self.sessions, 1)
        self.check_closed_loop("sessions")
        check_whole(owner, "seed", self.seed, 0)
        for name in ("global_tokens", "group_tokens", "groups"):
            check_whole(owner, name, getattr(self, name), 1)
        for name, most in (
            ("groups", _MOST_GROUPS),
            ("group_tokens", _BLOCKS_OF_GROUP * BLOCK_TOKENS),
            ("max_prompt_tokens", _BLOCKS_OF_SESSION * BLOCK_TOKENS),
        ):
            check_number(owner, name, getattr(self, name), most=most)
        check_whole(
            owner, "max_prompt_tokens", self.max_prompt_tokens,
            self.global_tokens + self.group_tokens + 2 * BLOCK_TOKENS,
        )  # fmt: skip
        for name in (
            "session_start", "new_tokens", "output_tokens", "agentic_delay_ms", "human_delay_ms",
        ):  # fmt: skip
            if not isinstance(getattr(self, name), Lognormal):
                raise BenchmarkError(
                    f"{owner}: {name}: must be a Lognormal, got {getattr(self, name)!r}"
                )
        check_number(owner, "zipf_alpha", self.zipf_alpha, least=0)
        for name in ("agentic_share", "reset_probability", "restart_probability"):
            check_number(owner, name, getattr(self, name), least=0, most=1)
        check_number(owner, "reset_scaling", self.reset_scaling, least=0)

    @property
    def content(self) -> str:
        return f"{self.sessions:,} coding-agent sessions and restarts of them, seed {self.seed}"

    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one, sessions in their order, all turns of one together."""
        for session in self.generate_sessions():
            yield from session.requests

    def generate_sessions(self) -> Iterator[AgenticSession]:
        """The sessions one by one: primaries in order, each restart some way behind its own."""
        waiting: list[tuple[int, int, AgenticSession]] = []
        for index in range(self.sessions):
            while waiting and waiting[0][0] <= index:
                yield heapq.heappop(waiting)[2]
            primary, restart, due = self._make(index)
            if restart is not None:
                heapq.heappush(waiting, (due, index, restart))
            yield primary
        while waiting:
            yield heapq.heappop(waiting)[2]

    def _make(self, index: int) -> tuple[AgenticSession, AgenticSession | None, int]:
        """A primary session, its restart, and before which primary that comes."""
        chance = random.Random(f"{self.seed}/{index}")
        group = bisect.bisect_right(
            _zipf(self.groups, self.zipf_alpha),
            chance.random() * _zipf(self.groups, self.zipf_alpha)[-1],
        )
        split = self._split_turn(index, chance)
        name = f"{index:05d}"
        turns = _Turns(self, index, group, chance)
        requests: list[TrafficRequest] = []
        ending = turns.run(name, requests, split)
        if ending != "split":
            return AgenticSession(tuple(requests), group, ending), None, 0
        continued: list[TrafficRequest] = []
        restart_ending = turns.run(f"{name}r", continued, None)
        gap = max(1, math.ceil(_RESTART_LEAST_GAP * self.sessions))
        due = index + gap + int(chance.random() * max(1, self.sessions - index - gap))
        return (
            AgenticSession(tuple(requests), group, "split"),
            AgenticSession(tuple(continued), group, restart_ending, restart=True),
            due,
        )

    def _split_turn(self, index: int, chance: random.Random) -> int | None:
        progress = index / (_RESTARTS_END_AT * self.sessions)
        probability = self.restart_probability * max(0.0, 1 - progress)
        if chance.random() >= probability:
            return None
        turns = _RESTART_LAST_TURN - _RESTART_FIRST_TURN + 1
        return _RESTART_FIRST_TURN + int(chance.random() * turns)


@dataclass(frozen=True)
class AgenticSession:
    """One session with how it ended.

    Attributes:
        requests: its turns.
        group: which group's prefix it has, from 0.
        ending: ``retire`` (the context is full), ``reset`` (by chance) or ``split`` (a
            restart takes it up again).
        restart: whether it takes up another.
    """

    requests: tuple[TrafficRequest, ...]
    group: int
    ending: str
    restart: bool = False


@functools.lru_cache(maxsize=4)
def _zipf(groups: int, alpha: float) -> list[float]:
    return list(itertools.accumulate(1 / rank**alpha for rank in range(1, groups + 1)))


class _Turns:
    """A context that grows turn by turn, over a session and its restart."""

    def __init__(
        self, options: AgenticCoding, index: int, group: int, chance: random.Random
    ) -> None:
        self._options = options
        self._chance = chance
        global_blocks = -(-options.global_tokens // BLOCK_TOKENS)
        group_blocks = -(-options.group_tokens // BLOCK_TOKENS)
        group_base = global_blocks + group * _BLOCKS_OF_GROUP
        self._shared = (*range(global_blocks), *range(group_base, group_base + group_blocks))
        self._next_id = global_blocks + _MOST_GROUPS * _BLOCKS_OF_GROUP + index * _BLOCKS_OF_SESSION
        self._ids: tuple[int, ...] = ()
        start = options.session_start.draw(chance)
        first = options.global_tokens + options.group_tokens + round(start)
        self._input = min(first, options.max_prompt_tokens - 1)
        self._output = 0

    def run(self, name: str, requests: list[TrafficRequest], split: int | None) -> str:
        """Append a session's turns; returns how it ended.

        The prompt of the first turn is already known: a session's own start, or for a restart
        all that was there with the last output.
        """
        options, chance = self._options, self._chance
        delay_ms = 0.0
        while True:
            self._output = round(options.output_tokens.draw(chance))
            self._extend_ids()
            turn = len(requests)
            requests.append(
                TrafficRequest(
                    request_id=f"{name}.{turn:02d}",
                    session_id=name,
                    turn=turn,
                    timestamp_ms=0.0,
                    delay_ms=delay_ms,
                    input_tokens=self._input,
                    output_tokens=self._output,
                    hash_ids=self._ids,
                )
            )
            full = self._input + self._output >= options.max_prompt_tokens
            if split is not None and len(requests) == split and not full:
                self._input += self._output
                return "split"
            delay_ms = self._delay_ms()
            longer = self._input + self._output + max(1, round(options.new_tokens.draw(chance)))
            if longer >= options.max_prompt_tokens:
                return "retire"
            used = longer / options.max_prompt_tokens
            if chance.random() < options.reset_probability * (
                1 + (options.reset_scaling - 1) * used
            ):
                return "reset"
            self._input = longer

    def _extend_ids(self) -> None:
        needed = -(-self._input // BLOCK_TOKENS)
        if not self._ids:
            self._ids = self._shared[:needed]
        more = needed - len(self._ids)
        self._ids += tuple(range(self._next_id, self._next_id + more))
        self._next_id += more

    def _delay_ms(self) -> float:
        """Delays shrink as the context fills, to a fifth; whole microseconds."""
        options, chance = self._options, self._chance
        agentic = chance.random() < options.agentic_share
        drawn = (options.agentic_delay_ms if agentic else options.human_delay_ms).draw(chance)
        used = self._input / options.max_prompt_tokens
        return round(drawn * max(_LEAST_DELAY_FACTOR, 1 - _DELAY_FACTOR_SLOPE * used), 3)

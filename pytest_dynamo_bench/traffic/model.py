"""The form that all traffic has, whatever it was made from."""

from __future__ import annotations

import abc
import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.traffic.images import Images

# Of a prefix block, as in Mooncake's traces.
BLOCK_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TrafficRequest:
    """One request to be sent.

    ``timestamp_ms`` is when the first turn of a session is due, counted from the start of
    the run. A later turn is due ``delay_ms`` after its predecessor has ended.
    ``hash_ids`` has one id for every ``Traffic.block_tokens`` tokens of the prompt, the last
    one possibly for fewer; equal ids stand for equal text up to and including that block.
    ``images`` are numbers of ``Traffic.images``; lengths are those of the text without them.
    """

    request_id: str
    session_id: str
    turn: int
    timestamp_ms: float
    delay_ms: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]
    images: tuple[int, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        # Thousands go to another process; what dataclasses do takes three times as long.
        return type(self), _values(self)


_values = operator.attrgetter(*(item.name for item in fields(TrafficRequest)))


@dataclass(frozen=True)
class FixedSchedule:
    """Open loop: requests are sent at their scheduled time, even if earlier ones have not ended."""

    @property
    def description(self) -> str:
        return "fixed schedule"


@dataclass(frozen=True)
class Concurrency:
    """Closed loop: a fixed number of sessions in flight; when one ends, the next one starts."""

    sessions: int

    def __post_init__(self) -> None:
        if not isinstance(self.sessions, int) or self.sessions < 1:
            raise BenchmarkError(f"Concurrency: sessions: must be 1 or more, got {self.sessions!r}")

    @property
    def description(self) -> str:
        return f"concurrency {self.sessions}"


Schedule = FixedSchedule | Concurrency


@dataclass(frozen=True)
class Traffic:
    """A reproducible stream of requests with its schedule.

    ``requests`` are in the order of their timestamps. ``history`` says, one sentence a step,
    what the stream was made from and what was done to it. ``images`` has those that requests
    name by number; None for text alone. ``share`` is how large a part of the requests of its
    source it has. ``session_header`` is a header that names each request's session to the server;
    empty for none.
    """

    requests: Sequence[TrafficRequest]
    schedule: Schedule
    block_tokens: int
    history: tuple[str, ...]
    images: Images | None = None
    share: float = 1.0
    session_header: str = ""

    @property
    def duration_seconds(self) -> float:
        """Time from the start of the run to the last scheduled first turn."""
        return max((request.timestamp_ms for request in self.requests), default=0.0) / 1000


class TrafficSource(abc.ABC):
    """The traffic of a benchmark; it is read when it is needed."""

    @abc.abstractmethod
    def load(self) -> Traffic:
        """Read or make the traffic at its full, published size.

        Raises:
            TrafficError: it cannot be read; the message names the file and the line.
        """

    @property
    @abc.abstractmethod
    def description(self) -> str:
        """A phrase for reports, such as ``Mooncake conversation trace``."""


class GeneratedTraffic(TrafficSource):
    """Traffic that follows from the fields of its source alone."""

    schedule: Schedule

    images: Images | None = None

    @property
    @abc.abstractmethod
    def content(self) -> str:
        """What is sent, without its schedule; a phrase for reports."""

    @abc.abstractmethod
    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one."""

    @property
    def description(self) -> str:
        return f"{self.content}, {self.schedule.description}"

    def load(self) -> Traffic:
        return _generated(self)

    def check_closed_loop(self, what: str = "these requests") -> None:
        """BenchmarkError unless requests without arrival times are sent in a closed loop."""
        if not isinstance(self.schedule, Concurrency):
            raise BenchmarkError(
                f"{type(self).__name__}: schedule: must be a Concurrency, got {self.schedule!r}; "
                f"{what} have no arrival times"
            )


@functools.lru_cache(maxsize=4)
def _generated(source: GeneratedTraffic) -> Traffic:
    requests = tuple(source.generate())
    return Traffic(requests, source.schedule, BLOCK_TOKENS, (source.content,), source.images)

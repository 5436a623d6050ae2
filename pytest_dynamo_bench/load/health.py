"""How well the load generator itself kept up: measured in every run, and judged by a gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_MOST_SAMPLES = 8192


@dataclass(frozen=True)
class Spread:
    """A distribution in milliseconds; zeros when it has no values.

    ``values`` are kept so that the spreads of several processes can be put together.
    """

    p50: float
    p99: float
    max: float
    values: tuple[float, ...] = ()

    @staticmethod
    def of(values_ms: Sequence[float], largest_ms: float | None = None) -> Spread:
        if len(values_ms) == 0:
            return Spread(0.0, 0.0, largest_ms or 0.0)
        p50, p99 = np.percentile(np.asarray(values_ms, dtype=np.float64), [50, 99])
        largest = max(values_ms) if largest_ms is None else largest_ms
        return Spread(float(p50), float(p99), float(largest), tuple(values_ms))

    @staticmethod
    def merged(spreads: Sequence[Spread]) -> Spread:
        values = [value for spread in spreads for value in spread.values]
        return Spread.of(values, max((spread.max for spread in spreads), default=0.0))

    def plain(self) -> dict[str, float]:
        return {"p50": round(self.p50, 4), "p99": round(self.p99, 4), "max": round(self.max, 4)}


class Sampler:
    """Keeps an even sample of a stream of durations, and the largest of all."""

    def __init__(self) -> None:
        self._values: list[int] = []
        self._stride = self._skip = 1
        self._largest = 0

    def add(self, nanoseconds: int) -> None:
        """Take one value in; cheap enough for a hot path."""
        if nanoseconds > self._largest:
            self._largest = nanoseconds
        self._skip -= 1
        if self._skip:
            return
        self._skip = self._stride
        self._values.append(nanoseconds)
        if len(self._values) >= _MOST_SAMPLES:
            del self._values[::2]
            self._stride *= 2
            self._skip = self._stride

    def spread_ms(self) -> Spread:
        """What has been taken in, in milliseconds."""
        return Spread.of([value / 1e6 for value in self._values], self._largest / 1e6)


@dataclass(frozen=True)
class DriverHealth:
    """How one process of the load generator did.

    Attributes:
        wall_seconds: from the start of the run to its last record.
        cpu_seconds: that it computed, of those.
        receive_lag_ms: from the kernel's receive timestamp to the event loop's noticing; empty
            without kernel timestamps. It does not lengthen latencies, but what is read together
            cannot be distinguished.
        loop_busy_ms: how long the event loop served one batch of events. Where there are no
            kernel timestamps, latencies are wrong by up to so much.
        late_bodies: requests whose body was built when they were due.
        reconnects: requests sent again since their idle connection was closed meanwhile.
        clock_steps: how often the clock was set during the run.
        clock_uncertainty_ms: how exactly kernel timestamps are put on the monotonic clock.
        reads: system calls that brought data.
    """

    wall_seconds: float
    cpu_seconds: float
    receive_lag_ms: Spread
    loop_busy_ms: Spread
    late_bodies: int
    reconnects: int
    clock_steps: int
    clock_uncertainty_ms: float
    reads: int


@dataclass(frozen=True)
class GeneratorHealth:
    """How the load generator did, all processes together.

    Attributes:
        processes: that it ran in; 0 for a thread of the calling process.
        cpu_share: of a core, in the busiest process; 1 is a whole core.
        cpu_seconds: of all processes.
        schedule_delay_ms: how late requests were sent.
        kernel_timestamp_share: of the chunks, those whose arrival the kernel noted.
        coalesced_share: of the chunks, those that were read together with what came after
            them; their arrival is not known better than that of the last.
    """

    processes: int
    cpu_share: float
    cpu_seconds: float
    wall_seconds: float
    schedule_delay_ms: Spread
    receive_lag_ms: Spread
    loop_busy_ms: Spread
    kernel_timestamp_share: float
    coalesced_share: float
    late_bodies: int
    reconnects: int
    clock_steps: int
    clock_uncertainty_ms: float

    @staticmethod
    def of(
        drivers: Sequence[DriverHealth],
        processes: int,
        delays_ms: Sequence[float],
        kernel_chunks: int,
        coalesced_chunks: int,
        chunks: int,
    ) -> GeneratorHealth:
        """Put together what the processes measured and what the records say."""
        return GeneratorHealth(
            processes=processes,
            cpu_share=max((d.cpu_seconds / d.wall_seconds for d in drivers), default=0.0),
            cpu_seconds=sum(d.cpu_seconds for d in drivers),
            wall_seconds=max((d.wall_seconds for d in drivers), default=0.0),
            schedule_delay_ms=Spread.of(delays_ms),
            receive_lag_ms=Spread.merged([d.receive_lag_ms for d in drivers]),
            loop_busy_ms=Spread.merged([d.loop_busy_ms for d in drivers]),
            kernel_timestamp_share=kernel_chunks / max(chunks, 1),
            coalesced_share=coalesced_chunks / max(chunks, 1),
            late_bodies=sum(d.late_bodies for d in drivers),
            reconnects=sum(d.reconnects for d in drivers),
            clock_steps=max((d.clock_steps for d in drivers), default=0),
            clock_uncertainty_ms=max((d.clock_uncertainty_ms for d in drivers), default=0.0),
        )

    def plain(self) -> dict[str, Any]:
        """Plain data for reports: spreads without their values."""
        found: dict[str, Any] = {}
        for name in asdict(self):
            value = getattr(self, name)
            if isinstance(value, Spread):
                found[name] = value.plain()
            else:
                found[name] = round(value, 6) if isinstance(value, float) else value
        return found

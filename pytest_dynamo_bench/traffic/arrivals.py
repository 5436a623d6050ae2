"""When the requests of a fixed schedule start: in what steps their times were recorded.

A recording in steps of seconds has requests at once that came apart. Sent as recorded, each step
is a burst, and what is measured are the queues of bursts that there never were.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.traffic.fields import check_whole
from pytest_dynamo_bench.traffic.model import Concurrency, Schedule, Traffic

# Recorders tick a millisecond early or late; what is not recorded in steps is so near to one for
# one distance in 25, by chance.
_NEAR = 0.02
_MOST_ASTRAY = 0.05
_FEWEST_INSTANTS = 10
_FEW_AT_ONCE = 2.0
_GUESSES = (0.0, 0.01, 0.05, 0.25, 0.5)


@dataclass(frozen=True)
class Arrivals:
    """How the starts of sessions lie in time.

    Attributes:
        starts: first turns.
        instants: distinct times of theirs.
        most_at_once: first turns that share a time, at most.
        resolution_ms: the step that the times were recorded in: of the distances between one and
            the next, 95 % are whole multiples of it to within 2 % of it, or all are whole
            milliseconds and multiples of it. None where there is no such step, or where there are
            fewer than ten times.
    """

    starts: int
    instants: int
    most_at_once: int
    resolution_ms: float | None

    @property
    def mean_at_once(self) -> float:
        """First turns for each distinct time."""
        return self.starts / self.instants

    @property
    def in_bursts(self) -> bool:
        """Whether requests start together: two or more at a time on average."""
        return self.mean_at_once >= _FEW_AT_ONCE

    def __str__(self) -> str:
        steps = f" every {self.resolution_ms:,g} ms" if self.resolution_ms is not None else ""
        return (
            f"{self.starts:,} requests at {self.instants:,} distinct times, "
            f"{self.mean_at_once:.1f} at once{steps} (at most {self.most_at_once:,})"
        )


def arrivals(traffic: Traffic) -> Arrivals | None:
    """How the sessions of a traffic start; None in a closed loop, where answers decide that."""
    if isinstance(traffic.schedule, Concurrency):
        return None
    times = Counter(request.timestamp_ms for request in traffic.requests if request.turn == 0)
    if not times:
        return None
    return Arrivals(sum(times.values()), len(times), max(times.values()), _step(sorted(times)))


def _step(instants: Sequence[float]) -> float | None:
    """The largest step that distinct times lie in, if any."""
    if len(instants) < _FEWEST_INSTANTS:
        return None
    import numpy as np  # here, so that an author's module need not pay for it

    distances = np.diff(np.array(instants))
    # Two instants next to each other are likely among the closest; if not, two or three steps
    # apart.
    for guess in sorted(
        {distance / part for distance in np.quantile(distances, _GUESSES) for part in (1, 2, 3)},
        reverse=True,
    ):
        steps = np.maximum(np.rint(distances / guess), 1)
        step = distances.sum() / steps.sum()
        astray = np.abs(distances / step - np.rint(distances / step)) > _NEAR
        if astray.mean() <= _MOST_ASTRAY:
            return float(f"{step:.4g}")
    whole = np.rint(distances)
    return float(np.gcd.reduce(whole.astype(int))) if np.array_equal(whole, distances) else None


def check_spread(owner: str, spread: bool, seed: int, schedule: Schedule) -> None:
    """Check the fields with which a source asks for :func:`spread_within_resolution`.

    Raises:
        BenchmarkError: a field cannot be right; the message names it.
    """
    check_whole(owner, "seed", seed, 0)
    if not isinstance(spread, bool):
        raise BenchmarkError(f"{owner}: spread_arrivals: must be True or False, got {spread!r}")
    if spread and isinstance(schedule, Concurrency):
        raise BenchmarkError(
            f"{owner}: spread_arrivals: {schedule.description} has no arrival times; leave it out, "
            "or use FixedSchedule()"
        )


def spread_within_resolution(traffic: Traffic, seed: int) -> Traffic:
    """The same traffic with starts anywhere within the step that they were recorded in.

    A step's sessions get independent, uniformly distributed times of it, in the order of the
    recording: no request comes before one that it came after, whether or not the recording says
    that it is the next turn of the same dialogue. Later turns follow theirs as they did. The same
    seed gives the same times everywhere.

    Raises:
        TrafficError: there are no such steps.
    """
    found = arrivals(traffic)
    if found is None or found.resolution_ms is None:
        raise TrafficError(
            f"{'; '.join(traffic.history)}: the timestamps have no coarse steps to spread arrivals "
            "within; leave spread_arrivals out"
        )
    chance = random.Random(seed)
    # Times that are less than half a step apart are of one step.
    steps: list[tuple[float, list[str]]] = []
    for request in traffic.requests:
        if request.turn == 0:
            if not steps or request.timestamp_ms - steps[-1][0] >= found.resolution_ms / 2:
                steps.append((request.timestamp_ms, []))
            steps[-1][1].append(request.session_id)
    ends = [*(at_ms for at_ms, _ in steps[1:]), math.inf]
    moved: dict[str, float] = {}
    for (at_ms, starting), end_ms in zip(steps, ends, strict=True):
        width_ms = min(found.resolution_ms, end_ms - at_ms)
        within = sorted(chance.random() * width_ms for _ in starting)
        moved |= {name: at_ms + later for name, later in zip(starting, within, strict=True)}
    requests = [
        dataclasses.replace(request, timestamp_ms=moved[request.session_id])
        for request in traffic.requests
    ]
    requests.sort(key=lambda request: request.timestamp_ms)
    step = (
        f"arrivals spread within the {found.resolution_ms:,g} ms of the recording's resolution, "
        f"seed {seed}; recorded: {found}"
    )
    return dataclasses.replace(traffic, requests=tuple(requests), history=(*traffic.history, step))

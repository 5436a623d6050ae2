"""Lead the shards of a traffic: see how their clocks are off, start them together, collect."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.outside import Amount, Count, decoded, shown
from pytest_dynamo_bench.targets.base import RECENT, Progress, show_latency
from pytest_dynamo_bench.targets.service.shards import (
    Clock,
    Merged,
    merge,
    unpack_record,
    unpack_result,
)
from pytest_dynamo_bench.traffic import Traffic

T = TypeVar("T")

_CLOCK_QUESTIONS = 9
_POLL_SECONDS = 0.5
_LEAD_SECONDS = 2.0
_SILENCE_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0


class ShardConnection(Protocol):
    """The way to one shard, wherever it runs."""

    def get(self, path: str) -> bytes:
        """The body of the answer.

        Raises:
            OSError: there was none.
        """

    def post(self, path: str, body: bytes) -> bytes:
        """The body of the answer.

        Raises:
            OSError: there was none.
        """


def _nothing() -> None:
    """What there is to look at while waiting, where there is nothing."""


def run_shards(
    connections: Sequence[ShardConnection],
    traffic: Traffic,
    progress: Progress,
    *,
    prepare_seconds: float = 600,
    still_there: Callable[[], None] = _nothing,
) -> Merged:
    """Start all shards at one time, follow them, and put together what they measured.

    Args:
        connections: by the shards' numbers.
        traffic: that was dealt out to them.
        prepare_seconds: until all are ready to send.
        still_there: called now and then; raises when the run cannot succeed any more.

    Raises:
        DeploymentError: a shard failed before the start, or all of them did, or are gone.
    """
    progress.stage("preparing load")
    _until_ready(connections, prepare_seconds, still_there)
    clocks = [clock_of(connection) for connection in connections]
    start = time.time() + _LEAD_SECONDS
    for connection, clock in zip(connections, clocks, strict=True):
        order = json.dumps({"unix": start + clock.offset_ms / 1000})
        _try(partial(connection.post, "start", order.encode()), "start")
    progress.stage("measuring")
    failed: dict[int, DeploymentError] = {}
    try:
        _until_done(connections, len(traffic.requests), progress, still_there, failed)
    except DeploymentError as error:
        # What the shards that have ended measured is not lost with the rest.
        failed = {index: failed.get(index, error) for index in range(len(connections))}
    results = []
    for index, (connection, clock) in enumerate(zip(connections, clocks, strict=True)):
        running = index not in failed
        with contextlib.suppress(*(() if running else (OSError, DeploymentError, TargetError))):
            ask = partial(connection.get, "results")
            data = _try(ask, "results", still_there) if running else ask()
            results.append(unpack_result(data, index, clock))
    if not results:
        raise next(iter(failed.values()))
    for index, connection in enumerate(connections):
        if index not in failed:
            _try(partial(connection.post, "quit", b""), "quit")
    merged = merge(results, traffic, start)
    merged.problems.extend(dict.fromkeys(str(error) for error in failed.values()))
    return merged


def clock_of(connection: ShardConnection) -> Clock:
    """How far a shard's clock is ahead: of several questions the one that was answered fastest.

    As NTP does (RFC 5905): the answer is taken to be from the middle of its way.
    """
    best = Clock(0.0, float("inf"))
    for _ in range(_CLOCK_QUESTIONS):
        before = time.time()
        shard_time = _said(_try(partial(connection.get, "clock"), "clock"), _Time).unix
        after = time.time()
        found = Clock((shard_time - (before + after) / 2) * 1000, (after - before) / 2 * 1000)
        if found.uncertainty_ms < best.uncertainty_ms:
            best = found
    return best


def _until_ready(
    connections: Sequence[ShardConnection], seconds: float, still_there: Callable[[], None]
) -> None:
    deadline = time.monotonic() + seconds
    waiting = list(range(len(connections)))
    last = "no answer yet"
    while waiting:
        still_there()
        for index in list(waiting):
            try:
                status = _said(connections[index].get("status"), _Status)
            except OSError as error:
                last = str(error)
                continue
            if (failure := _failure(status)) is not None:
                raise failure
            last = f"shard {index}: {status.stage}"
            if status.stage == "waiting":
                waiting.remove(index)
        if waiting and time.monotonic() > deadline:
            raise DeploymentError(
                f"the load generator was not ready after {seconds:g} s: {len(waiting)} of "
                f"{len(connections)} shards were missing (last: {last})"
            )
        if waiting:
            time.sleep(_POLL_SECONDS)


def _until_done(
    connections: Sequence[ShardConnection],
    total: int,
    progress: Progress,
    still_there: Callable[[], None],
    failed: dict[int, DeploymentError],
) -> None:
    """Wait for all shards but those that fail meanwhile.

    Args:
        failed: filled with these, and why.

    Raises:
        DeploymentError: the run cannot succeed any more.
    """
    while True:
        still_there()
        found = []
        for index, connection in enumerate(connections):
            if index not in failed:
                ask = partial(connection.get, "status")
                status = _said(_try(ask, "status", still_there), _Status)
                found.append(status)
                if (error := _failure(status)) is not None:
                    failed[index] = error
        progress.requests(sum(s.done for s in found), sum(s.failed for s in found), total)
        latest = [unpack_record(packed) for status in found for packed in status.recent]
        latest.sort(key=lambda record: record.end_ms or 0.0)
        show_latency(progress, latest[-RECENT:])
        if all(status.stage in ("done", "failed") for status in found):
            return
        time.sleep(_POLL_SECONDS)


def _failure(status: _Status) -> DeploymentError | None:
    if status.stage != "failed":
        return None
    return DeploymentError(f"load shard {status.shard} failed: {status.error}")


def _try(ask: Callable[[], bytes], what: str, still_there: Callable[[], None] = _nothing) -> bytes:
    """Ask until there is an answer: what is in between may be away for a while.

    Raises:
        DeploymentError: there was none for a minute, or what is asked has ended.
    """
    deadline, wait = time.monotonic() + _SILENCE_SECONDS, _FIRST_WAIT_SECONDS
    while True:
        try:
            return ask()
        except OSError as error:
            still_there()
            if time.monotonic() + wait > deadline:
                raise DeploymentError(
                    f"a load generator has not answered for {_SILENCE_SECONDS:g} s ({what}): "
                    f"{error}"
                ) from None
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT_SECONDS)


class _Time(msgspec.Struct):
    unix: Amount


class _Status(msgspec.Struct):
    stage: str
    shard: int = 0
    done: Count = 0
    failed: Count = 0
    error: str = ""
    recent: list[list[Any]] = []


def _said(data: bytes, kind: type[T]) -> T:
    """What a shard answered.

    Raises:
        DeploymentError: it is none that answered.
    """
    try:
        return decoded(data, kind)
    except ValueError as error:
        raise DeploymentError(
            f"the response is not from a load generator ({error}): {shown(data)}"
        ) from None

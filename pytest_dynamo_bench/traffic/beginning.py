"""Only the beginning of a traffic: of one configuration's own, or of every one to try a command."""

from __future__ import annotations

import dataclasses
import os

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.traffic.model import Traffic

#: The environment variable with how many requests are sent at most, for trying a command.
TRIAL_VARIABLE = "DYNAMO_BENCH_REQUESTS"


def beginning(traffic: Traffic, count: int, why: str = "") -> Traffic:
    """The first ``count`` requests of a traffic, under different ids (``000007@640``).

    A request of a run that was shorter is not the same measurement as its namesake in a longer
    one, so that the two are compared as a whole and not request by request.

    Args:
        count: requests that are kept, 1 or more; the traffic itself is returned where it has
            no more.
        why: is added to the traffic's history.
    """
    if count >= len(traffic.requests):
        return traffic
    requests = tuple(
        dataclasses.replace(request, request_id=f"{request.request_id}@{count}")
        for request in traffic.requests[:count]
    )
    step = f"the first {count:,} of {len(traffic.requests):,} requests{why}"
    return dataclasses.replace(traffic, requests=requests, history=(*traffic.history, step))


def trial_requests() -> int | None:
    """How many requests are sent at most in this process; None is all.

    Raises:
        TrafficError: the environment variable is no such number.
    """
    text = os.environ.get(TRIAL_VARIABLE, "")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise TrafficError(f"{TRIAL_VARIABLE}: must be a whole number, 1 or more, got {text!r}")
    return int(text)


def tried(traffic: Traffic) -> Traffic:
    """The traffic, or as much of its beginning as ``DYNAMO_BENCH_REQUESTS`` allows.

    Raises:
        TrafficError: the environment variable is no such number.
    """
    count = trial_requests()
    if count is None:
        return traffic
    part = beginning(traffic, count, f", since {TRIAL_VARIABLE}={count}: a trial, not a result")
    share = traffic.share * len(part.requests) / max(1, len(traffic.requests))
    return dataclasses.replace(part, share=share)

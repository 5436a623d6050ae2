"""Cutting an hour of traffic down to what a small machine can send in a minute.

The head of a trace does not do: the first minute of the conversation trace reuses next to
nothing, since conversations have not come back yet. Instead the whole trace is compressed
in time, and of its conversations only as many are kept as compensate for that. Each kept
conversation is kept whole, so that its reuse survives:

* time runs ``C`` times faster, and one in ``C`` tokens is kept: the input tokens per second,
  and so the load of every worker, stay as they were;
* prompts keep their lengths;
* of many random choices of conversations the one is taken whose mean lengths and share of
  reusable blocks are closest to those of the whole trace. The choice looks at the traffic
  only, never at a measurement.

What is given up is cache pressure: the working set shrinks to ``1 / C`` while a worker's
cache cannot shrink with it, because it has to hold prompts of their full length. So blocks
that the full traffic would have evicted are still there, for every router.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.traffic.figures import describe
from pytest_dynamo_bench.traffic.model import Traffic, TrafficRequest

_CANDIDATES = 200
_COMMON_SHARE = 0.05


def cut(traffic: Traffic, seconds: float, *, seed: int = 0) -> Traffic:
    """The same traffic, thinned and compressed so that it passes in ``seconds``.

    Args:
        traffic: the whole traffic; returned unchanged when it is no longer than ``seconds``.
        seconds: scheduled length of the result.
        seed: chooses among equally good cuts; the same seed gives the same cut everywhere.

    Returns:
        Traffic whose requests keep their ids, so that they can be found in the original.

    Raises:
        TrafficError: the trace is too short in conversations for such a cut.
    """
    if not seconds > 0:
        raise TrafficError(f"cut: seconds must be greater than 0, got {seconds!r}")
    compression = traffic.duration_seconds / seconds
    if compression <= 1:
        return traffic
    trees = _prefix_trees(traffic)
    chosen = _most_alike(traffic, trees, 1 / compression, seed)
    requests = tuple(
        dataclasses.replace(
            request,
            timestamp_ms=request.timestamp_ms / compression,
            delay_ms=request.delay_ms / compression,
        )
        for request in chosen
    )
    step = (
        f"cut to {seconds:g} s: time compressed {compression:.1f} times, {len(requests)} of "
        f"{len(traffic.requests)} requests kept, whole conversations, prompts at full length"
    )
    return dataclasses.replace(
        traffic,
        requests=requests,
        history=(*traffic.history, step),
        share=traffic.share * len(requests) / len(traffic.requests),
    )


def first_turns(traffic: Traffic, sessions: int | None, turns: int | None = None) -> Traffic:
    """A closed loop that ends sooner: the first turns of the first sessions.

    As many sessions are in flight as before and nothing is compressed, so that the load of
    every worker and what the sessions in flight need of its cache stay as they were. What
    changes is that contexts are those of the beginning of a session, with shorter prompts.

    Args:
        traffic: the whole traffic; returned unchanged when it is no larger.
        sessions: how many sessions to keep; None keeps all.
        turns: how many turns of each to keep; None keeps all.

    Returns:
        Traffic whose requests keep their ids.
    """
    kept = set(list(dict.fromkeys(r.session_id for r in traffic.requests))[:sessions])
    requests = tuple(
        request
        for request in traffic.requests
        if request.session_id in kept and (turns is None or request.turn < turns)
    )
    if len(requests) == len(traffic.requests):
        return traffic
    all_sessions = len({request.session_id for request in traffic.requests})
    of_each = f"the first {turns} turns of " if turns else ""
    step = (
        f"cut to {of_each}{len(kept):,} of {all_sessions:,} sessions: {len(requests):,} of "
        f"{len(traffic.requests):,} requests, lengths, pauses and concurrency as they are"
    )
    return dataclasses.replace(
        traffic,
        requests=requests,
        history=(*traffic.history, step),
        share=traffic.share * len(requests) / len(traffic.requests),
    )


def _prefix_trees(traffic: Traffic) -> list[list[TrafficRequest]]:
    """Requests that share a prefix, or a session, together; common system prompts aside.

    A block that more than 5 % of all requests start with is common to unrelated
    conversations; the first block after those tells conversations apart.
    """
    uses = Counter(block for request in traffic.requests for block in request.hash_ids)
    common = len(traffic.requests) * _COMMON_SHARE
    trees: dict[object, list[TrafficRequest]] = defaultdict(list)
    root_of_session: dict[str, object] = {}
    for request in traffic.requests:
        root = next((block for block in request.hash_ids if uses[block] <= common), None)
        key: object = request.request_id if root is None else root
        key = root_of_session.setdefault(request.session_id, key)
        trees[key].append(request)
    return list(trees.values())


def _most_alike(
    traffic: Traffic, trees: list[list[TrafficRequest]], share: float, seed: int
) -> list[TrafficRequest]:
    import numpy as np  # here, so that an author's module need not pay for it

    whole = describe(traffic)
    target_tokens = whole.input_tokens * share
    tree_tokens = np.array([sum(r.input_tokens for r in tree) for tree in trees])
    best: list[TrafficRequest] = []
    best_distance = np.inf
    for candidate in range(_CANDIDATES):
        order = np.random.default_rng([seed, candidate]).permutation(len(trees))
        count = int(np.searchsorted(np.cumsum(tree_tokens[order]), target_tokens)) + 1
        requests = sorted(
            (request for index in order[:count] for request in trees[index]),
            key=lambda request: (request.timestamp_ms, request.request_id),
        )
        figures = describe(dataclasses.replace(traffic, requests=requests))
        distance = (
            abs(figures.input_tokens / target_tokens - 1)
            + abs(figures.mean_isl / whole.mean_isl - 1)
            + abs(figures.mean_osl / whole.mean_osl - 1)
            + abs(figures.reusable_share - whole.reusable_share) / max(whole.reusable_share, 0.01)
        )
        if distance < best_distance:
            best, best_distance = requests, distance
    if len(best) < 2:
        raise TrafficError(
            f"cut: one in {1 / share:.0f} of {len(traffic.requests)} requests leaves {len(best)}; "
            "make the run longer"
        )
    return best

"""Traffic as an AIPerf dataset (``--custom-dataset-type single_turn``): what its lines say.

A line is a request with its whole text, its images by path, and its output length. Lines
with the same ``session_id`` are sent one after the other, each when the one before has ended;
``timestamp`` (fixed schedule) and ``delay`` are milliseconds. ``input_length`` is ours: AIPerf
passes over it, and :func:`~pytest_dynamo_bench.traffic.read_traffic` takes the length from it
instead of estimating it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pytest_dynamo_bench.traffic.model import Concurrency, Traffic


def aiperf_rows(
    traffic: Traffic,
    place_of: Callable[[int], str],
    *,
    text_of: Callable[[tuple[int, ...], int, int], str] | None = None,
    name_sessions: bool = False,
) -> Iterator[dict[str, Any]]:
    """The lines of the dataset, one by one.

    Texts are by default common English words, each of them one token of usual tokenizers, so
    that a real model counts about as many tokens as the traffic has; equal prefixes stay equal.

    Args:
        place_of: the path or address of an image by its number.
        text_of: makes a prompt of block ids, its length and the length of a block, in tokens.
        name_sessions: name them also where each has one request only.
    """
    from pytest_dynamo_bench.traffic.prompts import english_text

    text_of = text_of or english_text
    sessions = name_sessions or any(request.turn for request in traffic.requests)
    timed = not isinstance(traffic.schedule, Concurrency)
    for request in traffic.requests:
        row: dict[str, Any] = {"session_id": request.session_id} if sessions else {}
        if request.turn:
            row["delay"] = request.delay_ms
        elif timed:
            row["timestamp"] = request.timestamp_ms
        row["text"] = text_of(request.hash_ids, request.input_tokens, traffic.block_tokens)
        if request.images:
            row["images"] = [place_of(image) for image in request.images]
        row["output_length"] = request.output_tokens
        row["input_length"] = request.input_tokens
        yield row

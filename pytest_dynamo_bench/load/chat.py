"""The chat-completions dialect: the body of a request, and the record of its response."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pytest_dynamo_bench.load.client import RawResponse
from pytest_dynamo_bench.load.sse import parse_events
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import TrafficRequest
from pytest_dynamo_bench.traffic.prompts import WORDS, prompt_text

_ERROR_LENGTH = 300


@dataclass(frozen=True)
class Dialect:
    """What a server understands in a request, and how it counts a prompt.

    Attributes:
        extension: it is Dynamo, and says in ``nvext`` which workers served a request.
        forced_length: it takes ``min_tokens`` and ``ignore_eos``, so that outputs have the
            length that the traffic asks for.
        words: each one token of the server's tokenizer; prompts are made of them.
        template_tokens: tokens that its chat template puts around a message.
    """

    extension: bool = True
    forced_length: bool = True
    words: Sequence[str] = WORDS
    template_tokens: int = 0


DYNAMO = Dialect()


def request_body(
    model: str, request: TrafficRequest, block_tokens: int, dialect: Dialect = DYNAMO
) -> bytes:
    """The JSON body of a request whose prompt and output have exactly the traffic's lengths."""
    prompt = prompt_text(
        request.hash_ids,
        request.input_tokens,
        block_tokens,
        words=dialect.words,
        template_tokens=dialect.template_tokens,
    )
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.output_tokens,
    }
    if dialect.forced_length:
        body |= {"min_tokens": request.output_tokens, "ignore_eos": True}
    if dialect.extension:
        body["nvext"] = {"extra_fields": ["worker_id", "timing"]}
    return json.dumps(body, separators=(",", ":")).encode()


def to_record(
    request: TrafficRequest, scheduled_ms: float, response: RawResponse, start_ns: int
) -> RequestRecord:
    """Interpret a response that has ended.

    Whatever the server sent, this returns a record; what cannot be right is its ``error``.
    """
    interpreted = _interpret(response)
    error = response.error or interpreted.error
    return RequestRecord(
        request_id=request.request_id,
        session_id=request.session_id,
        turn=request.turn,
        scheduled_ms=scheduled_ms,
        sent_ms=(response.sent_ns - start_ns) / 1e6,
        chunk_ms=tuple((ns - start_ns) / 1e6 for ns in interpreted.chunk_ns),
        end_ms=(response.end_ns - start_ns) / 1e6,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prompt_tokens=interpreted.prompt_tokens,
        completion_tokens=interpreted.completion_tokens,
        cached_tokens=interpreted.cached_tokens,
        router_hit_rate=interpreted.router_hit_rate,
        prefill_worker=interpreted.prefill_worker,
        decode_worker=interpreted.decode_worker,
        status=response.status or None,
        error=_one_line(error) if error else None,
    )


class _Interpretation:
    def __init__(self) -> None:
        self.chunk_ns: list[int] = []
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.router_hit_rate: float | None = None
        self.prefill_worker: str | None = None
        self.decode_worker: str | None = None
        self.finished = False
        self.error: str | None = None

    def take(self, event: dict[str, Any], arrived_ns: int) -> None:
        if event.get("error"):
            raise ValueError(f"the server reported an error in the stream: {event['error']}")
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            if delta.get("content") or delta.get("reasoning_content") or delta.get("tool_calls"):
                self.chunk_ns.append(arrived_ns)
            if choice.get("finish_reason"):
                self.finished = True
        usage = event.get("usage")
        if usage:
            self.prompt_tokens = usage.get("prompt_tokens")
            self.completion_tokens = usage.get("completion_tokens")
            details = usage.get("prompt_tokens_details") or {}
            self.cached_tokens = details.get("cached_tokens")
        extension = event.get("nvext") or {}
        workers = extension.get("worker_id") or {}
        if workers:
            self.prefill_worker = _text(workers.get("prefill_worker_id"))
            self.decode_worker = _text(workers.get("decode_worker_id"))
        timing = extension.get("timing") or {}
        if timing.get("kv_hit_rate") is not None:
            self.router_hit_rate = float(timing["kv_hit_rate"])


def _interpret(response: RawResponse) -> _Interpretation:
    found = _Interpretation()
    if response.status != 200:
        if response.status:
            body = b"".join(piece for _, piece in response.body)
            found.error = f"HTTP {response.status}: {body[:2000].decode('utf-8', 'replace')}"
        return found
    try:
        for event in parse_events(response.body):
            if event.data == "[DONE]":
                break
            if event.event == "error":
                found.error = f"the server reported an error in the stream: {event.data}"
                return found
            parsed = json.loads(event.data)
            if not isinstance(parsed, dict):
                found.error = f"an event is not a JSON object: {event.data}"
                return found
            found.take(parsed, event.arrived_ns)
    except (ValueError, TypeError, AttributeError) as error:
        found.error = f"the stream cannot be read: {error}"
        return found
    if not found.chunk_ns:
        found.error = "the response has no content"
    elif not found.finished:
        found.error = f"the stream ended after {len(found.chunk_ns)} chunks, without finish_reason"
    elif found.completion_tokens is None:
        found.error = "the server sent no usage, so its tokens cannot be counted"
    return found


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_LENGTH else line[: _ERROR_LENGTH - 1] + "…"

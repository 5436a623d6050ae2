"""What was measured: one record per request, and the run that they belong to.

Every target produces this form, so that metrics, verdicts and reports do not know where a
number came from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from pytest_dynamo_bench.outside import Amount, Count, Name, Rank, Share, Tokens, shown
from pytest_dynamo_bench.plain_text import printable

Engines = Literal["real", "stand-in", "simulated"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as it went.

    All times are milliseconds from the start of the run, on one monotonic clock. A time is
    None when it did not happen.

    Attributes:
        scheduled_ms: when it was due.
        sent_ms: when it was handed to the socket.
        chunk_ms: arrival of every chunk that carried content, in order; a tuple, or an array of
            doubles where there are many.
        end_ms: arrival of the last byte of the response.
        input_tokens: length of the prompt that was sent.
        output_tokens: tokens that were asked for.
        prompt_tokens: length of the prompt as the server counted it; where it counts the tokens of
            images and says how many they are, without these.
        completion_tokens: tokens generated as the server counted them.
        cached_tokens: prompt tokens found in a KV cache as the engines counted them.
        router_hit_rate: share of the prompt that the router expected in the cache.
        prefill_worker: the worker that processed the prompt.
        decode_worker: the worker that generated the tokens.
        images: images of the request, as the worker counted them.
        image_cache_hits: of these, found in the worker's embedding cache.
        images_decoded: of the images, those that the worker decoded itself.
        image_decode_ms: time that it took to decode them, summed over images.
        image_transfer_ms: time to read their pixels from a frontend that decoded them, summed
            over images.
        encoder_ms: time of the vision encoder, summed over images.
        response_id: what the server called its answer.
        prefill_rank: the rank of attention data parallelism that did, where there are several.
        decode_rank: likewise.
        kv_transfer_ms: time that moving the prompt's KV cache between the two took.
        decode_steps: forward passes that the tokens after the first took.
        host_tokens: of ``cached_tokens``, those that a host tier of KV offload held.
        given_up_tokens: of the prompt, how much more another worker had cached than the one that
            the router chose.
        status: HTTP status.
        error: why the request does not count, in one line.
        chunk_tokens: tokens of each chunk, where they are known and not one each.
        receive_clock: who noted when chunks arrived: ``kernel`` (receive timestamps, free of
            the load generator's own delays), ``user space`` (when it noticed) or ``mixed``;
            None for times that were not measured by a client.
        coalesced_chunks: chunks that were read together with what came after them, so that
            their arrival is an upper bound.
        odd: impossible values that were reported, ``field=value``; the field is None.
    """

    request_id: str
    session_id: str
    turn: int
    scheduled_ms: float
    sent_ms: float | None
    chunk_ms: Sequence[float]
    end_ms: float | None
    input_tokens: int
    output_tokens: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    router_hit_rate: float | None = None
    prefill_worker: str | None = None
    decode_worker: str | None = None
    images: int | None = None
    image_cache_hits: int | None = None
    images_decoded: int | None = None
    image_decode_ms: float | None = None
    image_transfer_ms: float | None = None
    encoder_ms: float | None = None
    response_id: str | None = None
    prefill_rank: int | None = None
    decode_rank: int | None = None
    kv_transfer_ms: float | None = None
    decode_steps: int | None = None
    host_tokens: int | None = None
    given_up_tokens: int | None = None
    status: int | None = None
    error: str | None = None
    chunk_tokens: tuple[int, ...] | None = None
    receive_clock: str | None = None
    coalesced_chunks: int = 0
    odd: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the request ended as it should have."""
        return self.error is None

    @property
    def first_token_ms(self) -> float | None:
        """Arrival of the first chunk with content."""
        return self.chunk_ms[0] if self.chunk_ms else None

    @property
    def last_token_ms(self) -> float | None:
        """Arrival of the last chunk with content."""
        return self.chunk_ms[-1] if self.chunk_ms else None


@dataclass(frozen=True)
class Run:
    """One traffic through one configuration on one target.

    ``deployed`` is the configuration as deployed (command lines, environment,
    worker counts), ``observed`` what the deployment said of itself afterwards (metrics of
    the frontend, versions). Both are plain data for reports.

    Attributes:
        simulated: True when time is simulated time and no request was ever sent.
        stand_in_engines: True when requests were sent, but to engines that only take the time
            of real ones, or are toys.
        started_at: wall-clock start, ISO 8601, UTC.
        problems: what went wrong during the run, beyond single requests; it is invalid then.
        notes: what is missing from the run, though it is valid, and why.
    """

    benchmark: str
    configuration: str
    target: str
    gpus: int
    records: Sequence[RequestRecord]
    started_at: str
    simulated: bool = False
    stand_in_engines: bool = False
    deployed: Mapping[str, Any] = field(default_factory=dict)
    observed: Mapping[str, Any] = field(default_factory=dict)
    traffic: Mapping[str, Any] = field(default_factory=dict)
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()

    @property
    def dynamo(self) -> str:
        """The version of Dynamo that it ran on, and of workers where it is another; or empty."""
        version = self.observed.get("dynamo_version") or self.observed.get("dynamo") or ""
        workers = self.observed.get("dynamo_of_workers")
        others = set(map(str, workers.values())) if isinstance(workers, Mapping) else set()
        named = f" with workers of {' and '.join(sorted(others))}" if others else ""
        return f"{version}{named}" if version else ""

    @property
    def engines(self) -> Engines:
        """What the engines were that were measured."""
        if self.simulated:
            return "simulated"
        return "stand-in" if self.stand_in_engines else "real"


class _Possible(msgspec.Struct):
    """What may be in the fields of a record that come from outside."""

    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    cached_tokens: Tokens | None = None
    host_tokens: Tokens | None = None
    given_up_tokens: Tokens | None = None
    router_hit_rate: Share | None = None
    prefill_worker: Name | None = None
    decode_worker: Name | None = None
    images: Count | None = None
    image_cache_hits: Count | None = None
    images_decoded: Count | None = None
    image_decode_ms: Amount | None = None
    image_transfer_ms: Amount | None = None
    encoder_ms: Amount | None = None
    response_id: Name | None = None
    prefill_rank: Rank | None = None
    decode_rank: Rank | None = None
    kv_transfer_ms: Amount | None = None
    decode_steps: Count | None = None
    status: Count | None = None


_KINDS = {item.name: item.type for item in msgspec.structs.fields(_Possible)}
POSSIBLE: Mapping[str, msgspec.Meta] = {
    name: get_args(get_args(kind)[0])[1] for name, kind in _KINDS.items()
}
"""The limits of the fields that come from outside."""
_DOUBLES = tuple(name for name, kind in _KINDS.items() if kind in (Share | None, Amount | None))


def possible(record: RequestRecord) -> RequestRecord:
    """The record without impossible values; such a field is None, and listed in ``odd``.

    Hits cannot be more than the prompt, nor those on a host more than all.
    """
    changes: dict[str, Any] = {}
    odd: dict[str, Any] = {}
    try:
        found = msgspec.convert(record, _Possible, from_attributes=True)
        for name in _DOUBLES:
            if getattr(found, name) != getattr(record, name):
                changes[name] = getattr(found, name)
    except ValueError:
        for name, kind in _KINDS.items():
            value = getattr(record, name)
            # Numbers of numpy are no faults.
            value = value.item() if hasattr(value, "item") else value
            try:
                changes[name] = msgspec.convert(value, kind)
            except ValueError:
                changes[name], odd[name] = None, value
    at_most = changes.get("prompt_tokens", record.prompt_tokens)
    for name in ("cached_tokens", "host_tokens"):
        value = changes.get(name, getattr(record, name))
        if value is not None and at_most is not None and value > at_most:
            changes[name], odd[name] = None, value
        elif value is not None:
            at_most = value
    for name in ("prefill_worker", "decode_worker", "response_id"):
        text = changes.get(name, getattr(record, name))
        if text is not None and not text.isprintable():
            changes[name], odd[name] = None, text
    for name in ("request_id", "session_id", "error"):
        text = getattr(record, name)
        if text is not None and not text.isprintable():
            changes[name] = printable(text)
    if not changes:
        return record
    odd_texts = (*record.odd, *(f"{name}={shown(value)}" for name, value in odd.items()))
    return dataclasses.replace(record, **changes, odd=odd_texts)

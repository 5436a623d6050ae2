"""The chat-completions dialect: the body of a request, and the record of its response."""

from __future__ import annotations

import functools
import itertools
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pytest_dynamo_bench.load.clock import IntArray, ReceiveClock
from pytest_dynamo_bench.load.connection import (
    Response,
    kernel_stamp,
    kernel_stamps,
)
from pytest_dynamo_bench.load.health import Sampler
from pytest_dynamo_bench.load.sse import EventReader
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Images, TrafficRequest
from pytest_dynamo_bench.traffic.prompts import prompt_text

_ERROR_LENGTH = 300
_PIECES_A_STEP = 128
_MOST_PATTERNS = 4
_LAG_EVERY = 8
_MOST_TOKENS = 2**40
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


@dataclass(frozen=True)
class Dialect:
    """What a server understands in a request, and how it counts a prompt.

    Attributes:
        extension: it is Dynamo, and says in ``nvext`` which workers served a request.
        forced_length: it takes ``min_tokens`` and ``ignore_eos``, so that outputs have the
            length that the traffic asks for.
        words: each one token of the server's tokenizer; prompts are made of them. Those of the
            local target's tokenizer when None.
        template_tokens: tokens that its chat template puts around a message.
    """

    extension: bool = True
    forced_length: bool = True
    words: Sequence[str] | None = None
    template_tokens: int = 0


DYNAMO = Dialect()


def request_body(
    model: str,
    request: TrafficRequest,
    block_tokens: int,
    images: Images | None = None,
    dialect: Dialect = DYNAMO,
) -> bytes:
    """The JSON body of a request whose prompt and output have exactly the traffic's lengths.

    Text comes first and images after it, as AIPerf sends them.

    Args:
        images: what the request's numbers of images stand for.
        dialect: what the server understands.
    """
    prompt = prompt_text(
        request.hash_ids,
        request.input_tokens,
        block_tokens,
        words=dialect.words,
        template_tokens=dialect.template_tokens,
    )
    content: str | list[dict[str, Any]] = prompt
    if request.images:
        content = [{"type": "text", "text": prompt}, *([_IMAGE] * len(request.images))]
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": request.output_tokens,
    }
    if dialect.forced_length:
        body |= {"min_tokens": request.output_tokens, "ignore_eos": True}
    if dialect.extension:
        body["nvext"] = {"extra_fields": ["worker_id", "timing"]}
    text = msgspec.json.encode(body)
    if not request.images:
        return text
    assert images is not None
    # Images are put in afterwards, so that their megabytes pass no JSON encoder.
    first, *others = text.split(_PLACE)
    parts = [first]
    for image, after in zip(request.images, others, strict=True):
        parts += [_data_url(images, image), after]
    return b"".join(parts)


@functools.lru_cache(maxsize=64)
def _data_url(images: Images, image: int) -> bytes:
    """An image as it is sent; those that come again soon are not made again."""
    return images.data_url(image).encode()


_PLACE = b"<image>"
_IMAGE = {"type": "image_url", "image_url": {"url": _PLACE.decode()}}

# Only what a record needs; everything else in an event is skipped while it is read.


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, gc=False):
    id: Any = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    nvext: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Event).decode


@functools.lru_cache(maxsize=16_384)
def _is_plain(text: bytes) -> bool:
    """Whether these bytes can stand in a JSON string as they are, and say what they are."""
    try:
        return text.decode().isprintable() and b'"' not in text and b"\\" not in text
    except UnicodeDecodeError:
        return False


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What surrounds the text in an event that says nothing but some text.

    The events of a response are alike but for their texts, so that only one has to be decoded.
    JSON makes that safe: a string without quotes, backslashes and control characters can be
    exchanged for another such string without a change to anything else.

    Attributes:
        before, after: of the text, in the body's bytes.
        text: where it is in a piece.
        length: of what surrounds it.
    """

    before: bytes
    after: bytes
    text: slice
    length: int

    @staticmethod
    def of(piece: bytes) -> _Pattern | None:
        """The pattern of a piece of a body; None when it is not one event with only a text."""
        if not (piece.startswith(b"data: ") and piece.endswith(b"\n\n")) or b"\r" in piece:
            return None
        if piece.count(b"\n") != 2:
            return None
        event = _decode(piece[6:-2])
        if event.usage is not None or event.error or event.nvext or len(event.choices or ()) != 1:
            return None
        choice = event.choices[0]
        delta = choice.delta
        if delta is None or not delta.content or choice.finish_reason:
            return None
        if delta.reasoning_content or delta.reasoning or delta.tool_calls:
            return None
        text = delta.content.encode()
        before, found, after = piece.partition(b'"%s"' % text)
        if not found or not _is_plain(text):
            return None
        before, after = before + b'"', b'"' + after
        # Whether this is the text, and no other that happens to be the same, shows when it changes.
        delta.content += "x"
        try:
            if _decode((before + text + b"x" + after)[6:-2]) != event:
                return None
        except msgspec.MsgspecError:
            return None
        return _Pattern(before, after, slice(len(before), -len(after)), len(before) + len(after))


class _Reading:
    """What the events of a response say, taken together."""

    def __init__(self) -> None:
        # The last read with content, until something comes after it in the same read.
        self.content_read = -1
        self.pattern: _Pattern | None = None
        self.patterns_tried = 0
        self.chunk_reads: list[int] = []
        self.tokens_so_far: list[int] = []
        self.texts: list[str] = []
        self.coalesced = 0
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.router_hit_rate: float | None = None
        self.prefill_worker: str | None = None
        self.decode_worker: str | None = None
        self.response_id: str | None = None
        self.prefill_rank: int | None = None
        self.decode_rank: int | None = None
        self.kv_transfer_ms: float | None = None
        self.finished = False
        self.error: str | None = None


class RecordMaker:
    """Interprets responses that have ended.

    Args:
        clock: converts kernel timestamps; it must have been checked after the last read.
        fast_forward: modelled time runs so many times faster than the clock.
        count_tokens: how many tokens each of some texts has; None: only the server says.
    """

    def __init__(
        self,
        clock: ReceiveClock,
        fast_forward: float = 1.0,
        count_tokens: Callable[[list[str]], list[int]] | None = None,
    ) -> None:
        self.start_ns = 0
        self.receive_lag = Sampler()
        self._clock = clock
        self._fast_forward = fast_forward
        self._scale = fast_forward / 1e6
        self._count_tokens = count_tokens

    def read(
        self, request: TrafficRequest, due_ns: int, response: Response
    ) -> Iterator[RequestRecord | None]:
        """Interpret a response in small steps: yields None between them, the record at last.

        Whatever the server sent, this ends with a record; what cannot be right is its error.
        """
        found = _Reading()
        yield from self._read(found, response)
        stamps, from_kernel = self._arrivals(response, found.chunk_reads)
        end_ns = response.end_ns
        if response.error is None and response.seen_ns:
            end_ns, _ = self._arrival(response, len(response.seen_ns) - 1)
        error = response.error or found.error
        yield RequestRecord(
            request_id=request.request_id,
            session_id=request.session_id,
            turn=request.turn,
            scheduled_ms=self._ms(due_ns),
            sent_ms=self._ms(response.sent_ns),
            chunk_ms=array("d", ((stamps - self.start_ns) * self._scale).tobytes()),
            end_ms=self._ms(end_ns),
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            prompt_tokens=found.prompt_tokens,
            completion_tokens=found.completion_tokens,
            cached_tokens=found.cached_tokens,
            router_hit_rate=found.router_hit_rate,
            prefill_worker=found.prefill_worker,
            decode_worker=found.decode_worker,
            response_id=found.response_id,
            prefill_rank=found.prefill_rank,
            decode_rank=found.decode_rank,
            kv_transfer_ms=(
                None if found.kv_transfer_ms is None else found.kv_transfer_ms * self._fast_forward
            ),
            status=response.status or None,
            error=_one_line(error) if error else None,
            chunk_tokens=self._chunk_tokens(found),
            receive_clock=_clock_name(from_kernel, len(stamps)),
            coalesced_chunks=found.coalesced,
        )

    def _ms(self, ns: int) -> float:
        return (ns - self.start_ns) * self._scale

    def _read(self, found: _Reading, response: Response) -> Iterator[None]:
        if response.status != 200:
            if response.status:
                try:
                    body = b"".join(piece for _, piece in _decompressed(response))
                except ValueError as error:
                    body = f"({error})".encode()
                found.error = f"HTTP {response.status}: {body[:2000].decode('utf-8', 'replace')}"
            return
        events = EventReader()
        try:
            pieces = iter(_decompressed(response))
            while batch := list(itertools.islice(pieces, _PIECES_A_STEP)):
                if self._read_pieces(found, events, batch):
                    break
                yield
        except (
            msgspec.MsgspecError,
            ValueError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            found.error = f"the stream cannot be read: {error}"
            return
        chunks = len(found.chunk_reads)
        if found.error:
            return
        if not chunks:
            found.error = "the response has no content"
        elif not found.finished:
            found.error = f"the stream ended after {chunks} chunks, without finish_reason"
        elif found.completion_tokens is None:
            found.error = "the server sent no usage, so its tokens cannot be counted"

    def _read_pieces(
        self, found: _Reading, events: EventReader, pieces: list[tuple[int, bytes]]
    ) -> bool:
        """Take in some pieces of a body; whether that was all that there is to be read.

        Raises:
            ValueError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError: what is in
                them makes no sense.
        """
        chunk_reads, pattern = found.chunk_reads, found.pattern
        for read, piece in pieces:
            if (
                pattern is not None
                and events.between_events
                and piece.startswith(pattern.before)
                and piece.endswith(pattern.after)
                and len(piece) > pattern.length
                and _is_plain(text := piece[pattern.text])
            ):
                # Another piece of text, and nothing else: nearly all are.
                if read == found.content_read:
                    found.coalesced += 1
                found.content_read = read
                chunk_reads.append(read)
                if self._count_tokens is not None:
                    found.texts.append(text.decode())
                continue
            chunks = len(chunk_reads)
            for name, data in events.read(piece):
                if self._take_event(found, name, data, read):
                    return True
            if len(chunk_reads) > chunks and found.patterns_tried < _MOST_PATTERNS:
                found.patterns_tried += 1
                pattern = found.pattern = _Pattern.of(piece)
        return False

    def _take_event(self, found: _Reading, name: bytes, data: bytes, read: int) -> bool:
        """Take in one event; whether it was the last that counts."""
        if read == found.content_read:
            # What came before in this read has the arrival of what comes now.
            found.coalesced += 1
            found.content_read = -1
        if data == b"[DONE]":
            return True
        if name == b"error":
            text = data.decode("utf-8", "replace")
            found.error = f"the server reported an error in the stream: {text}"
            return True
        event = _decode(data)
        if event.error:
            found.error = f"the server reported an error in the stream: {event.error}"
            return True
        found.response_id = found.response_id or _text(event.id)
        for choice in event.choices or ():
            delta = choice.delta
            if delta is not None:
                content = delta.content
                thought = delta.reasoning_content or delta.reasoning
                if content or thought or delta.tool_calls:
                    found.chunk_reads.append(read)
                    found.content_read = read
                    if self._count_tokens is not None:
                        found.texts.append(
                            (thought or "") + (content or "") if not delta.tool_calls else "\0"
                        )
                    if event.usage is not None and event.usage.completion_tokens:
                        found.tokens_so_far.append(event.usage.completion_tokens)
            if choice.finish_reason:
                found.finished = True
        if event.usage is not None:
            self._take_usage(found, event.usage)
        if event.nvext:
            self._take_extension(found, event.nvext)
        return False

    def _take_usage(self, found: _Reading, usage: _Usage) -> None:
        for count in (usage.prompt_tokens, usage.completion_tokens):
            if count is not None and not 0 <= count <= _MOST_TOKENS:
                raise ValueError(f"{count} is no number of tokens")
        found.prompt_tokens = usage.prompt_tokens
        found.completion_tokens = usage.completion_tokens
        details = usage.prompt_tokens_details
        found.cached_tokens = details.cached_tokens if details is not None else None

    def _take_extension(self, found: _Reading, extension: dict[str, Any]) -> None:
        workers = extension.get("worker_id") or {}
        if workers:
            found.prefill_worker = _text(workers.get("prefill_worker_id"))
            found.decode_worker = _text(workers.get("decode_worker_id"))
            found.prefill_rank = workers.get("prefill_dp_rank")
            found.decode_rank = workers.get("decode_dp_rank")
        timing = extension.get("timing") or {}
        if timing.get("kv_hit_rate") is not None:
            found.router_hit_rate = float(timing["kv_hit_rate"])
        if timing.get("kv_transfer_estimated_latency_ms") is not None:
            found.kv_transfer_ms = float(timing["kv_transfer_estimated_latency_ms"])

    def _arrival(self, response: Response, read: int) -> tuple[int, bool]:
        """When a read's data arrived, monotonic ns, and whether the kernel said so."""
        seen_ns = response.seen_ns[read]
        real_ns = kernel_stamp(response.stamps[read])
        if real_ns is not None:
            stamp_ns = self._clock.monotonic_ns(real_ns, seen_ns)
            if stamp_ns is not None:
                return stamp_ns, True
        return seen_ns, False

    def _arrivals(self, response: Response, reads: list[int]) -> tuple[IntArray, int]:
        """Arrival of each content chunk, never decreasing, and how many are the kernel's."""
        stamps = self._all_from_kernel(response, reads) if reads else None
        if stamps is not None:
            for index in range(0, len(reads), _LAG_EVERY):
                self.receive_lag.add(max(response.seen_ns[reads[index]] - int(stamps[index]), 0))
            return np.maximum.accumulate(stamps), len(reads)
        one_by_one = [self._arrival(response, read) for read in reads]
        times = np.array([stamp for stamp, _ in one_by_one], dtype=np.int64)
        return np.maximum.accumulate(times), sum(kernel for _, kernel in one_by_one)

    def _all_from_kernel(self, response: Response, reads: list[int]) -> IntArray | None:
        """The usual case, many at once: each read has one stamp, and nothing is in doubt."""
        first, last = reads[0], reads[-1] + 1
        if reads == list(range(first, last)):
            stamps, seen = response.stamps[first:last], response.seen_ns[first:last]
        else:
            stamps = [response.stamps[read] for read in reads]
            seen = [response.seen_ns[read] for read in reads]
        try:
            real_ns = kernel_stamps(stamps)
        except ValueError:
            return None
        return self._clock.monotonic_array_ns(real_ns, np.array(seen, dtype=np.int64))

    def _chunk_tokens(self, found: _Reading) -> tuple[int, ...] | None:
        """Tokens of each chunk, where a chunk holds several and somebody knows how many.

        The server may say in each chunk how many there have been; otherwise the texts are
        counted, and believed only when they add up to what the server says.
        """
        chunks, tokens = len(found.chunk_reads), found.completion_tokens
        if not chunks or tokens is None or tokens == chunks:
            return None
        so_far = found.tokens_so_far
        if len(so_far) == chunks and so_far[-1] == tokens:
            counts = [b - a for a, b in zip([0, *so_far], so_far, strict=False)]
            return tuple(counts) if min(counts) >= 0 else None
        if self._count_tokens is not None:
            counts = self._count_tokens(found.texts)
            return tuple(counts) if sum(counts) == tokens else None
        return None


def _decompressed(response: Response) -> Iterable[tuple[int, bytes]]:
    """The body as the server meant it.

    Raises:
        ValueError: it is compressed in a way that was not asked for and is not known.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return response.body
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _inflated(encoding, response.body)
    raise ValueError(f"content-encoding {encoding} is not supported")


def _inflated(encoding: str, body: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    decompressor = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        for read, piece in body:
            yield read, decompressor.decompress(piece)
    except zlib.error as error:
        raise ValueError(f"{encoding}: {error}") from None


def count_words(texts: list[str]) -> list[int]:
    """Tokens of texts in the language of :mod:`~.traffic.prompts`: one word, one token."""
    return [len(text.split()) for text in texts]


def _clock_name(from_kernel: int, chunks: int) -> str | None:
    if not chunks:
        return None
    if from_kernel == chunks:
        return "kernel"
    return "user space" if from_kernel == 0 else "mixed"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _ERROR_LENGTH else line[: _ERROR_LENGTH - 1] + "…"

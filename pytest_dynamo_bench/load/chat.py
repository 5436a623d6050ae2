"""The chat-completions dialect: the body of a request, and the record of its response."""

from __future__ import annotations

import functools
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, cast

import msgspec
import numpy as np

from pytest_dynamo_bench.arrays import IntArray
from pytest_dynamo_bench.load.clock import ReceiveClock
from pytest_dynamo_bench.load.connection import (
    Response,
    kernel_stamp,
    kernel_stamps,
)
from pytest_dynamo_bench.load.health import Sampler
from pytest_dynamo_bench.load.sse import EventReader
from pytest_dynamo_bench.outside import Amount, Name, Rank, Share, Tokens, admitted, plain, shown
from pytest_dynamo_bench.plain_text import NO_SECRETS, Secrets, printable
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Images, TrafficRequest
from pytest_dynamo_bench.traffic.prompts import prompt_texts

_ERROR_LENGTH = 300
_PIECES_A_STEP = 64
_MOST_PATTERNS = 4
_LAG_EVERY = 32
_DOUBLE = 8
# More cannot be the tokens of one piece of text, whatever the server says.
_MOST_CHUNK_TOKENS = 2**16
_ERROR_BODY_BYTES = 65_536
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


def request_bodies(
    model: str,
    requests: Sequence[TrafficRequest],
    block_tokens: int,
    images: Images | None = None,
    dialect: Dialect = DYNAMO,
) -> list[bytes]:
    """The JSON bodies of requests, whose prompts and outputs have exactly the traffic's lengths.

    Text comes first and images after it, as AIPerf sends them. Several at once take half the time.

    Args:
        images: what the requests' numbers of images stand for.
        dialect: what the server understands.
    """
    prompts = prompt_texts(
        [(request.hash_ids, request.input_tokens) for request in requests],
        block_tokens,
        words=dialect.words,
        template_tokens=dialect.template_tokens,
    )
    return [
        _body(model, request, prompt, images, dialect)
        for request, prompt in zip(requests, prompts, strict=True)
    ]


def _body(
    model: str, request: TrafficRequest, prompt: str, images: Images | None, dialect: Dialect
) -> bytes:
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


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    prompt_tokens_details: Any = None


class _Event(msgspec.Struct, gc=False):
    id: Any = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    nvext: Any = None


_decode = msgspec.json.Decoder(_Event).decode


# What a response is whole without: each field on its own is what it should be, or left out.


class _PromptDetails(msgspec.Struct):
    cached_tokens: Tokens | None = None


class _Workers(msgspec.Struct):
    prefill_worker_id: int | Name | None = None
    decode_worker_id: int | Name | None = None
    prefill_dp_rank: Rank | None = None
    decode_dp_rank: Rank | None = None


class _Timing(msgspec.Struct):
    kv_hit_rate: Share | None = None
    kv_transfer_estimated_latency_ms: Amount | None = None


class _Extension(msgspec.Struct):
    worker_id: _Workers | None = None
    timing: _Timing | None = None


class _Extras(msgspec.Struct):
    id: int | Name | None = None
    prompt_tokens_details: _PromptDetails | None = None
    nvext: _Extension | None = None


@functools.lru_cache(maxsize=16_384)
def text_of(content: bytes) -> str | None:
    """What a JSON string says with ``content`` between its quotes; None if that is no string."""
    try:
        return msgspec.json.decode(b'"%s"' % content, type=str)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _is_plain(content: bytes) -> bool:
    """Whether all of this, and each part of it, is text in a JSON string; many more are."""
    return (
        content.isascii()
        and content.decode("ascii").isprintable()
        and b'"' not in content
        and b"\\" not in content
    )


@dataclass(frozen=True, slots=True)
class Pattern:
    """What surrounds the text in an event that says nothing new but some text.

    The events of a response are alike but for their texts, so that one of them tells how to read
    the others. JSON makes that safe: what is between the quotes of a string can be exchanged for
    whatever else may be there without a change to anything else.

    Attributes:
        start, end: what is before and after the text, in the bytes of the body.
    """

    start: bytes
    end: bytes

    @staticmethod
    def of(piece: bytes) -> Pattern | None:
        """The pattern of a piece of a body; None when it is not one event with only a text."""
        data = piece[6:-2]
        if piece != b"data: %s\n\n" % data or b"\n" in data or b"\r" in data:
            return None
        try:
            event = _decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        choices = event.choices or []
        # What Dynamo says of workers may be there: it is the same in all that looks the same.
        if event.usage is not None or event.error or len(choices) != 1:
            return None
        delta = choices[0].delta
        if delta is None or not delta.content or choices[0].finish_reason:
            return None
        if delta.reasoning_content or delta.reasoning or delta.tool_calls:
            return None
        content = delta.content.encode()
        start, found, end = piece.partition(b'"%s"' % content)
        if not found or text_of(content) != delta.content:
            return None
        pattern = Pattern(start + b'"', b'"' + end)
        # Whether this is the text, and not another that happens to be the same, shows when it
        # changes.
        delta.content += "x"
        try:
            changed = _decode((pattern.start + content + b"x" + pattern.end)[6:-2])
        except msgspec.MsgspecError:
            return None
        return pattern if changed == event else None

    def text(self, piece: bytes) -> str | None:
        """The text of another such event, or None when it is something else."""
        if piece.startswith(self.start) and piece.endswith(self.end):
            return text_of(piece[len(self.start) : -len(self.end)])
        return None


@dataclass(slots=True, eq=False)
class Reading:
    """What a response says, as far as it has been read.

    Attributes:
        over: nothing that comes now counts.
        next_read: number of the read that comes after those that have been taken in.
        content_read: the last read with content, until something comes after it in the same read.
        chunk_reads: for each chunk with content the read that completed it.
        extras, workers, timing: what was said last of the fields of ``_Extras``, and of the two
            parts of its extension, as it was said.
        extension: the last one.
    """

    response: Response
    events: EventReader = field(default_factory=EventReader)
    decompress: Callable[[bytes], bytes] | None = None
    found_pattern: Pattern | None = None
    patterns_tried: int = 0
    over: bool = False
    next_read: int = 0
    content_read: int = -1
    chunk_reads: list[int] = field(default_factory=list)
    tokens_so_far: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    coalesced: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    extension: Any = None
    workers: Any = None
    timing: Any = None
    finished: bool = False
    error: str | None = None

    @property
    def pattern(self) -> Pattern | None:
        """What can be expected from now on; None when that is not known."""
        plain = self.decompress is None and self.events.between_events and not self.over
        return self.found_pattern if plain else None

    @property
    def may_have_pattern(self) -> bool:
        """Whether it is of use to read on before the response has ended."""
        return self.pattern is not None or (
            self.decompress is None and not self.over and self.patterns_tried < _MOST_PATTERNS
        )


# What has been asked for, when it was due (monotonic, ns), and what came of it.
Ended = tuple[TrafficRequest, int, Reading]


class RecordMaker:
    """Interprets responses.

    Args:
        clock: converts kernel timestamps; it must have been checked after the last read.
        fast_forward: modelled time runs so many times faster than the clock.
        count_tokens: how many tokens each of some texts has; None: only the server says.
        secrets: what no error may repeat.
    """

    def __init__(
        self,
        clock: ReceiveClock,
        fast_forward: float = 1.0,
        count_tokens: Callable[[list[str]], list[int]] | None = None,
        secrets: Secrets = NO_SECRETS,
    ) -> None:
        self.start_ns = 0
        self._secrets = secrets
        self.receive_lag = Sampler()
        self._clock = clock
        self._fast_forward = fast_forward
        self._scale = fast_forward / 1e6
        self._count_tokens = count_tokens

    def read(self, reading: Reading) -> Iterator[None]:
        """Read on in a response, as far as it has come and been parsed, in small steps.

        Whatever the server sent, this ends; what cannot be right is the record's error.
        """
        body = reading.response.body
        if reading.response.status != 200:
            # Its body is no stream, but tells what went wrong.
            reading.over = bool(reading.response.status)
            return
        try:
            while body and not reading.over:
                batch = body[:_PIECES_A_STEP]
                del body[:_PIECES_A_STEP]
                if not reading.next_read:
                    reading.decompress = _decompressor(reading.response)
                self._read_pieces(reading, batch)
                yield
            if reading.response.end_ns and not reading.over:
                self._catch_up(reading, reading.response.reads)
        except (zlib.error, ValueError, TypeError, RecursionError) as error:
            reading.error = f"the stream cannot be read: {error}"
            reading.over = True

    def records(self, ended: Sequence[Ended]) -> list[RequestRecord]:
        """The records of responses that have ended, and have been read.

        Several at once take less time than one by one.
        """
        arrivals = self._arrivals([reading for _, _, reading in ended])
        return [
            self._record(*response, *arrived)
            for response, arrived in zip(ended, arrivals, strict=True)
        ]

    def _record(
        self,
        request: TrafficRequest,
        due_ns: int,
        reading: Reading,
        chunk_ms: array[float],
        from_kernel: int,
    ) -> RequestRecord:
        response = reading.response
        end_ns = response.end_ns
        if response.error is None and response.log:
            end_ns, _ = self._arrival(response, response.reads - 1)
        error = response.error or reading.error or _missing(reading)
        odd: dict[str, Any] = {}
        extras = self._extras(reading, odd)
        details = extras.prompt_tokens_details or _PromptDetails()
        extension = extras.nvext or _Extension()
        workers, timing = extension.worker_id or _Workers(), extension.timing or _Timing()
        transfer_ms = timing.kv_transfer_estimated_latency_ms
        return RequestRecord(
            request_id=request.request_id,
            session_id=request.session_id,
            turn=request.turn,
            scheduled_ms=self._ms(due_ns),
            sent_ms=self._ms(response.sent_ns),
            chunk_ms=chunk_ms,
            end_ms=self._ms(end_ns),
            input_tokens=request.input_tokens,
            output_tokens=request.output_tokens,
            prompt_tokens=reading.prompt_tokens,
            completion_tokens=reading.completion_tokens,
            cached_tokens=details.cached_tokens,
            router_hit_rate=timing.kv_hit_rate,
            prefill_worker=_text(workers.prefill_worker_id),
            decode_worker=_text(workers.decode_worker_id),
            response_id=_text(extras.id),
            prefill_rank=workers.prefill_dp_rank,
            decode_rank=workers.decode_dp_rank,
            kv_transfer_ms=None if transfer_ms is None else transfer_ms * self._fast_forward,
            status=response.status or None,
            error=_one_line(self._secrets.redact(error)) if error else None,
            chunk_tokens=self._chunk_tokens(reading),
            receive_clock=_clock_name(from_kernel, len(chunk_ms)),
            coalesced_chunks=reading.coalesced,
            odd=tuple(f"{name}={shown(said, self._secrets.redact)}" for name, said in odd.items()),
        )

    def _extras(self, reading: Reading, odd: dict[str, Any]) -> _Extras:
        said = dict(reading.extras)
        if reading.workers or reading.timing:
            said["nvext"] = {"worker_id": reading.workers, "timing": reading.timing}
        return admitted(_Extras, said, odd) if said else _Extras()

    def _ms(self, ns: int) -> float:
        return (ns - self.start_ns) * self._scale

    def _read_pieces(self, reading: Reading, pieces: list[tuple[int, bytes]]) -> None:
        """Take in some pieces of a body.

        Raises:
            ValueError, TypeError, AttributeError, RecursionError, msgspec.MsgspecError, zlib.error:
                what is in them makes no sense.
        """
        events, chunk_reads = reading.events, reading.chunk_reads
        for read, piece in pieces:
            if read >= reading.next_read:
                self._catch_up(reading, read)
            if reading.decompress is not None:
                piece = reading.decompress(piece)
            elif (pattern := reading.pattern) is not None and (text := pattern.text(piece)):
                # Another piece of text, and nothing else: nearly all are.
                reading.coalesced += read == reading.content_read
                reading.content_read = read
                chunk_reads.append(read)
                reading.texts.append(text)
                continue
            chunks = len(chunk_reads)
            for name, data in events.read(piece):
                self._take_event(reading, name, data, read)
                if reading.over:
                    return
            if len(chunk_reads) > chunks and reading.patterns_tried < _MOST_PATTERNS:
                reading.patterns_tried += 1
                reading.found_pattern = Pattern.of(piece)

    def _catch_up(self, reading: Reading, read: int) -> None:
        """Take in the expected chunks that came before a read. Raises as :meth:`_read_pieces`."""
        first, reading.next_read = reading.next_read, read + 1
        contents = reading.response.contents(first, read)
        if not contents:
            return
        texts = self._texts(contents)
        if texts is not None and reading.pattern is not None:
            reading.texts += texts
            reading.chunk_reads.extend(range(first, read))
            reading.content_read = read - 1
            return
        pattern = reading.found_pattern
        for number, content in enumerate(contents, first):
            if content is None or pattern is None:
                # It was looked into, and had nothing of the body.
                continue
            for name, data in reading.events.read(pattern.start + content + pattern.end):
                self._take_event(reading, name, data, number)
                if reading.over:
                    return

    def _texts(self, contents: list[bytes | None]) -> list[str] | None:
        """What texts say, as far as it is needed; None when one of them is no text."""
        if not all(contents):
            return None
        known = cast(list[bytes], contents)
        if self._count_tokens is None and _is_plain(b"".join(known)):
            return []
        texts = [text for content in known if (text := text_of(content))]
        return texts if len(texts) == len(known) else None

    def _take_event(self, reading: Reading, name: bytes, data: bytes, read: int) -> None:
        """Take in one event."""
        if read == reading.content_read:
            # What came before in this read has the arrival of what comes now.
            reading.coalesced += 1
            reading.content_read = -1
        if data == b"[DONE]":
            reading.over = True
            return
        if name == b"error":
            text = data.decode("utf-8", "replace")
            reading.error = f"the server reported an error in the stream: {text}"
            reading.over = True
            return
        try:
            event = _decode(data)
        except ValueError:
            # The extras may have NaN and the like, which are no JSON.
            event = msgspec.convert(plain(data), _Event)
        if event.error:
            reading.error = f"the server reported an error in the stream: {event.error}"
            reading.over = True
            return
        if event.id:
            reading.extras.setdefault("id", event.id)
        for choice in event.choices or ():
            delta = choice.delta
            if delta is not None:
                content = delta.content
                thought = delta.reasoning_content or delta.reasoning
                if content or thought or delta.tool_calls:
                    reading.chunk_reads.append(read)
                    reading.content_read = read
                    reading.texts.append(
                        (thought or "") + (content or "") if not delta.tool_calls else "\0"
                    )
                    if event.usage is not None and event.usage.completion_tokens:
                        reading.tokens_so_far.append(event.usage.completion_tokens)
            if choice.finish_reason:
                reading.finished = True
        if (usage := event.usage) is not None:
            reading.prompt_tokens = usage.prompt_tokens
            reading.completion_tokens = usage.completion_tokens
            reading.extras["prompt_tokens_details"] = usage.prompt_tokens_details
        if event.nvext and event.nvext != reading.extension:
            reading.extension = event.nvext
            self._take_extension(reading, event.nvext)

    def _take_extension(self, reading: Reading, extension: object) -> None:
        if not isinstance(extension, dict):
            reading.extras["nvext"] = extension
            return
        reading.workers = extension.get("worker_id") or reading.workers
        timing = extension.get("timing")
        if isinstance(timing, dict) and isinstance(reading.timing, dict):
            # Each is said when it is known, and holds from then on.
            known = {name: value for name, value in timing.items() if value is not None}
            reading.timing = reading.timing | known
        else:
            reading.timing = timing or reading.timing

    def _arrival(self, response: Response, read: int) -> tuple[int, bool]:
        """When a read's data arrived, monotonic ns, and whether the kernel said so."""
        seen_ns = response.seen_ns(read)
        real_ns = kernel_stamp(response.log[3 * read])
        if real_ns is not None:
            stamp_ns = self._clock.monotonic_ns(real_ns, seen_ns)
            if stamp_ns is not None:
                return stamp_ns, True
        return seen_ns, False

    def _arrivals(self, readings: Sequence[Reading]) -> list[tuple[array[float], int]]:
        """When the content chunks of some responses arrived.

        Returns:
            For each response the times, ms, never decreasing, and how many are the kernel's.
        """
        from_kernel = counts = [len(reading.chunk_reads) for reading in readings]
        times = self._all_from_kernel(readings)
        has_lag = times is not None
        if times is None:
            if len(readings) > 1:
                return [self._arrivals([reading])[0] for reading in readings]
            (reading,) = readings
            one_by_one = [self._arrival(reading.response, read) for read in reading.chunk_reads]
            times = np.array([stamp for stamp, _ in one_by_one], dtype=np.int64)
            from_kernel = [sum(kernel for _, kernel in one_by_one)]
        parts = list(pairwise(accumulate(counts, initial=0)))
        for reading, (first, last) in zip(readings, parts, strict=True):
            own = times[first:last]
            np.maximum.accumulate(own, out=own)
            if has_lag:
                self._take_lag(reading, own)
        arrived_ms = ((times - self.start_ns) * self._scale).tobytes()
        chunk_ms = [array("d", arrived_ms[_DOUBLE * a : _DOUBLE * b]) for a, b in parts]
        return list(zip(chunk_ms, from_kernel, strict=True))

    def _all_from_kernel(self, readings: Sequence[Reading]) -> IntArray | None:
        """The usual case, all at once: each read has one stamp, and nothing is in doubt.

        Returns:
            (n,) arrivals of the chunks of one response after the other, monotonic ns; None when
            it is another case.
        """
        stamps: list[bytes] = []
        seen_ns: list[int] = []
        for reading in readings:
            response, reads = reading.response, reading.chunk_reads
            if not reads:
                continue
            first, last = reads[0], reads[-1] + 1
            if reads == list(range(first, last)):
                stamps += response.stamps(first, last)
            else:
                stamps += [response.log[3 * read] for read in reads]
            seen_ns += response.seen_ns(first), response.seen_ns(last - 1)
        if not seen_ns:
            return None
        try:
            real_ns = kernel_stamps(stamps)
        except ValueError:
            return None
        return self._clock.monotonic_array_ns(real_ns, min(seen_ns), max(seen_ns))

    def _take_lag(self, reading: Reading, times: IntArray) -> None:
        """Note how late some of a response's chunks were read, after they had arrived."""
        for index in range(0, len(times), _LAG_EVERY):
            seen_ns = reading.response.seen_ns(reading.chunk_reads[index])
            self.receive_lag.add(max(seen_ns - int(times[index]), 0))

    def _chunk_tokens(self, reading: Reading) -> tuple[int, ...] | None:
        """Tokens of each chunk, where a chunk holds several and their number is known.

        The server may say in each chunk how many there have been; otherwise the texts are
        counted, and the counts used only when they add up to what the server says.
        """
        chunks, tokens = len(reading.chunk_reads), reading.completion_tokens
        if not chunks or tokens is None or tokens == chunks:
            return None
        so_far = reading.tokens_so_far
        if len(so_far) == chunks and so_far[-1] == tokens:
            counts = [b - a for a, b in zip([0, *so_far], so_far, strict=False)]
            possible = min(counts) >= 0 and max(counts) <= _MOST_CHUNK_TOKENS
            return tuple(counts) if possible else None
        if self._count_tokens is not None:
            counts = self._count_tokens(reading.texts)
            return tuple(counts) if sum(counts) == tokens else None
        return None


def _missing(reading: Reading) -> str | None:
    """What a stream that ended lacks."""
    response, chunks = reading.response, len(reading.chunk_reads)
    if response.status != 200:
        if not response.status:
            return None
        try:
            decompress = _decompressor(response) or bytes
            body = b"".join(decompress(piece) for _, piece in response.body)
        except (ValueError, zlib.error) as error:
            body = f"({error})".encode()
        return f"HTTP {response.status}: {body[:_ERROR_BODY_BYTES].decode('utf-8', 'replace')}"
    if not chunks:
        return "the response has no content"
    if not reading.finished:
        return f"the stream ended after {chunks} chunks, without finish_reason"
    if reading.completion_tokens is None:
        return "the server sent no usage, so its tokens cannot be counted"
    return None


def _decompressor(response: Response) -> Callable[[bytes], bytes] | None:
    """What makes of the body what the server meant; None when it is sent as it is.

    Raises:
        ValueError: it is compressed in a way that was not asked for and is not known.
    """
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(_GZIP_OR_ZLIB).decompress
    raise ValueError(f"content-encoding {encoding} is not supported")


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
    line = " ".join(printable(text).split())
    return line if len(line) <= _ERROR_LENGTH else line[: _ERROR_LENGTH - 1] + "…"

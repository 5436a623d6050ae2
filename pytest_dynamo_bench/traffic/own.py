"""Traffic files of users, in any of the usual formats.

The format is detected from the content, never from the name:

* a Mooncake trace: JSON lines with ``hash_ids``. Later turns of a session may add to the turn
  before (as AIPerf writes them) or repeat it (as Dynamo's replay reads them);
* Dynamo's request trace (``DYN_REQUEST_TRACE=1``): JSON lines of the schema
  ``dynamo.request.trace.v1``, as they are or within an ``event``;
* AIPerf's inputs: the ``inputs.json`` that it writes, or JSON lines with ``text`` or
  ``turns``. These have text, not tokens: lengths are estimated from characters where a line
  has no ``input_length``, and equal beginnings of texts become equal prefix blocks. Images are
  paths relative to the file, or ``data:`` URLs.

Files may be compressed with gzip or xz.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.outside import MOST, MOST_TOKENS, plain, shown
from pytest_dynamo_bench.traffic.arrivals import check_spread, spread_within_resolution
from pytest_dynamo_bench.traffic.fields import (
    json_of,
    number_of,
    object_of,
    problem_of_name,
    problem_of_number,
)
from pytest_dynamo_bench.traffic.images import ImageFiles
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    Concurrency,
    FixedSchedule,
    Schedule,
    Traffic,
    TrafficRequest,
    TrafficSource,
)
from pytest_dynamo_bench.traffic.mooncake import read_mooncake

Format = Literal["mooncake", "dynamo", "aiperf-inputs", "aiperf-jsonl"]
FORMATS: Mapping[Format, str] = {
    "mooncake": "Mooncake trace",
    "dynamo": "Dynamo request trace",
    "aiperf-inputs": "AIPerf inputs.json",
    "aiperf-jsonl": "AIPerf dataset",
}
DYNAMO_SCHEMA = "dynamo.request.trace.v1"
# What English text comes to with the tokenizers of current models.
CHARACTERS_PER_TOKEN = 4
_XZ, _GZIP = b"\xfd7zXZ\x00", b"\x1f\x8b"


@dataclass(frozen=True)
class TraceFile(TrafficSource):
    """A file with your own traffic; the format is detected.

    Attributes:
        path: the file, relative to the working directory.
        schedule: how it is sent; a fixed schedule needs timestamps in the file.
        output_tokens: output length for AIPerf inputs without one.
        spread_arrivals: spread requests within the steps of coarse timestamps, in their order
            (see :class:`MooncakeTrace`).
        seed: seed of the spread arrivals.

    Raises:
        BenchmarkError: spread_arrivals is set for a schedule without arrival times.
        TrafficError: the file does not exist; checked when the benchmark is imported.
    """

    path: str
    schedule: Schedule = field(default_factory=FixedSchedule)
    output_tokens: int | None = None
    spread_arrivals: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_spread(type(self).__name__, self.spread_arrivals, self.seed, self.schedule)
        if not Path(self.path).is_file():
            raise TrafficError(f"TraceFile: there is no file {self.path!r} (in {Path.cwd()})")

    @property
    def description(self) -> str:
        spread = f", arrivals spread, seed {self.seed}" if self.spread_arrivals else ""
        return f"{Path(self.path).name}, {self.schedule.description}{spread}"

    def load(self) -> Traffic:
        modified = os.stat(self.path).st_mtime_ns  # noqa: PTH116
        return _load(self, modified)


@functools.lru_cache(maxsize=4)
def _load(source: TraceFile, _modified: int) -> Traffic:
    traffic = read_traffic(Path(source.path), source.schedule, source.output_tokens)
    return spread_within_resolution(traffic, source.seed) if source.spread_arrivals else traffic


def read_traffic(path: Path, schedule: Schedule, output_tokens: int | None = None) -> Traffic:
    """Read a file of any of the known forms.

    Raises:
        TrafficError: it is none of them, or something in it is wrong; the message has the line.
    """
    name = path.name
    text = _decoded(path)
    kind = tell_format(text, name)
    block_tokens = BLOCK_TOKENS
    timed = True
    notes: tuple[str, ...] = ()
    images: dict[str, int] = {}
    if kind == "mooncake":
        requests = read_mooncake(_as_additions(text.split("\n"), name), name)
    elif kind == "dynamo":
        requests, block_tokens = _read_dynamo(text.split("\n"), name)
    else:
        rows = _aiperf_rows(text, name, kind, output_tokens)
        requests, timed, estimated = _from_texts(rows, name, images)
        if estimated:
            notes = (
                f"lengths estimated from the text at {CHARACTERS_PER_TOKEN} characters a token; "
                "equal beginnings of texts count as equal prefix blocks",
            )
    if not timed and not isinstance(schedule, Concurrency):
        raise TrafficError(
            f"{name}: has no timestamps and cannot be sent on a fixed schedule; give it a "
            "concurrency, such as Concurrency(32)"
        )
    return Traffic(
        requests, schedule, block_tokens, (f"{FORMATS[kind]} {name!r}", *notes),
        ImageFiles(tuple(images), path.parent) if images else None,
    )  # fmt: skip


def tell_format(text: str, name: str) -> Format:
    """The form of a file, by its first line, or by the whole if it is one JSON object.

    Raises:
        TrafficError: it is none that is known.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    row: Any = None
    try:
        row = plain(first)
    except ValueError:
        if first.lstrip().startswith("{"):
            row = json_of(text, name)
    if isinstance(row, dict):
        event = row.get("event")
        inner: dict[str, Any] = event if isinstance(event, dict) else row
        schema = inner.get("schema")
        if isinstance(schema, str) and schema.startswith("dynamo.request.trace"):
            return "dynamo"
        if "hash_ids" in row:
            return "mooncake"
        if isinstance(row.get("data"), list):
            return "aiperf-inputs"
        if row.keys() & {"text", "texts", "turns"}:
            return "aiperf-jsonl"
    shown = first.strip() if len(first.strip()) <= 80 else first.strip()[:77] + "..."
    raise TrafficError(
        f"{name}: unknown format. The file starts with {shown!r}; known formats are a "
        'Mooncake trace (lines with "hash_ids"), Dynamo\'s request trace (lines with "schema": '
        f'"{DYNAMO_SCHEMA}"), AIPerf\'s inputs.json (an object with "data"), and AIPerf datasets '
        '(lines with "text" or "turns")'
    )


def _decoded(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if raw.startswith(_XZ):
            raw = lzma.decompress(raw)
        elif raw.startswith(_GZIP):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8")
    except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
        raise TrafficError(f"{path.name}: cannot be read: {error}") from error


def _parsed(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        yield number, object_of(line, f"{name}, line {number}")


def _as_additions(lines: list[str], name: str) -> Iterator[str]:
    """Mooncake lines whose later turns repeat their session, as lines whose turns add to it.

    A turn that repeats begins with the blocks of the one before; where a trace does that,
    its length is that of the whole prompt. All other lines stay as they are, so that what is
    wrong with them is reported by the reader.
    """
    latest: dict[str, tuple[list[Any], int, int]] = {}
    for line in lines:
        try:
            row = plain(line) if line.strip() else None
        except ValueError:
            row = None
        session = row.get("session_id") if isinstance(row, dict) else None
        if not isinstance(row, dict) or not isinstance(session, str | int):
            yield line
            continue
        ids, length, output = (
            row.get(key) for key in ("hash_ids", "input_length", "output_length")
        )
        if not isinstance(ids, list) or not all(isinstance(n, int) for n in (length, output)):
            yield line
            continue
        before = latest.get(str(session))
        if before is not None and ids[: len(before[0])] == before[0]:
            old_ids, old_length, old_output = before
            added = int(length or 0) - old_length - old_output
            if added < 1:
                raise TrafficError(
                    f"{name}: session {session!r} has a turn of {length} tokens after one of "
                    f"{old_length} and an output of {old_output}; each turn must be longer than "
                    "these together"
                )
            row = {**row, "hash_ids": ids[len(old_ids) :], "input_length": added}
            if "delay" not in row and "delay_ms" in row:
                row["delay"] = row["delay_ms"]
            latest[str(session)] = (ids, int(length or 0), int(output or 0))
            yield json.dumps(row)
            continue
        if before is None:
            latest[str(session)] = (ids, int(length or 0), int(output or 0))
        yield line


def _read_dynamo(lines: list[str], name: str) -> tuple[tuple[TrafficRequest, ...], int]:
    """Requests of a Dynamo request trace, and the tokens that each of its hashes stands for.

    Its hashes say a block with everything before it, in 64 bits; they are renumbered. A
    request with a session follows the one before it of the same session after the time that
    passed between them; without, it is independent. Other records than ``request_end`` are
    passed over.
    """
    found: list[tuple[float, float, str, str, int, int, tuple[int, ...]]] = []
    numbers: dict[int, int] = {}
    block_tokens = 0
    seen: set[str] = set()
    for number, row in _parsed(lines, name):
        record = row["event"] if isinstance(row.get("event"), dict) else row
        if record.get("event_type") != "request_end":
            continue

        def fail(field_name: str, problem: str, at: int = number) -> TrafficError:
            return TrafficError(f"{name}, line {at}, field {field_name!r}: {problem}")

        if record.get("schema") != DYNAMO_SCHEMA:
            raise fail("schema", f"must be {DYNAMO_SCHEMA!r}, got {shown(record.get('schema'))}")
        request = record.get("request")
        if not isinstance(request, dict):
            raise fail("request", "is missing")
        replay = request.get("replay")
        if not isinstance(replay, dict):
            raise fail("request.replay", "is missing in the trace")
        received = number_of(request, "request_received_ms", 0, fail)
        output = int(number_of(request, "output_tokens", 0, fail, most=MOST_TOKENS))
        length = int(number_of(replay, "input_length", 1, fail, most=MOST_TOKENS))
        size = int(number_of(replay, "trace_block_size", 1, fail, most=MOST_TOKENS))
        block_tokens = block_tokens or size
        if size != block_tokens:
            raise fail("trace_block_size", f"{size}, but {block_tokens} on an earlier line")
        hashes = replay.get("input_sequence_hashes")
        if not isinstance(hashes, list) or not all(
            isinstance(item, int) and not isinstance(item, bool) for item in hashes
        ):
            raise fail("input_sequence_hashes", "must be a list of whole numbers")
        if len(hashes) != -(-length // size):
            raise fail(
                "input_sequence_hashes",
                f"{len(hashes)} hashes for {length} tokens; must be {-(-length // size)}, one per "
                f"{size} tokens",
            )
        if problem := problem_of_name(request.get("request_id")):
            raise fail("request_id", problem)
        request_id = str(request.get("request_id") or f"line-{number}")
        if request_id in seen:
            raise fail("request_id", f"duplicate {request_id!r}")
        seen.add(request_id)
        context = record.get("agent_context")
        session = context.get("session_id") if isinstance(context, dict) else None
        if problem := problem_of_name(session):
            raise fail("agent_context.session_id", problem)
        took: Any = request.get("total_time_ms")
        end: Any = record.get("event_time_unix_ms")
        if not problem_of_number(took, 0):
            end = received + took
        if output < 1:
            continue
        found.append((
            received, received if problem_of_number(end, 0) else float(end), request_id,
            request_id if session is None else str(session), length, output,
            tuple(numbers.setdefault(item, len(numbers)) for item in hashes),
        ))  # fmt: skip
    if not found:
        raise TrafficError(f"{name}: has no request_end records with output")
    found.sort(key=lambda item: (item[0], item[2]))
    start = found[0][0]
    latest: dict[str, tuple[TrafficRequest, float]] = {}
    requests = []
    for received, end, request_id, session, length, output, ids in found:
        before = latest.get(session)
        made = TrafficRequest(
            request_id, session, 0 if before is None else before[0].turn + 1,
            received - start if before is None else before[0].timestamp_ms,
            0.0 if before is None else max(0.0, received - before[1]), length, output, ids,
        )  # fmt: skip
        latest[session] = (made, end)
        requests.append(made)
    requests.sort(key=lambda made: made.timestamp_ms)
    return tuple(requests), block_tokens


@dataclass(frozen=True)
class _Text:
    """A request as text: where it stands in the file, and the whole of its prompt."""

    where: str
    session: str
    turn: int
    prompt: str
    output_tokens: int
    timestamp_ms: float | None
    delay_ms: float
    images: tuple[str, ...] = ()
    tokens: int | None = None


def _aiperf_rows(text: str, name: str, kind: Format, output_tokens: int | None) -> Iterator[_Text]:
    if kind == "aiperf-inputs":
        yield from _inputs_rows(json_of(text, name), name, output_tokens)
    else:
        lines_of: dict[str, int] = {}
        for number, row in _parsed(io.StringIO(text), name):
            where = f"{name}, line {number}"
            if problem := problem_of_name(row.get("session_id")):
                raise TrafficError(f"{where}, field 'session_id': {problem}")
            session = str(row.get("session_id", f"line-{number}"))
            first = lines_of.get(session, 0)
            lines_of[session] = first + 1
            if "turns" in row:
                yield from _dialogue(row, where, session, output_tokens)
            else:
                yield _dataset_row(row, where, session, first, "", output_tokens)


def _inputs_rows(document: Any, name: str, output_tokens: int | None) -> Iterator[_Text]:
    for index, session in enumerate(document["data"]):
        place = f"{name}, data[{index}]"
        if not isinstance(session, dict) or not isinstance(session.get("payloads"), list):
            raise TrafficError(f"{place}: must be an object with 'session_id' and 'payloads'")
        if problem := problem_of_name(session.get("session_id")):
            raise TrafficError(f"{place}, field 'session_id': {problem}")
        for turn, payload in enumerate(session["payloads"]):
            where = f"{place}.payloads[{turn}]"
            if not isinstance(payload, dict):
                raise TrafficError(f"{where}: must be a JSON object")
            yield _Text(
                where, str(session.get("session_id", index)), turn, _payload_text(payload, where),
                _output_tokens(payload, where, output_tokens), None, 0.0,
                tuple(_image(image, where) for image in _payload_images(payload)),
            )  # fmt: skip


def _payload_text(payload: Mapping[str, Any], where: str) -> str:
    """The prompt of an OpenAI request: its messages, or its text."""
    if isinstance(payload.get("prompt"), str):
        return str(payload["prompt"])
    messages = payload.get("messages", payload.get("input"))
    if isinstance(messages, str):
        return messages
    if not isinstance(messages, list):
        raise TrafficError(f"{where}: has neither 'messages' nor 'prompt'")
    parts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            said = [part.get("text", "") if isinstance(part, dict) else None for part in content]
            known = [text for text in said if isinstance(text, str)]
            content = "".join(known) if len(known) == len(said) else None
        role = message.get("role", "") if isinstance(message, dict) else None
        if not isinstance(content, str) or not isinstance(role, str):
            raise TrafficError(f"{where}: a message has no text: {shown(message)}")
        parts.append(f"{role}\n{content}\n")
    return "".join(parts)


def _payload_images(payload: Mapping[str, Any]) -> Iterator[object]:
    """The images of an OpenAI request's messages."""
    messages = payload.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            image = part.get("image_url") if isinstance(part, dict) else None
            if image is not None:
                yield image.get("url") if isinstance(image, dict) else image


def _dialogue(
    row: Mapping[str, Any], where: str, session: str, output_tokens: int | None
) -> Iterator[_Text]:
    """The turns of one line: each prompt has all that was said before it."""
    turns = row["turns"]
    if not isinstance(turns, list) or not turns:
        raise TrafficError(f"{where}, field 'turns': must be a list with at least one turn")
    before = ""
    for turn, item in enumerate(turns):
        at = f"{where}, turns[{turn}]"
        if not isinstance(item, dict):
            raise TrafficError(f"{at}: must be a JSON object")
        if turn == 0 and item.get("timestamp") is None:
            item = {**item, "timestamp": row.get("timestamp")}
        made = _dataset_row(item, at, session, turn, before, output_tokens)
        yield made
        # What the model will answer isn't known; it takes as much room as was asked for, and
        # no other session has the same.
        answer = f"\n{session}/{turn}\n".ljust(made.output_tokens * CHARACTERS_PER_TOKEN, "\0")
        before = made.prompt + answer


def _dataset_row(
    row: Mapping[str, Any],
    where: str,
    session: str,
    turn: int,
    before: str,
    output_tokens: int | None,
) -> _Text:
    """One request of a dataset, after ``before``."""
    texts = row.get("texts", [row.get("text")])
    if not isinstance(texts, list) or not all(isinstance(part, str) for part in texts):
        raise TrafficError(f"{where}, field 'text': must be a text, got {shown(row.get('text'))}")
    single = row.get("image")
    images = row.get("images", [] if single is None else [single])
    if not isinstance(images, list):
        raise TrafficError(f"{where}, field 'images': must be a list, got {shown(images)}")
    numbers = {key: row.get(key) for key in ("timestamp", "delay", "input_length")}
    for key, value in numbers.items():
        least = -MOST if key == "timestamp" else 0
        if value is not None and (problem := problem_of_number(value, least)):
            raise TrafficError(f"{where}, field {key!r}: {problem}")
    prompt = before + "".join(texts)
    length = numbers["input_length"]
    return _Text(
        where, session, turn, prompt, _output_tokens(row, where, output_tokens),
        numbers["timestamp"], float(numbers["delay"] or 0),
        tuple(_image(image, where) for image in images),
        # Only where words and tokens are one, as in what is written here, are blocks known too.
        int(length) if length is not None and length == prompt.count(" ") + 1 else None,
    )  # fmt: skip


def _image(image: object, where: str) -> str:
    """A path or a data URL."""
    if not isinstance(image, str) or not image:
        raise TrafficError(
            f"{where}, field 'images': must be paths or data URLs, got {shown(image)}"
        )
    if image.startswith(("http://", "https://")):
        raise TrafficError(
            f"{where}, field 'images': {image[:80]!r} would be downloaded during the measurement; "
            "download the images and give their paths"
        )
    return image


def _output_tokens(row: Mapping[str, Any], where: str, default: int | None) -> int:
    keys = ("max_tokens", "max_completion_tokens", "max_output_tokens", "output_length")
    value = next((row[key] for key in keys if row.get(key) is not None), default)
    if value is None:
        raise TrafficError(
            f"{where}: has no output length ({', '.join(map(repr, keys))}); give "
            "TraceFile its output_tokens"
        )
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise TrafficError(
            f"{where}: output tokens must be a whole number from 1, got {shown(value)}"
        )
    return value


def _from_texts(
    rows: Iterable[_Text], name: str, images: dict[str, int]
) -> tuple[tuple[TrafficRequest, ...], bool, bool]:
    """Texts as lengths and prefix blocks.

    Args:
        images: filled with the images and their numbers.

    Returns:
        The requests, whether all sessions have a time, and whether lengths are estimates.
    """
    numbers: dict[bytes, int] = {}
    requests: list[TrafficRequest] = []
    starts: dict[str, float] = {}
    timed, estimated = True, False
    for index, row in enumerate(rows):
        estimated |= row.tokens is None
        tokens = row.tokens or max(1, -(-len(row.prompt) // CHARACTERS_PER_TOKEN))
        prefix = hashlib.blake2b(digest_size=16)
        ids = []
        for block in _blocks(row, tokens):
            prefix.update(block.encode("utf-8", "surrogatepass"))
            ids.append(numbers.setdefault(prefix.digest(), len(numbers)))
        if row.turn == 0:
            timed &= row.timestamp_ms is not None
            starts[row.session] = row.timestamp_ms or 0.0
        requests.append(
            TrafficRequest(
                f"{index:06d}", row.session, row.turn, starts.get(row.session, 0.0), row.delay_ms,
                tokens, row.output_tokens, tuple(ids),
                tuple(images.setdefault(image, len(images)) for image in row.images),
            )
        )  # fmt: skip
    if not requests:
        raise TrafficError(f"{name}: has no requests")
    first = min(starts.values())
    shifted = [
        dataclasses.replace(request, timestamp_ms=request.timestamp_ms - first)
        for request in requests
    ]
    shifted.sort(key=lambda request: request.timestamp_ms)
    doubled = [
        one.session_id
        for one, other in itertools.pairwise(sorted(shifted, key=lambda r: (r.session_id, r.turn)))
        if (one.session_id, one.turn) == (other.session_id, other.turn)
    ]
    if doubled:
        raise TrafficError(f"{name}: duplicate session {doubled[0]!r}")
    return tuple(shifted), timed, estimated


def _blocks(row: _Text, tokens: int) -> Iterator[str]:
    """The prompt in pieces of a prefix block each."""
    if row.tokens is not None:
        words = row.prompt.split(" ")
        for start in range(0, tokens, BLOCK_TOKENS):
            yield " ".join(words[start : start + BLOCK_TOKENS])
        return
    size = BLOCK_TOKENS * CHARACTERS_PER_TOKEN
    for start in range(0, tokens * CHARACTERS_PER_TOKEN, size):
        yield row.prompt[start : start + size]

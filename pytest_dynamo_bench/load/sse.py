"""Server-sent events out of a response that has already arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: its data lines joined, and when the piece that completed it arrived."""

    event: str
    data: str
    arrived_ns: int


def parse_events(pieces: Iterable[tuple[int, bytes]]) -> Iterator[ServerSentEvent]:
    """Split a body into events, however the network cut it into pieces.

    Follows the WHATWG definition of ``text/event-stream``: lines end with LF, CR or CRLF, a
    line that starts with a colon is a comment, an empty line ends an event. A last event
    without its empty line is dropped, as the definition says.

    Args:
        pieces: (arrival in ns, bytes), in order.
    """
    buffer = bytearray()
    event = ""
    data: list[str] = []
    skip_line_feed = False
    for arrived_ns, piece in pieces:
        if skip_line_feed and piece:
            piece = piece.removeprefix(b"\n")
            skip_line_feed = False
        buffer += piece
        if buffer.endswith(b"\r"):
            skip_line_feed = True
        lines = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        buffer = bytearray(lines.pop())
        for line in lines:
            if not line:
                if data:
                    yield ServerSentEvent(event, "\n".join(data), arrived_ns)
                event, data = "", []
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                text = value.removeprefix(b" ").decode("utf-8", errors="replace")
                if name == b"data":
                    data.append(text)
                elif name == b"event":
                    event = text

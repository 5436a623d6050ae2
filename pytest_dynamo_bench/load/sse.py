"""Server-sent events out of a response that has already arrived."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


# Its name, its data lines joined, and the piece that completed it. A plain tuple: there is one
# for every token, and a named one takes three times as long to make.
ServerSentEvent = tuple[bytes, bytes, int]


def parse_events(pieces: Iterable[tuple[int, bytes]]) -> Iterator[ServerSentEvent]:
    """Split a body into events, however the network cut it into pieces.

    Follows the WHATWG definition of ``text/event-stream``: lines end with LF, CR or CRLF, a
    line that starts with a colon is a comment, an empty line ends an event, a byte order mark
    at the start is ignored. A last event without its empty line is dropped, as the definition
    says. Nothing is decoded: a cut within a character does no harm.

    Yields:
        name, data and the number of the piece that completed it, for each event.

    Args:
        pieces: (any number that tells when it arrived, bytes), in order.
    """
    buffer = b""
    event = b""
    data: list[bytes] = []
    skip_line_feed = False
    beginning = True
    for number, piece in pieces:
        if (
            not beginning
            and not buffer
            and not data
            and not event
            and piece[:6] == b"data: "
            and piece[-2:] == b"\n\n"
            and piece.count(b"\n") == 2
            and b"\r" not in piece
        ):
            # One whole event in one piece: nearly all of them are.
            skip_line_feed = False
            yield b"", piece[6:-2], number
            continue
        if not piece:
            continue
        if skip_line_feed:
            piece = piece.removeprefix(b"\n")
            skip_line_feed = False
        buffer += piece
        if beginning:
            if len(buffer) < 3 and _BYTE_ORDER_MARK.startswith(buffer):
                continue
            buffer = buffer.removeprefix(_BYTE_ORDER_MARK)
            beginning = False
        skip_line_feed = piece.endswith(b"\r")
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, buffer = buffer.split(b"\n")
        for line in lines:
            if not line:
                if data:
                    yield event, b"\n".join(data), number
                event, data = b"", []
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                if name == b"data":
                    data.append(value.removeprefix(b" "))
                elif name == b"event":
                    event = value.removeprefix(b" ")

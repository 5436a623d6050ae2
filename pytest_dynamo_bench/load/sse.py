"""Server-sent events out of a response that has already arrived."""

from __future__ import annotations

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Its name, and its data lines joined. A plain tuple: there may be one for every token, and a named
# one takes three times as long to make.
ServerSentEvent = tuple[bytes, bytes]


class EventReader:
    """Splits a body into events, however the network cut it into pieces.

    Follows the WHATWG definition of ``text/event-stream``: lines end with LF, CR or CRLF, a
    line that starts with a colon is a comment, an empty line ends an event, a byte order mark
    at the start is ignored. A last event without its empty line is dropped, as the definition
    says. Nothing is decoded: a cut within a character does no harm.

    Attributes:
        between_events: nothing is left of what was read, so the next piece starts with a
            new line.
    """

    def __init__(self) -> None:
        self.between_events = False
        self._buffer = b""
        self._event = b""
        self._data: list[bytes] = []
        self._skip_line_feed = False
        self._beginning = True

    def read(self, piece: bytes) -> list[ServerSentEvent]:
        """The next piece of the body: the events that it completes."""
        if (
            self.between_events
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.find(b"\n") == len(piece) - 2
            and b"\r" not in piece
        ):
            # One whole event in one piece: nearly all of them are.
            return [(b"", piece[6:-2])]
        if not piece:
            return []
        if self._skip_line_feed:
            piece = piece.removeprefix(b"\n")
            self._skip_line_feed = False
        self._buffer += piece
        if self._beginning:
            if len(self._buffer) < 3 and _BYTE_ORDER_MARK.startswith(self._buffer):
                return []
            self._buffer = self._buffer.removeprefix(_BYTE_ORDER_MARK)
            self._beginning = False
        self._skip_line_feed = piece.endswith(b"\r")
        if b"\r" in self._buffer:
            self._buffer = self._buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._buffer = self._buffer.split(b"\n")
        events = []
        for line in lines:
            if not line:
                if self._data:
                    events.append((self._event, b"\n".join(self._data)))
                self._event, self._data = b"", []
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                if name == b"data":
                    self._data.append(value.removeprefix(b" "))
                elif name == b"event":
                    self._event = value.removeprefix(b" ")
        self.between_events = not (
            self._buffer or self._data or self._event or self._skip_line_feed
        )
        return events

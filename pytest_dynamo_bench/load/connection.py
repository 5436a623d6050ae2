"""One keep-alive connection that notes when bytes arrived, and reads them later.

While a response streams in, each read costs one system call and an entry in two lists: the
kernel's receive timestamp as the system call gave it, and when the event loop noticed. What was
read is looked into when the response may have ended, or when there is time. From then on the
reads that are nearly all of a response, one chunk with one piece of text, are known by what
surrounds the text, and only the text is kept.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np
import numpy.typing as npt

READ_BYTES = 16_384
ANCILLARY_BYTES = 64
_MOST_UNMATCHED = 4
_SO_TIMESTAMPNS = 35
_QUICK_ACKNOWLEDGEMENT: int | None = getattr(socket, "TCP_QUICKACK", None)
_TIMESPEC = struct.Struct("@ll")
_NANOSECONDS = np.array([1_000_000_000, 1], dtype=np.int64)
KERNEL_TIMESTAMPS = sys.platform == "linux" and hasattr(socket.socket, "recvmsg")


@dataclass(frozen=True)
class Server:
    """Where requests are posted to.

    Attributes:
        url: the full address, ``http://`` or ``https://``.
        headers: sent with every request beside Host, Content-Type and Content-Length.
        tls: makes the TLS settings, in the process that needs them; the system's when None.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tls: Callable[[], ssl.SSLContext] | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"the URL must start with http:// or https://, got {self.url!r}")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def secure(self) -> bool:
        return urlsplit(self.url).scheme == "https"

    def head(self) -> bytes:
        """The request line and all headers but Content-Length."""
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {path} HTTP/1.1", f"Host: {host}"]
        lines += ["Content-Type: application/json", "Accept: text/event-stream"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join(lines).encode("latin-1")


def kernel_stamp(stamp: bytes) -> int | None:
    """A receive timestamp in ns since the epoch; None when there is none."""
    if len(stamp) != _TIMESPEC.size:
        return None
    seconds, nanoseconds = _TIMESPEC.unpack(stamp)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def kernel_stamps(stamps: list[bytes]) -> npt.NDArray[np.int64]:
    """Many receive timestamps in ns since the epoch.

    Returns:
        (n,) times.

    Raises:
        ValueError: one of them is none.
    """
    joined = b"".join(stamps)
    if len(joined) != len(stamps) * _TIMESPEC.size:
        raise ValueError("no stamp")
    times: npt.NDArray[np.int64] = np.frombuffer(joined, "l").reshape(-1, 2) @ _NANOSECONDS
    return times


@functools.cache
def _size_line(read_bytes: int, upper_case: bool) -> bytes:
    """How a read of so many bytes starts if it is one whole chunk of a chunked body.

    Args:
        upper_case: how the server writes hexadecimal numbers: hyper so, most others not.
    """
    for digits in range(1, 9):
        chunk_bytes = read_bytes - digits - 4
        if chunk_bytes > 0 and len(f"{chunk_bytes:x}") == digits:
            return (b"%X\r\n" if upper_case else b"%x\r\n") % chunk_bytes
    # No chunk has that length, and this is the start of nothing.
    return bytes(read_bytes + 1)


class Response:
    """A response as it arrived.

    Attributes:
        sent_ns: just before the request was handed to the socket, monotonic.
        end_ns: when the end, or the error, was noticed, monotonic.
        status: HTTP status, 0 when there was no response.
        headers: lower-case names.
        log: three entries for every read, one after the other, since they are made when there is
            no time for more: the kernel's receive timestamp as it gave it, or nothing; when it was
            noticed, monotonic; what was within a chunk as it had been expected
            (:meth:`Connection.expect`), or None.
        body: pieces of the body out of all other reads, with the index of their read.
        error: why the response is not whole, in one line.
    """

    __slots__ = (
        "body",
        "end_ns",
        "error",
        "headers",
        "log",
        "sent_ns",
        "status",
    )  # fmt: skip

    def __init__(self) -> None:
        self.sent_ns = 0
        self.end_ns = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.log: list[Any] = []
        self.body: list[tuple[int, bytes]] = []
        self.error: str | None = None

    @property
    def reads(self) -> int:
        """How often something was read."""
        return len(self.log) // 3

    def stamps(self, first: int, last: int) -> list[bytes]:
        """The kernel's timestamps of some reads, ``last`` not included."""
        return self.log[3 * first : 3 * last : 3]

    def seen_ns(self, read: int) -> int:
        """When a read was noticed."""
        seen_ns: int = self.log[3 * read + 1]
        return seen_ns

    def contents(self, first: int, last: int) -> list[bytes | None]:
        """What was within the expected chunks among some reads, ``last`` not included."""
        return self.log[3 * first + 2 : 3 * last : 3]

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, roughly: the body, and what Python needs around it."""
        return sum(len(piece) + 150 for _, piece in self.body) + 50 * len(self.log)


class Connection:
    """A socket, and at most one request on it.

    Everything is non-blocking; ``wants_write`` tells whether to wait for room as well, and
    ``unseen`` whether a look at what has been read may tell what to expect. It does not know the
    event loop: the driver calls :meth:`on_readable` and :meth:`on_writable`.
    """

    __slots__ = (
        "_before_tls",
        "_between_chunks",
        "_complete",
        "_end",
        "_expected",
        "_feeding",
        "_headers_done",
        "_incoming",
        "_keep_alive",
        "_lazy",
        "_loaded",
        "_log",
        "_outgoing",
        "_parser",
        "_start",
        "_unmatched",
        "_unparsed",
        "_unsent",
        "_upper_case",
        "closed",
        "connected",
        "ended",
        "fd",
        "job",
        "recvmsg",
        "response",
        "sock",
        "tls",
        "unseen",
        "wants_write",
        "was_idle",
    )  # fmt: skip

    def __init__(
        self, address: tuple[Any, ...], family: int, server: Server, tls: ssl.SSLContext | None
    ) -> None:
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if KERNEL_TIMESTAMPS:
            self.sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self.fd = self.sock.fileno()
        # Ready to be called: this happens for every token.
        self.recvmsg = self.sock.recvmsg if KERNEL_TIMESTAMPS and tls is None else None
        self.connected = False
        self.closed = False
        self.was_idle = False
        self.wants_write = True
        self.job: Any = None
        self.response = Response()
        self._log = self.response.log
        self.ended = True
        self.unseen = False
        self._upper_case = False
        self._unparsed: list[tuple[int, bytes]] = []
        self._expected: dict[int, tuple[bytes, slice]] | None = None
        self._start = self._end = b""
        self._unsent: list[memoryview] = []
        self._loaded = (b"", b"")
        self.tls: ssl.SSLObject | None = None
        self._before_tls: list[bytes] = []
        if tls is not None:
            self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            self.tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=server.host)
        code = self.sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            self.close()
            raise OSError(code, f"{errno.errorcode.get(code, code)}")

    def load(self, head: bytes, body: bytes) -> None:
        """Get everything ready for :meth:`fire`, so that it has little to do."""
        self.response = Response()
        self._log = self.response.log
        self.ended = False
        self._unparsed = []
        self.unseen = True
        self._expected = None
        self._unmatched = 0
        self._parser = httptools.HttpResponseParser(self)
        self._feeding = 0
        self._lazy = self._between_chunks = False
        self._complete = self._headers_done = False
        self._keep_alive = False
        self._loaded = (head, body)

    def fire(self) -> None:
        """Hand the loaded request to the socket, or keep it until the connection is up."""
        head, body = self._loaded
        self._loaded = (b"", b"")
        self.response.sent_ns = time.monotonic_ns()
        if self.tls is not None:
            if not self.connected:
                self._before_tls = [head, body]
                return
            self.tls.write(head)
            self.tls.write(body)
            self._unsent.append(memoryview(self._outgoing.read()))
            self._transmit()
            return
        sent = 0
        if self.connected:
            try:
                sent = self.sock.sendmsg((head, body))
                self._acknowledge_at_once()
            except BlockingIOError:
                pass
            except OSError:
                # A connection that the server has closed: reading it tells.
                return
        if sent < len(head) + len(body):
            rest = (memoryview(head)[sent:], memoryview(body)[max(sent - len(head), 0) :])
            self._unsent = list(rest)
            self.wants_write = True

    def _acknowledge_at_once(self) -> None:
        """Have the kernel acknowledge what is read, instead of waiting up to 40 ms.

        A server that leaves Nagle's algorithm on holds each small write back until the one
        before is acknowledged: Dynamo's frontend its first token, after the headers. Sending
        switches the kernel to delayed acknowledgements, so that this follows every sending.
        """
        if _QUICK_ACKNOWLEDGEMENT is not None:
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACKNOWLEDGEMENT, 1)

    def on_writable(self) -> None:
        """There is room: finish connecting, send what is left.

        Raises:
            OSError: it could not connect.
        """
        if not self.connected:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, f"{errno.errorcode.get(code, code)}")
            if self.tls is None:
                self.connected = True
            else:
                self._shake_hands()
        self._transmit()

    def _shake_hands(self) -> None:
        assert self.tls is not None
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            self.connected = True
            if self._before_tls:
                for part in self._before_tls:
                    self.tls.write(part)
                self._before_tls = []
        if self._outgoing.pending:
            self._unsent.append(memoryview(self._outgoing.read()))

    def _transmit(self) -> None:
        while self._unsent:
            part = self._unsent[0]
            try:
                sent = self.sock.send(part) if len(part) else 0
            except BlockingIOError:
                break
            except OSError:
                self._unsent = []
                break
            if sent == len(part):
                self._unsent.pop(0)
                if not self._unsent:
                    self._acknowledge_at_once()
            else:
                self._unsent[0] = part[sent:]
        self.wants_write = bool(self._unsent)

    def on_readable(self, seen_ns: int) -> None:
        """Read once. Afterwards ``ended`` tells whether the response is over.

        Only the driver's slow path: over plain TCP it does the same inline.
        """
        ancillary: list[tuple[int, int, bytes]]
        try:
            if KERNEL_TIMESTAMPS:
                data, ancillary, _, _ = self.sock.recvmsg(READ_BYTES, ANCILLARY_BYTES)
            else:
                data, ancillary = self.sock.recv(READ_BYTES), []
                seen_ns = time.monotonic_ns()
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.lost(seen_ns, error)
            return
        if self.tls is not None and data:
            self._incoming.write(data)
            try:
                if not self.connected:
                    self._shake_hands()
                    self._transmit()
                plain = self._decrypted()
            except ssl.SSLError as error:
                self.lost(seen_ns, error)
                return
            if plain is None:
                return
            data = plain
        if not data:
            self.lost(seen_ns, None)
            return
        self.received(ancillary[0][2] if ancillary else b"", seen_ns, data)

    def _decrypted(self) -> bytes | None:
        """What can be decrypted by now; None when that is nothing yet."""
        assert self.tls is not None
        parts: list[bytes] = []
        while self.connected:
            try:
                part = self.tls.read(65_536)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLZeroReturnError:
                part = b""
            if not part:
                return b"".join(parts)
            parts.append(part)
        return b"".join(parts) or None

    def expect(self, start: bytes, end: bytes) -> None:
        """Expect more of the same: chunks that differ in nothing but what is within them.

        Of those that come, only that is kept (:attr:`Response.log`). Ignored when what comes
        next does not begin a chunk.

        Args:
            start, end: what is before and after it in the body, up to the ends of a chunk.
        """
        if self._lazy and self._between_chunks and not self._unparsed and not self.ended:
            self._start, self._end, self._expected = start, end + b"\r\n", {}

    @property
    def worth_expecting(self) -> bool:
        """Whether to call :meth:`expect` again: not after several in a row that did not match."""
        return self._unmatched < _MOST_UNMATCHED

    def _expect(self, size: int) -> tuple[bytes, slice]:
        """How an expected chunk of so many bytes begins, and where the text in it is."""
        assert self._expected is not None
        start = _size_line(size, self._upper_case) + self._start
        last = size - len(self._end)
        if len(start) > last:
            start = bytes(size + 1)
        self._expected[size] = start, slice(len(start), last)
        return self._expected[size]

    def received(self, stamp: bytes, seen_ns: int, data: bytes) -> bool:
        """Note what was read: whether it was what had been expected.

        If not, ``ended`` tells afterwards whether the response is over.

        Args:
            stamp: the kernel's timestamp as it gave it, or nothing.
            seen_ns: when it was noticed, monotonic.
        """
        expected = self._expected
        if expected is not None:
            size = len(data)
            start, text = expected.get(size) or self._expect(size)
            if data.startswith(start) and data.endswith(self._end):
                self._log += (stamp, seen_ns, data[text])
                return True
            self._expected = None
            self._unmatched = self._unmatched + 1 if self._log[-1] is None else 0
        if self.ended:
            # No response is due.
            self.close()
            return False
        self._unparsed.append((self.response.reads, data))
        self._log += (stamp, seen_ns, None)
        # A chunked body ends with CR LF CR LF, so that nothing else is worth a look at once.
        if not self._lazy or len(data) < 5 or data.endswith(b"\r\n\r\n"):
            self.look()
        return False

    def look(self) -> None:
        """Look into what has been read so far. Afterwards ``ended`` tells whether that was all."""
        if not self._unparsed:
            return
        try:
            self._parse()
        except httptools.HttpParserError as error:
            if not self._complete:
                self._finish(self._log[-2], f"not HTTP: {error}")
                return
            self._keep_alive = False
        if self._complete:
            self._finish(self._log[-2], None)

    def _parse(self) -> None:
        """Take the body out of what has been read.

        Raises:
            httptools.HttpParserError: it is not HTTP.
        """
        body, feed = self.response.body, self._parser.feed_data
        unparsed, self._unparsed = self._unparsed, []
        number, last = 0, unparsed[-1][0]
        try:
            for number, piece in unparsed:
                size_line = _size_line(len(piece), self._upper_case)
                if self._between_chunks and not piece.startswith(size_line):
                    size_line = _size_line(len(piece), not self._upper_case)
                    self._upper_case ^= piece.startswith(size_line)
                if self._between_chunks and piece.startswith(size_line) and piece.endswith(b"\r\n"):
                    # One whole chunk: nearly every read is.
                    body.append((number, piece[len(size_line) : -2]))
                    continue
                self._feeding = number
                feed(piece)
                if not piece.endswith(b"\r\n"):
                    self._between_chunks = False
                if self._complete:
                    break
        finally:
            if number < last:
                # That was the end; what came after it belongs to nothing.
                self._keep_alive = False
                del self._log[3 * number + 3 :]

    # What httptools calls.

    def on_message_begin(self) -> None:
        if self._complete:
            # A second response to one request: the connection cannot be used again.
            self._keep_alive = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self.response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200 or self._complete:
            return
        self._headers_done = True
        self.response.status = status
        self._lazy = "chunked" in self.response.headers.get("transfer-encoding", "").lower()

    def on_body(self, body: bytes) -> None:
        if not self._complete:
            self.response.body.append((self._feeding, body))

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._between_chunks = False
        if not self._headers_done:
            # 100 Continue and its like: the response is still to come.
            self.response.headers.clear()
            return
        if not self._complete:
            self._keep_alive = self._parser.should_keep_alive()
            self._complete = True

    def lost(self, seen_ns: int, error: Exception | None) -> None:
        """The connection is gone, for the better or the worse."""
        if not self.ended:
            self.look()
            if self.ended:
                self.close()
                return
            response = self.response
            response.end_ns = seen_ns
            framed = "content-length" in response.headers or "transfer-encoding" in response.headers
            if error is None and response.status and not framed:
                self._finish(seen_ns, None)
            else:
                self._finish(
                    seen_ns,
                    "connection closed before the response was complete"
                    + (f": {error}" if error else ""),
                )
        self.close()

    @property
    def untouched(self) -> bool:
        """Whether not a byte of a response has come, on a connection that had been idle."""
        return self.was_idle and not self.response.log and not self.response.status

    def abandon(self, reason: str) -> None:
        """Give the response up: its connection cannot be used again."""
        now_ns = time.monotonic_ns()
        self.look()
        if not self.ended:
            self._finish(now_ns, reason)
        self.close()

    def _finish(self, end_ns: int, error: str | None) -> None:
        self.response.end_ns = end_ns
        self.response.error = error
        self.ended = True
        self._expected = None
        if error is not None or not self._keep_alive:
            self.close()

    def close(self) -> None:
        """Close the socket; harmless when it is closed already."""
        if not self.closed:
            self.closed = True
            self.sock.close()

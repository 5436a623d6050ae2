"""A chat-completions server with known timing, to check the load generator against.

It shares no code with the load generator, needs nothing but the standard library, and is run
as a file: ``python reference_server.py``. It listens on a free port of 127.0.0.1, prints it,
and ends when stdin does.

    POST /v1/chat/completions?ttft_ms=50&itl_ms=10&in_step=1
        streams ``max_tokens`` chunks of one token. With ``in_step`` all streams speak at the same
        moments: chunks are due at multiples of ``itl_ms``.
    GET /log
        a line for each request: its arrival, then when each chunk was written, in ns on the
        monotonic clock. The time of a write is taken just before it; the arrival is the
        kernel's receive timestamp where there is one, so that the server's own lag counts as
        latency, as it does for a client.
    GET /reset
        forgets the log.
"""

from __future__ import annotations

import heapq
import json
import os
import re
import selectors
import socket
import struct
import sys
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
SO_TIMESTAMPNS = 35
SPIN_SECONDS = 0.0002


def chunk(event: object) -> bytes:
    """An event in the chunked encoding."""
    data = f"data: {json.dumps(event)}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    """An event with one choice, as large as those of real servers."""
    return {
        "id": "chatcmpl-reference",
        "object": "chat.completion.chunk",
        "created": 1764028800,
        "model": "reference",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
    }


ROLE = chunk(choice({"role": "assistant", "content": ""}))
TOKENS = [chunk(choice({"content": f"w{index} "})) for index in range(1024)]
FINISH = chunk(choice({}, "length"))
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class Stream:
    """A connection, and the response that it is giving."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.read = b""
        self.unsent = b""
        self.tokens = self.next = self.words = 0
        self.itl_ns = self.step_ns = 0
        self.written: list[int] = []
        self.open = True


class ReferenceServer:
    """One thread, one selector, one heap of what is due."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.listener.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.selector.register(sys.stdin, selectors.EVENT_READ, None)
        self.due: list[tuple[int, int, Stream]] = []
        self.order = 0
        self.log: list[list[int]] = []

    def run(self) -> None:
        """Serve until stdin ends."""
        while True:
            now = time.monotonic_ns()
            while self.due and self.due[0][0] <= now:
                at, _, stream = heapq.heappop(self.due)
                self.speak(stream, at)
                now = time.monotonic_ns()
            wait = (self.due[0][0] - now) / 1e9 - SPIN_SECONDS if self.due else None
            for key, mask in self.selector.select(max(wait, 0) if wait is not None else None):
                if key.fileobj is sys.stdin:
                    if not os.read(0, 1):
                        return
                elif key.fileobj is self.listener:
                    self.accept()
                elif mask & selectors.EVENT_WRITE:
                    self.flush(key.data)
                else:
                    self.receive(key.data)

    def accept(self) -> None:
        sock, _ = self.listener.accept()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.selector.register(sock, selectors.EVENT_READ, Stream(sock))

    def receive(self, stream: Stream) -> None:
        ancillary: list[tuple[int, int, bytes]] = []
        try:
            if sys.platform == "linux":
                data, ancillary, _, _ = stream.sock.recvmsg(1 << 18, 64)
            else:
                data = stream.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(stream)
            return
        arrived = time.monotonic_ns()
        for _, kind, stamp in ancillary:
            if kind == SO_TIMESTAMPNS:
                seconds, ns = struct.unpack("@ll", stamp)
                arrived += seconds * 1_000_000_000 + ns - time.time_ns()
        stream.read += data
        while (end := stream.read.find(b"\r\n\r\n")) >= 0 and stream.open:
            head = stream.read[:end]
            found = re.search(rb"\r\ncontent-length: *(\d+)", head, re.I)
            length = int(found.group(1)) if found else 0
            if len(stream.read) < end + 4 + length:
                return
            body = stream.read[end + 4 : end + 4 + length]
            stream.read = stream.read[end + 4 + length :]
            self.answer(stream, head.split(b"\r\n", 1)[0].decode("latin-1"), body, arrived)

    def answer(self, stream: Stream, line: str, body: bytes, arrived: int) -> None:
        if not line.startswith("POST"):
            text = ""
            if " /log" in line:
                text = "".join(" ".join(map(str, entry)) + "\n" for entry in self.log)
            else:
                self.log = []
            reply = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(text)
            self.send(stream, reply + text.encode())
            return
        timing = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", line)}
        asked = re.search(rb'"max_tokens": ?(\d+)', body)
        stream.tokens, stream.next = int(asked.group(1)) if asked else 16, 0
        stream.words = body.count(b" ") + 1
        stream.itl_ns = int(timing.get("itl_ms", 10) * 1e6)
        stream.step_ns = stream.itl_ns if timing.get("in_step") else 0
        stream.written = [arrived]
        self.log.append(stream.written)
        self.push(stream, arrived + int(timing.get("ttft_ms", 50) * 1e6))

    def push(self, stream: Stream, at: int) -> None:
        if stream.step_ns:
            at = -(-at // stream.step_ns) * stream.step_ns
        self.order += 1
        heapq.heappush(self.due, (at, self.order, stream))

    def speak(self, stream: Stream, due: int) -> None:
        if not stream.open:
            return
        if stream.next == 0:
            self.send(stream, HEAD + ROLE)
        stream.written.append(time.monotonic_ns())
        self.send(stream, TOKENS[stream.next % len(TOKENS)])
        stream.next += 1
        if stream.next < stream.tokens:
            self.push(stream, due + stream.itl_ns)
            return
        usage = {"prompt_tokens": stream.words, "completion_tokens": stream.tokens}
        self.send(stream, FINISH + chunk({"choices": [], "usage": usage}) + DONE)

    def send(self, stream: Stream, data: bytes) -> None:
        if stream.unsent:
            stream.unsent += data
            return
        try:
            sent = stream.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(stream)
            return
        if sent < len(data):
            stream.unsent = data[sent:]
            self.selector.modify(stream.sock, selectors.EVENT_READ | selectors.EVENT_WRITE, stream)

    def flush(self, stream: Stream) -> None:
        data, stream.unsent = stream.unsent, b""
        self.selector.modify(stream.sock, selectors.EVENT_READ, stream)
        self.send(stream, data)

    def close(self, stream: Stream) -> None:
        if stream.open:
            stream.open = False
            self.selector.unregister(stream.sock)
            stream.sock.close()


if __name__ == "__main__":
    server = ReferenceServer()
    sys.stdout.write(f"{server.listener.getsockname()[1]}\n")
    sys.stdout.flush()
    server.run()

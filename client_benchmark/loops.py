"""What the choice of the event loop costs: three bare readers of the same streams.

    python client_benchmark/loops.py

Each reads 64 streams in step, with all that is not the loop taken out: no schedule, no parsing,
no records. Told are the processor time of 1,000 chunks and how late a chunk is noticed after
the server wrote it, with the time at which the loop noticed, and with the kernel's receive
timestamp where the loop lets it be read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import select
import socket
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import uvloop
from compare import build, reference_server
from tools import CHUNKS, Workload

STREAMS, ROUNDS = 64, 5
END = b"0\r\n\r\n"
SO_TIMESTAMPNS = 35
Arrivals = list[tuple[int, int | None, bytes]]


def post(port: int) -> bytes:
    message = {"role": "user", "content": "w1"}
    body = json.dumps({"stream": True, "max_tokens": CHUNKS, "messages": [message]}).encode()
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Length: %d\r\n\r\n"
        % (port, len(body))
    ) + body


def opened(port: int) -> list[socket.socket]:
    sockets = []
    for _ in range(STREAMS):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setblocking(False)
        sockets.append(sock)
    return sockets


def kernel_ns(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    for _, kind, data in ancillary:
        if kind == SO_TIMESTAMPNS:
            seconds, ns = struct.unpack("@ll", data)
            return seconds * 1_000_000_000 + ns
    return None


def by_epoll(port: int) -> Arrivals:
    """One epoll, one recvmsg a read."""
    arrivals: Arrivals = []
    raw = []
    request = post(port)
    sockets = {sock.fileno(): sock for sock in opened(port)}
    left = dict.fromkeys(sockets, ROUNDS)
    with select.epoll() as epoll:
        for fd, sock in sockets.items():
            epoll.register(fd, select.EPOLLIN)
            sock.send(request)
        while left:
            events = epoll.poll()
            now = time.monotonic_ns()
            for fd, _ in events:
                data, ancillary, _, _ = sockets[fd].recvmsg(16_384, 64)
                raw.append((now, ancillary, data))
                if data.endswith(END):
                    left[fd] -= 1
                    if left[fd]:
                        sockets[fd].send(request)
                    else:
                        del left[fd]
    for sock in sockets.values():
        sock.close()
    arrivals += [(now, kernel_ns(ancillary), data) for now, ancillary, data in raw]
    return arrivals


async def by_add_reader(port: int) -> Arrivals:
    """The event loop calls for each socket that is ready; recvmsg."""
    raw: list[tuple[int, list[tuple[int, int, bytes]], bytes]] = []
    request = post(port)
    sockets = opened(port)
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    left = dict.fromkeys(sockets, ROUNDS)

    def read(sock: socket.socket) -> None:
        now = time.monotonic_ns()
        data, ancillary, _, _ = sock.recvmsg(16_384, 64)
        raw.append((now, ancillary, data))
        if data.endswith(END):
            left[sock] -= 1
            if left[sock]:
                sock.send(request)
            else:
                del left[sock]
                loop.remove_reader(sock)
                if not left:
                    over.set_result(None)

    for sock in sockets:
        loop.add_reader(sock, read, sock)
        sock.send(request)
    await over
    for sock in sockets:
        sock.close()
    return [(now, kernel_ns(ancillary), data) for now, ancillary, data in raw]


async def by_protocol(port: int) -> Arrivals:
    """A protocol on a transport; there is no way to the kernel's timestamps."""
    arrivals: Arrivals = []
    request = post(port)
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    running = STREAMS

    class Reader(asyncio.Protocol):
        left = ROUNDS

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            transport.write(request)  # type: ignore[attr-defined]

        def data_received(self, data: bytes) -> None:
            nonlocal running
            arrivals.append((time.monotonic_ns(), None, data))
            if data.endswith(END):
                self.left -= 1
                if self.left:
                    self.transport.write(request)  # type: ignore[attr-defined]
                    return
                self.transport.close()
                running -= 1
                if not running:
                    over.set_result(None)

    for _ in range(STREAMS):
        await loop.create_connection(Reader, "127.0.0.1", port)
    await over
    return arrivals


def with_uvloop(reader: Callable[[int], object]) -> Callable[[int], Arrivals]:
    def run(port: int) -> Arrivals:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(reader(port))  # type: ignore[arg-type]

    return run


READERS: dict[str, Callable[[int], Arrivals]] = {
    "epoll": by_epoll,
    "uvloop, add_reader": with_uvloop(by_add_reader),
    "uvloop, protocol": with_uvloop(by_protocol),
    "asyncio, add_reader": lambda port: asyncio.run(by_add_reader(port)),
    "asyncio, protocol": lambda port: asyncio.run(by_protocol(port)),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="client-benchmark-") as directory:
        program = build(Path(directory))
        for _ in range(repeats):
            for name, reader in READERS.items():
                with reference_server(program, Workload("in step", 1, STREAMS)) as server:
                    began = time.process_time()
                    arrivals = reader(int(server.url.rpartition(":")[2]))
                    cpu = time.process_time() - began
                    log = server.get("/log").splitlines()
                _tell(name, arrivals, log, cpu)


def _tell(name: str, arrivals: Arrivals, log: list[str], cpu: float) -> None:
    written = np.sort([int(n) for line in log for n in line.split()[1:]])
    offset = time.time_ns() - time.monotonic_ns()
    held = [data.count(b'"content":"w') for _, _, data in arrivals]
    noticed = np.sort(np.repeat([now for now, _, _ in arrivals], held))
    line = f"{name:20} {1000 * cpu / len(written) * 1000:6.2f} ms of CPU per 1,000 chunks"
    columns = [("noticed", noticed)]
    if all(ns is not None for _, ns, _ in arrivals):
        stamps = np.array([ns for _, ns, _ in arrivals], dtype=np.int64) - offset
        columns.append(("stamped", np.sort(np.repeat(stamps, held))))
    for label, times in columns:
        # In the order in which they were written, and in which they came.
        lag = (times - written) / 1e6
        line += f"; {label} {np.percentile(lag, 50):.3f} / {np.percentile(lag, 99):.3f} ms"
    print(line, flush=True)


if __name__ == "__main__":
    main()

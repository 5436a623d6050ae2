"""A process of the load generator: ``python -m pytest_dynamo_bench.load.worker``.

It reads a job from stdin, says on stdout that it is ready, starts at the time it is given, and
sends back what has ended. It ends when it is done, when it is asked to, and when stdin is
closed, which is what becomes of it when its parent is killed. Messages are a length and a
pickle; both ends are this package, on one machine.
"""

from __future__ import annotations

import dataclasses
import gc
import operator
import os
import pickle
import select
import signal
import struct
import sys
from io import FileIO
from typing import Any

from pytest_dynamo_bench.load.driver import Driver, Job
from pytest_dynamo_bench.records import RequestRecord

LENGTH = struct.Struct("!Q")
_CHUNK = 65_536
# Their values alone are pickled in a third of the time.
_VALUES = operator.attrgetter(*(field.name for field in dataclasses.fields(RequestRecord)))


class ParentIsGoneError(Exception):
    """The parent process has ended."""


def read_message(stream: FileIO) -> Any:
    """The next message.

    Raises:
        ParentIsGoneError: there is none.
    """
    length = LENGTH.unpack(_read_exactly(stream, LENGTH.size))[0]
    return pickle.loads(_read_exactly(stream, length))  # noqa: S301 from the parent process


def message(content: Any) -> bytes:
    """A message as it is written."""
    body = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(body)) + body


class _PipeMailbox:
    """Writes to the parent without waiting for it, until the end."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._pending = bytearray()
        os.set_blocking(write_fd, False)

    def records(self, records: list[RequestRecord]) -> None:
        self._pending += message(("records", list(map(_VALUES, records))))
        self._write()

    def stopped(self) -> bool:
        # Whatever the parent has to say after the start, and its end, is that this is over.
        self._write()
        return bool(select.select((self._read_fd,), (), (), 0)[0])

    def last(self, content: Any) -> None:
        """Write a message and everything before it, however long it takes."""
        os.set_blocking(self._write_fd, True)
        self._pending += message(content)
        while self._pending:
            self._write()

    def _write(self) -> None:
        try:
            while self._pending:
                written = os.write(self._write_fd, memoryview(self._pending)[:_CHUNK])
                del self._pending[:written]
        except BlockingIOError:
            pass


def main() -> int:
    """Do one job."""
    # Ctrl-C reaches the whole group; the parent says what happens then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    write_fd = os.dup(1)
    os.dup2(2, 1)
    # Unbuffered: what was read ahead would not be seen by select.
    stdin = FileIO(os.dup(0), "r")
    try:
        job: Job = read_message(stdin)
        mailbox = _PipeMailbox(stdin.fileno(), write_fd)
        driver = Driver(job, mailbox)
        driver.prepare()
        gc.collect()
        gc.freeze()
        gc.disable()
        mailbox.last(("ready", None))
        os.set_blocking(write_fd, False)
        start_ns: int = read_message(stdin)
        health = driver.run(start_ns)
        mailbox.last(("health", health))
    except (ParentIsGoneError, BrokenPipeError):
        return 1
    return 0


def _read_exactly(stream: FileIO, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = stream.read(count - len(parts))
        if not part:
            raise ParentIsGoneError
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    sys.exit(main())

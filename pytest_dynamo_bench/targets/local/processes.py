"""The processes of one deployment, as the plugin sees them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
_LOG_LINES = 12
_GRACE_SECONDS = 1.0
_END_SECONDS = 15.0


@dataclass(frozen=True)
class ProcessSpec:
    """A process to run: what to execute, with which environment, logging where."""

    name: str
    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path


class Processes:
    """A set of processes that are started and stopped together, as an async context manager.

    While it is open, :attr:`exits` fills with those that ended by themselves, and
    :meth:`died` returns as soon as the first one does. When it closes, however it closes,
    all processes are gone and ``directory`` is removed.

    Args:
        specs: what to start, in this order.
        directory: working directory of the processes; removed at the end.
    """

    def __init__(self, specs: Sequence[ProcessSpec], directory: Path) -> None:
        self._specs = {spec.name: spec for spec in specs}
        self._directory = directory
        self._supervisor: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._died = asyncio.Event()
        self._ended = asyncio.Event()
        self.pids: dict[str, int] = {}
        self.exits: dict[str, int] = {}
        self.failure: str | None = None

    async def __aenter__(self) -> Processes:
        self._supervisor = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(_SUPERVISOR),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self._reader = asyncio.create_task(self._read_reports())
        orders = {
            "processes": [
                {
                    "name": spec.name,
                    "argv": list(spec.argv),
                    "environment": dict(spec.environment),
                    "directory": str(self._directory),
                    "log": str(spec.log),
                }
                for spec in self._specs.values()
            ],
            "grace_seconds": _GRACE_SECONDS,
            "remove": str(self._directory),
        }
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.write(json.dumps(orders).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await self._supervisor.stdin.drain()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._supervisor is not None and self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        # A second Ctrl-C must not leave processes behind, so the end is waited for to the end.
        waiting = asyncio.ensure_future(self._wait_for_end())
        interrupted: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError as error:
                interrupted = error
        if interrupted is not None:
            raise interrupted

    async def _wait_for_end(self) -> None:
        assert self._supervisor is not None and self._reader is not None
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._supervisor.wait()
        except TimeoutError:
            os.kill(self._supervisor.pid, signal.SIGKILL)
            await self._supervisor.wait()
        await self._reader

    async def _read_reports(self) -> None:
        assert self._supervisor is not None and self._supervisor.stdout is not None
        async for line in self._supervisor.stdout:
            report = json.loads(line)
            match report["event"]:
                case "started":
                    self.pids[report["name"]] = report["pid"]
                case "exited":
                    self.exits[report["name"]] = report["returncode"]
                    self._died.set()
                case "failed":
                    self.failure = report["reason"]
                    self._died.set()
        self._died.set()

    async def died(self) -> str:
        """Wait until a process ends by itself.

        Returns:
            Which one, how, and the last lines of its log.
        """
        await self._died.wait()
        return self.exit_report()

    def exit_report(self) -> str:
        """Which processes ended by themselves, how, and the last lines of their logs."""
        if self.failure is not None:
            return f"a process could not be started: {self.failure}"
        if not self.exits:
            return "the supervisor process exited"
        return "\n".join(
            f"{name} ended {_how(code)}; the last lines of {self._specs[name].log.name}:\n"
            f"{self.log_tail(name)}"
            for name, code in self.exits.items()
        )

    def log_tail(self, name: str) -> str:
        """The last lines of a process's log, indented."""
        return tail(self._specs[name].log)


def tail(log: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a file, indented; it may be missing, or not be UTF-8."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return f"  (no log: {error.strerror})"
    kept = [line.rstrip()[:300] for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"  {line}" for line in kept) or "  (empty)"


def _how(returncode: int) -> str:
    if returncode < 0:
        with contextlib.suppress(ValueError):
            return f"by signal {signal.Signals(-returncode).name}"
    return f"with exit status {returncode}"

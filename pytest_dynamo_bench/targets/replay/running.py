"""The processes that simulate, and how they end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec

from pytest_dynamo_bench.dynamo.environment import interpreter, variables_for
from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.outside import Amount, Count, decoded
from pytest_dynamo_bench.targets.replay import child

_LOG_LINES = 20


class SimulationError(DeploymentError):
    """A simulation ended without a result.

    Attributes:
        log: what it wrote.
    """

    log: str = ""


class _Processes:
    """The simulating processes of several threads, which can be ended from another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(
        self,
        command: Sequence[str],
        output: int,
        files: Sequence[int],
        timeout_seconds: float,
        dynamo: str | None = None,
    ) -> int:
        """Run a command of a Dynamo that is given open files, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was ended.
            SimulationError: all have been ended.
        """
        # DYN_LOG: at info Dynamo's router writes a line per request, which takes longer than
        # the simulation.
        given = variables_for(dynamo, os.environ)
        environment = {**given, "DYN_LOG": os.environ.get("DYN_LOG", "error")}
        with self._lock:
            if self._ended:
                raise SimulationError("simulations were ended")
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, pass_fds=files,
            )  # fmt: skip
            self._running.add(process)
        try:
            return process.wait(timeout_seconds)
        finally:
            _kill(process)
            with self._lock:
                self._running.discard(process)

    def end(self) -> None:
        """End those that run, and start no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()


_PROCESSES: ContextVar[_Processes] = ContextVar("_PROCESSES")


class LocalExecutor(ThreadPoolExecutor):
    """Simulations on this machine: threads that each wait for a process.

    A thread takes no time to start and next to no memory, and the computing is done in the other
    process. The kernel ends that when this process ends, however it does.
    """

    def __init__(self, at_a_time: int) -> None:
        self._processes = _Processes()
        super().__init__(
            at_a_time, "simulation", initializer=_PROCESSES.set, initargs=(self._processes,)
        )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As that of every executor; what runs is ended at once where futures are cancelled."""
        if cancel_futures:
            self._processes.end()
        super().shutdown(wait, cancel_futures=cancel_futures)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended.

    Not by its own ``wait``: a signal handler that raises in the midst of that, such as Ctrl-C's,
    can leave its lock taken, and the next call would wait for ever.
    """
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
        process.returncode = -signal.SIGKILL


class _Result(msgspec.Struct):
    """What the child says of a simulation."""

    report: dict[str, Any]
    seconds: Amount
    seeding: str
    peak_memory_mb: Count | None


def run_child(
    name: str,
    job: Path,
    result: Path,
    files: Sequence[int],
    timeout_seconds: float,
    dynamo: str | None = None,
) -> tuple[dict[str, Any], str]:
    """Run one of Dynamo's replays in a separate process.

    Args:
        name: of the configuration.
        job, result: files of :mod:`~pytest_dynamo_bench.targets.replay.child`.
        files: open files that it is to have.
        dynamo: whose replay it is, as a configuration names it.

    Returns:
        What it says of the simulation, and its log.

    Raises:
        SimulationError: it ended with an error, took too long, or has no result.
    """
    reason, text = "", ""
    with tempfile.TemporaryFile() as output:
        command = [interpreter(dynamo), child.__file__, str(job), str(os.getpid())]
        processes = _PROCESSES.get(None) or _Processes()
        try:
            code = processes.run(command, output.fileno(), files, timeout_seconds, dynamo)
            reason = f"ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            reason = f"took longer than {timeout_seconds:g} s and was ended"
        output.seek(0)
        text = output.read().decode("utf-8", "replace")
    if not reason:
        try:
            return msgspec.to_builtins(decoded(result.read_bytes(), _Result)), text
        except (OSError, ValueError) as unreadable:
            reason = f"ended without a result that can be read ({unreadable})"
    end = "\n".join(text.splitlines()[-_LOG_LINES:])
    error = SimulationError(
        f"configuration {name!r}: the simulation {reason}"
        + (f"; the end of its log:\n{end}" if end else "")
    )
    error.log = text
    raise error

"""The processes that simulate."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.outside import Amount, Count, decoded
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.replay import child

_LOG_LINES = 20


class RunningSimulations:
    """The simulating processes of several threads, which can be ended from another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(self, command: Sequence[str], log: Path, timeout_seconds: float) -> int:
        """Run a command that writes to a log, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was ended.
            DeploymentError: all have been ended.
        """
        # DYN_LOG: at info Dynamo's router writes a line per request, which takes longer than
        # the simulation.
        environment = {**os.environ, "DYN_LOG": os.environ.get("DYN_LOG", "error")}
        with log.open("wb") as output:
            with self._lock:
                if self._ended:
                    raise DeploymentError("simulations were ended")
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, env=environment,
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

    def simulate(
        self, job: Mapping[str, Any], scratch: Path, planned: PlannedRun, timeout_seconds: float
    ) -> dict[str, Any]:
        """Run a simulation, and return what it says of itself.

        Args:
            job: its arguments and its seed.
            scratch: a directory for the result.
            planned: the run that it is for; its directory gets the job and the log.

        Raises:
            DeploymentError: it ended with an error, took too long, or has no result.
        """
        result_path, directory = scratch / "result.json", planned.directory
        job_path, log_path = directory / "replay-job.json", directory / "replay.log"
        text = json.dumps({**job, "result": str(result_path)}, indent=2)
        job_path.write_text(text + "\n", encoding="utf-8")
        command = [sys.executable, child.__file__, str(job_path), str(os.getpid())]
        of = f"configuration {planned.configuration.name!r}"
        try:
            code = self.run(command, log_path, timeout_seconds)
        except subprocess.TimeoutExpired:
            raise DeploymentError(
                f"{of}: the simulation took longer than {timeout_seconds:g} s and was ended; log: "
                f"{log_path}"
            ) from None
        if code:
            tail = log_path.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            raise DeploymentError(
                f"{of}: the simulation ended with exit code {code}; the end of {log_path}:\n"
                + "\n".join(tail)
            )
        try:
            result = decoded(result_path.read_bytes(), _Result)
        except (OSError, ValueError) as error:
            raise DeploymentError(
                f"{of}: the simulation ended without a result that can be read ({error}); log: "
                f"{log_path}"
            ) from None
        found: dict[str, Any] = msgspec.to_builtins(result)
        return found


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
    kv_offload_compiled: bool

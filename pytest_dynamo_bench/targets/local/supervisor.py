"""Runs the processes of one deployment, and ends them whatever happens to the plugin.

A separate program, started with ``python -I``, standard library only. It reads one JSON
line on standard input: the processes to start and a directory to remove at the end. It
reports starts and exits as JSON lines on standard output. It ends everything when standard
input closes, which the operating system sees to even when the plugin is killed with
``kill -9``; and when it is killed itself, the kernel ends its children.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.05


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when the supervisor dies (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _report(**event: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(event), flush=True)  # noqa: T201


def _start(processes: list[dict[str, Any]]) -> dict[str, subprocess.Popen[bytes]]:
    running: dict[str, subprocess.Popen[bytes]] = {}
    for process in processes:
        with Path(process["log"]).open("wb") as log:
            running[process["name"]] = subprocess.Popen(
                process["argv"],
                env=process["environment"],
                cwd=process["directory"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        _report(event="started", name=process["name"], pid=running[process["name"]].pid)
    return running


def _wait_for_end(running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Report processes that exit, until standard input closes."""
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    reported: set[str] = set()
    while True:
        if selector.select(_POLL_SECONDS) and not os.read(sys.stdin.fileno(), 4096):
            return
        for name, process in running.items():
            if name not in reported and process.poll() is not None:
                reported.add(name)
                _report(event="exited", name=name, returncode=process.returncode)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _end(running: dict[str, subprocess.Popen[bytes]], grace_seconds: float) -> None:
    for process in running.values():
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for process in running.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in running.values():
        _signal_group(process, signal.SIGKILL)
        process.wait()


def main() -> None:
    """Start, watch and end the processes named on standard input."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    orders = json.loads(sys.stdin.buffer.raw.readline())  # type: ignore[union-attr]
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        running = _start(orders["processes"])
        _wait_for_end(running)
    except OSError as error:
        _report(event="failed", reason=str(error))
    finally:
        _end(running, orders["grace_seconds"])
        shutil.rmtree(orders["remove"], ignore_errors=True)
        _report(event="ended")


if __name__ == "__main__":
    main()

"""Runs one command with everything that it starts, and leaves nothing of it behind.

Started as a file: ``python -I guard.py LOG COMMAND…``; standard library only. When the command
ends, this ends with its exit code. When standard input closes, which the operating system
sees to even when the parent is killed, the command gets SIGINT, and SIGKILL soon after; so does
whatever it left running in its process group.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time

_GRACE_SECONDS = 5.0
_POLL_SECONDS = 0.05


def main(log: str, *command: str) -> int:
    """Run a command; its exit code, or 130 when it was ended."""
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    with open(log, "wb") as output:  # noqa: PTH123 no more imports than needed
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True, restore_signals=True,
            preexec_fn=_default_signals,
        )  # fmt: skip
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    code = 130
    try:
        while child.poll() is None:
            if selector.select(_POLL_SECONDS) and not os.read(0, 1):
                _signal(child.pid, signal.SIGINT)
                until = time.monotonic() + _GRACE_SECONDS
                while child.poll() is None and time.monotonic() < until:
                    time.sleep(_POLL_SECONDS)
                break
        else:
            code = child.returncode
    finally:
        _signal(child.pid, signal.SIGKILL)
        child.wait()
    return code


def _default_signals() -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_DFL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

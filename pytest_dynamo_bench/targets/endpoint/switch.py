"""A user's own command that puts another configuration behind the same URL."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.plain_text import NO_SECRETS, Secrets

OPTION = "--dynamo-switch-command"
PLACEHOLDER = "{configuration}"
_BENCHMARK = "{benchmark}"
_SHOWN_LINES = 20
_POLL_SECONDS = 0.05
_GRACE_SECONDS = 5.0


def split_command(command: str) -> list[str]:
    """The command as an argument list; no shell ever sees it.

    Raises:
        TargetError: it cannot be split, has no placeholder, or its program is not there.
    """
    try:
        parts = shlex.split(command)
    except ValueError as error:
        raise TargetError(f"{OPTION}: {error}: {command!r}") from None
    if not parts:
        raise TargetError(f"{OPTION}: is empty")
    if not any(PLACEHOLDER in part for part in parts[1:]):
        raise TargetError(
            f"{OPTION}: must have {PLACEHOLDER} among its arguments, which stands for the "
            f"configuration's name, such as './switch.sh {PLACEHOLDER}'"
        )
    if shutil.which(parts[0]) is None:
        raise TargetError(
            f"{OPTION}: there is no program {parts[0]!r}; commands run without a shell, so put "
            "pipes, ~ and variables into a script"
        )
    return parts


def switch(
    parts: list[str],
    benchmark: str,
    configuration: str,
    log: Path,
    *,
    seconds: float,
    secrets: Secrets = NO_SECRETS,
) -> None:
    """Run the command and wait for it; its output goes to ``log``.

    Raises:
        DeploymentError: it ended with another status than 0, or not in time; with the end of
            its output.
    """
    argv = [
        part.replace(PLACEHOLDER, configuration).replace(_BENCHMARK, benchmark) for part in parts
    ]
    shown = secrets.redact(shlex.join(argv))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(process, seconds)
        except BaseException:
            _end(process)
            raise
        finally:
            _redact_file(log, secrets)
    if status == 0:
        return
    how = "did not finish within " + f"{seconds:g} s" if status is None else f"ended with {status}"
    raise DeploymentError(
        f"{OPTION}: {shown} {how}; {configuration} was not measured. The end of its output (all in "
        f"{log}):\n{_tail(log)}"
    )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit status; None when it did not end in time, and was ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = process.poll()
        if status is not None:
            return status
        time.sleep(_POLL_SECONDS)
    _end(process)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and what it started in its own process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_SECONDS)
    # Also for what outlives the command itself.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _redact_file(log: Path, secrets: Secrets) -> None:
    text = log.read_text(encoding="utf-8", errors="replace")
    redacted = secrets.redact(text)
    if redacted != text:
        log.write_text(redacted, encoding="utf-8")


def _tail(log: Path) -> str:
    lines = [
        line.rstrip()[:300]
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    return "\n".join(f"  {line}" for line in lines[-_SHOWN_LINES:]) or "  (no output)"

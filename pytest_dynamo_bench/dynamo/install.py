"""Makes an environment with a Dynamo in it: whole, or not at all."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pytest_dynamo_bench.dynamo.environment import kept_environment, resolve, wheels
from pytest_dynamo_bench.dynamo.kept import KeptEnvironment
from pytest_dynamo_bench.dynamo.option_check import parse_command
from pytest_dynamo_bench.dynamo.releases import DISPENSABLE
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.plain_text import one_line

# Of what is not Dynamo's requirement, what programs of ours need that run there.
_OURS = ("pillow", "numpy", "msgspec", "pyzmq")
_SAID_EVERY_SECONDS = 8.0
_SHOWN_LINES = 8
_RUNTIME = "ai-dynamo-runtime"
_NEEDED_GB, _GB = 1.5, 10**9

Say = Callable[[str], None]


class _FailedError(Exception):
    """An installer ended with an error; what it printed is the message."""


def install(what: Sequence[str], say: Say) -> KeptEnvironment:
    """Make an environment with a Dynamo, unless it is there.

    Args:
        what: a release, or wheels and directories that have them.
        say: called with a line for each step, and at least every ten seconds.

    Raises:
        TargetError: there is no such release or wheel, or no room on the disk.
        DeploymentError: it could not be installed; the message has the end of what pip said.
    """
    kept = kept_environment(what)
    if kept.complete:
        say(f"already installed in {kept.directory}")
        return kept
    files = [] if kept.directory.name == f"dynamo-{what[0]}" else wheels(what)
    dynamo = [str(file.absolute()) for file in files] or [f"ai-dynamo=={what[0]}"]
    free_gb = shutil.disk_usage(_existing(kept.directory)).free / _GB
    if free_gb < _NEEDED_GB:
        raise TargetError(
            f"the disk of {kept.directory} has {free_gb:.1f} GB free, and {_NEEDED_GB:g} are "
            "needed; make room, or set XDG_CACHE_HOME to another place"
        )
    noted: dict[str, object] = {"installed": list(what)}
    with kept.making(noted) as made:
        say(f"installing into {kept.directory}")
        make_venv(made.directory)
        python = str(made.python)
        missing = _with_what_it_needs(python, dynamo, say)
        noted["without"] = missing
        installed(python, list(_OURS), say)
        say("trying it")
        found = resolve(python)
        noted["version"] = found.version
        for program in ("dynamo.frontend", "dynamo.mocker"):
            if said := parse_command(found, program, [], {}).problem:
                raise DeploymentError(f"{program} does not work; nothing is kept: {said}")
    for name in missing:
        say(f"without {name}, which could not be installed: {DISPENSABLE[name]}")
    return kept


def _with_what_it_needs(python: str, dynamo: list[str], say: Say) -> list[str]:
    """Install Dynamo with its requirements, as far as those can be had; names those that can't."""
    try:
        installed(python, dynamo, say, quietly=True)
    except _FailedError as error:
        _raise_for_release(dynamo, str(error))
        missing = [name for name in DISPENSABLE if name in str(error)]
        if not missing:
            raise _failure(error) from None
        say(f"{', '.join(missing)} cannot be installed; going on without")
    else:
        return []
    if len(dynamo) == 1:
        # The runtime has the version of the package that asks for it.
        installed(python, ["--no-deps", *dynamo], say)
        dynamo = [text for text in requirements(python) if text.startswith(_RUNTIME)]
    installed(python, ["--no-deps", *dynamo], say)
    names = (_RUNTIME, *missing)
    installed(python, [r for r in requirements(python) if not r.startswith(names)], say)
    return missing


def _raise_for_release(dynamo: list[str], said: str) -> None:
    if "No matching distribution found for ai-dynamo==" not in said:
        return
    offered = re.search(r"from versions: ([^)]*)\)", said)
    listed = (offered[1] if offered else "").split(", ")
    versions = [text for text in listed if re.fullmatch(r"[\d.]+", text)]
    newest = f"; there are {', '.join(versions[-6:])}" if versions else ""
    raise TargetError(
        f"there is no {dynamo[0]} for this Python where pip looks{newest}; nothing is kept of it"
    )


def requirements(python: str) -> list[str]:
    """What the Dynamo of an environment asks for there, without its extras."""
    code = (
        "from pip._vendor.packaging.requirements import Requirement\n"
        "from importlib.metadata import distributions\n"
        "found = [d for d in distributions() if d.name.startswith('ai-dynamo')]\n"
        "for text in [text for d in found for text in d.requires or ()]:\n"
        "    r = Requirement(text)\n"
        "    if r.marker is None or r.marker.evaluate({'extra': ''}):\n"
        "        r.marker = None\n"
        "        print(r)\n"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def make_venv(directory: Path) -> None:
    """A virtual environment with pip.

    Raises:
        DeploymentError: none can be made.
    """
    try:
        venv.create(directory, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeploymentError(f"no virtual environment could be made: {error}") from None


def installed(python: str, arguments: list[str], say: Say, *, quietly: bool = False) -> None:
    """Install packages with uv where it is there, else with pip.

    Args:
        arguments: requirements and options that both know.
        quietly: leave the error to the caller.

    Raises:
        DeploymentError: they cannot be installed.
    """
    uv = shutil.which("uv")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command = [uv, "pip", "install", "--python", python] if uv else pip
    variables = settings_of_pip(python) if uv else {}
    try:
        followed([*command, *arguments], variables, say)
    except _FailedError as error:
        if quietly:
            raise
        raise _failure(error) from None


def _failure(error: _FailedError) -> DeploymentError:
    lines = str(error).strip().splitlines()[-_SHOWN_LINES:]
    return DeploymentError("it could not be installed:\n" + "\n".join(f"  {x}" for x in lines))


def followed(command: Sequence[str], variables: Mapping[str, str], say: Say) -> None:
    """Run a command, and say every few seconds how far it is.

    Raises:
        _FailedError: it ended with an error.
    """
    # pip in an environment of its own is not to be told of another one's packages.
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            env={**own, **variables},
        )  # fmt: skip
        began = said = time.monotonic()
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if time.monotonic() - said >= _SAID_EVERY_SECONDS:
                    said = time.monotonic()
                    say(f"  {said - began:.0f} s: {_last_line(output.fileno())}")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        if process.returncode:
            raise _FailedError(output.read())


def _last_line(file: int) -> str:
    size = os.fstat(file).st_size
    text = os.pread(file, 2000, max(0, size - 2000)).decode("utf-8", errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1].strip(), 100) if lines else "starting"


def settings_of_pip(python: str) -> dict[str, str]:
    """Where pip looks, as settings of uv, which does not read pip's."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return uv_settings(listed.stdout, os.environ)


def uv_settings(listed: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Settings of uv that are not made yet, from what ``pip config list`` prints."""
    settings = dict(re.findall(r"^(\S+)='(.*)'$", listed, re.M))
    found = {}
    for name, variable in (
        ("index-url", "UV_DEFAULT_INDEX"), ("extra-index-url", "UV_INDEX"),
        ("find-links", "UV_FIND_LINKS"), ("cert", "SSL_CERT_FILE"),
    ):  # fmt: skip
        keys = [f"{section}.{name}" for section in (":env:", "install", "global")]
        values = [settings[key] for key in keys if key in settings]
        if values and variable not in environ:
            found[variable] = values[0]
    return found


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())

"""Which Dynamo runs: a release that is installed, wheels, or the Python of an environment."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import msgspec
from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from pytest_dynamo_bench.dynamo.kept import KeptEnvironment
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.plain_text import one_line

INSTALL_COMMAND = "python -m pytest_dynamo_bench install-dynamo"
INSTALL_OWN = "install it with: pip install 'pytest-dynamo-bench[local]'"
_INSIDE = Path(__file__).with_name("inside")
_RELEASE = re.compile(r"\d+(\.\d+)+[a-z0-9.+]*")
_LONGEST_SECONDS = 120.0
# Those that something here asks for by name.
_MODULES = (
    "dynamo.frontend", "dynamo.mocker", "dynamo.replay", "dynamo._core", "PIL", "nixl", "nixl_cu13",
)  # fmt: skip
# Variables by which another Python would find the packages of pytest's.
_OF_A_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class DynamoEnvironment:
    """A Dynamo that can be run.

    Attributes:
        python: the interpreter that has it.
        version: of ai-dynamo, as that interpreter says.
        source: how it was asked for; empty for that of this interpreter.
        modules: modules that are asked for by name, of those that it has, with their files.
    """

    python: str
    version: str
    source: str = ""
    modules: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __str__(self) -> str:
        named = self.source in ("", self.version)
        return f"Dynamo {self.version}" + ("" if named else f" of {self.source}")

    @property
    def build(self) -> str:
        """The version; of what somebody builds themselves also which build of it."""
        library = self.modules.get("dynamo._core")
        if not (self.source and library and Path(library).exists()):
            return self.version
        found = Path(library).stat()
        return f"{self.version} {found.st_size} {found.st_mtime_ns}"

    def ask(self, program: str, given: bytes = b"", *arguments: str) -> bytes:
        """What a program of ``inside/`` writes when it is given something, in its Python.

        Raises:
            TargetError: it fails.
        """
        try:
            return _written(self.python, program, given, arguments)
        except (OSError, subprocess.SubprocessError) as error:
            raise TargetError(f"{self} does not answer: {_said(error)}") from None


class Named(Protocol):
    """What names the Dynamo of each of its programs, such as a configuration."""

    @property
    def name(self) -> str:
        """Its name, for errors."""

    @property
    def dynamos(self) -> Mapping[str, str | None]:
        """Program to Dynamo, as :func:`resolve` takes it."""


def dynamos_of(configuration: Named) -> dict[str, DynamoEnvironment]:
    """The Dynamo of each program of a configuration.

    Raises:
        TargetError: as for :func:`resolve`; names the configuration.
    """
    try:
        return {role: resolve(spec) for role, spec in configuration.dynamos.items()}
    except TargetError as error:
        raise TargetError(f"configuration {configuration.name!r}: {error}") from None


def interpreter(spec: str | None) -> str:
    """The Python of the Dynamo that somebody asks for, which is not asked anything.

    Raises:
        TargetError: it is not there.
    """
    return sys.executable if spec is None else str(_python_of(spec))


def variables_for(spec: str | None, given: Mapping[str, str]) -> dict[str, str]:
    """Of the variables of this process those that programs of a Dynamo may get."""
    return {k: v for k, v in given.items() if spec is None or k not in _OF_A_PYTHON}


class _Described(msgspec.Struct):
    version: str
    modules: dict[str, str]


def resolve(spec: str | None) -> DynamoEnvironment:
    """The Dynamo that somebody asks for.

    Args:
        spec: a release that ``install-dynamo`` has installed; a directory with wheels, or wheels
            with commas between them, that it has installed; the Python of an environment, or the
            directory of a virtual one; None for the Dynamo of this interpreter.

    Raises:
        TargetError: there is none; the message says what to do.
    """
    python = interpreter(spec)
    try:
        found = _described(python)
    except (OSError, subprocess.SubprocessError, msgspec.DecodeError) as error:
        raise TargetError(f"dynamo={spec!r}: {python} is no Python: {_said(error)}") from None
    if not found.version:
        if spec is None:
            raise TargetError(
                f"Dynamo is not installed here; {INSTALL_OWN}; or name the Dynamo that is meant "
                "with --dynamo-version"
            )
        raise TargetError(
            f"dynamo={spec!r}: {python} has no Dynamo; install it there with: {python} -m pip "
            "install ai-dynamo; or give the Python of another environment, or a release"
        )
    return DynamoEnvironment(python, found.version, spec or "", found.modules)


def kept_environment(specs: Sequence[str]) -> KeptEnvironment:
    """Where ``install-dynamo`` keeps a release, or what was made of wheels.

    Raises:
        TargetError: there are no such wheels.
    """
    if len(specs) == 1 and _RELEASE.fullmatch(specs[0]):
        return KeptEnvironment.named(f"dynamo-{specs[0]}")
    files = wheels(specs)
    version = ""
    for wheel in files:
        name, found, _, _ = parse_wheel_filename(wheel.name)
        version = str(found) if name == "ai-dynamo" else version or str(found)
    states = tuple((wheel, wheel.stat().st_size, wheel.stat().st_mtime_ns) for wheel in files)
    return KeptEnvironment.named(f"dynamo-{version}-{_digest(states)[:10]}")


@cache
def _digest(states: tuple[tuple[Path, int, int], ...]) -> str:
    """Of names and contents of wheels with their sizes and times.

    Every configuration asks several times, and wheels have 75 MB.
    """
    digest = hashlib.sha256()
    for wheel, _, _ in states:
        digest.update(wheel.name.encode())
        digest.update(wheel.read_bytes())
    return digest.hexdigest()


def wheels(specs: Sequence[str]) -> list[Path]:
    """Dynamo's wheels among files and directories, which this machine can use.

    Raises:
        TargetError: there is none, several are of one package, or one is for another platform.
    """
    files: list[Path] = []
    for spec in specs:
        path = Path(spec).expanduser()
        if not path.exists():
            raise TargetError(
                f"dynamo: {spec!r} is neither a release, such as 1.6.1, nor a file or directory "
                "that is there"
            )
        files += sorted(path.glob("ai_dynamo*.whl")) if path.is_dir() else [path]
    if not files:
        raise TargetError(
            f"dynamo: there is no wheel of Dynamo (ai_dynamo*.whl) in {', '.join(specs)}"
        )
    by_package: dict[str, list[Path]] = {}
    usable = set(sys_tags())
    for file in files:
        try:
            name, _, _, tags = parse_wheel_filename(file.name)
        except InvalidWheelFilename as error:
            raise TargetError(f"dynamo: {file} is no wheel: {error}") from None
        if not name.startswith("ai-dynamo"):
            raise TargetError(f"dynamo: {file} is a wheel of {name}, not of Dynamo")
        if not tags & usable:
            raise TargetError(
                f"dynamo: {file.name} is for another platform than this Python "
                f"{platform.python_version()} on {platform.machine()}; give a wheel that was built "
                "for it"
            )
        by_package.setdefault(name, []).append(file)
    for package, several in by_package.items():
        if len(several) > 1:
            raise TargetError(
                f"dynamo: there are {len(several)} wheels of {package} that this Python could use "
                f"({', '.join(file.name for file in several)}); name the one that is meant"
            )
    return [file for (file,) in by_package.values()]


def _python_of(spec: str) -> Path:
    """The interpreter that is meant, not followed to where its name links."""
    path = Path(spec).expanduser()
    if not _RELEASE.fullmatch(spec):
        if (path / "bin" / "python").exists():
            return (path / "bin" / "python").absolute()
        if path.is_file() and path.suffix != ".whl":
            return path.absolute()
    specs = spec.split(",")
    kept = kept_environment(specs)
    if not kept.complete:
        what = "was not installed to the end" if kept.begun else "is not installed"
        raise TargetError(
            f"Dynamo {spec} {what}; install it with: {INSTALL_COMMAND} {' '.join(specs)}"
        )
    return kept.python


@cache
def _described(python: str) -> _Described:
    return msgspec.json.decode(_written(python, "describe.py", b"", _MODULES), type=_Described)


def _written(python: str, program: str, given: bytes, arguments: Sequence[str]) -> bytes:
    # Nothing of this environment steers Dynamo, and no module here is taken for one of its own.
    variables = variables_for(None if python == sys.executable else python, os.environ)
    own = {k: v for k, v in variables.items() if not k.startswith("DYN_")}
    own |= {"PYTHONSAFEPATH": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [python, str(_INSIDE / program), *arguments], input=given, env=own,
        capture_output=True, timeout=_LONGEST_SECONDS, check=True,
    ).stdout  # fmt: skip


def _said(error: Exception) -> str:
    said = getattr(error, "stderr", b"") or b""
    return one_line(said.decode("utf-8", errors="replace") or str(error))[-300:]

"""Environments that this package makes and keeps in the user's directory of caches."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.errors import TargetError

_MARKER = "dynamo-bench.json"


def caches(environ: Mapping[str, str] | None = None) -> Path:
    """Where environments are kept: a directory of ours among the user's caches."""
    given = (os.environ if environ is None else environ).get("XDG_CACHE_HOME", "")
    root = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    return root / "pytest-dynamo-bench"


@dataclass(frozen=True)
class KeptEnvironment:
    """A virtual environment that is there whole, or not at all.

    It is made beside its place under another name, and its marker is written last.

    Attributes:
        directory: of the environment.
    """

    directory: Path

    @classmethod
    def named(cls, name: str) -> KeptEnvironment:
        """That of a name, in the user's directory of caches."""
        return cls(caches() / name)

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its ``site-packages``."""
        found = sorted(self.directory.glob("lib/python*/site-packages"))
        return found[0] if found else self.directory / "lib" / "site-packages"

    @property
    def marker(self) -> Mapping[str, Any]:
        """What was noted when it was complete; empty before."""
        try:
            found = json.loads((self.directory / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def complete(self) -> bool:
        """Whether all of it is there; not where the Python it was made with has gone."""
        return bool(self.marker) and self.python.exists()

    @property
    def begun(self) -> bool:
        """Whether something of it is there."""
        return self.directory.exists() or self.unfinished.exists()

    @property
    def unfinished(self) -> Path:
        """Where it is made."""
        return self.directory.with_name(f".{self.directory.name}.unfinished")

    @contextmanager
    def making(self, noted: Mapping[str, Any], *, keep: bool = False) -> Iterator[KeptEnvironment]:
        """Make it: what is in place at the end of the block is complete.

        Args:
            noted: what the marker says of it.
            keep: of a block that fails, keep what is there, to go on from it.

        Raises:
            TargetError: another process makes it at the moment.
        """
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            made = KeptEnvironment(self.unfinished)
            if not keep:
                shutil.rmtree(made.directory, ignore_errors=True)
            try:
                made.directory.mkdir(exist_ok=True)
                yield made
                text = json.dumps(dict(noted), indent=2)
                (made.directory / _MARKER).write_text(text, encoding="utf-8")
                shutil.rmtree(self.directory, ignore_errors=True)
                made.directory.rename(self.directory)
            except BaseException:
                if not keep:
                    shutil.rmtree(made.directory, ignore_errors=True)
                raise

    def remove(self) -> None:
        """Remove it, or what there is of it.

        Raises:
            TargetError: another process makes it at the moment.
        """
        with self._alone():
            for directory in (self.directory, self.unfinished):
                shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self.directory.with_name(f".{self.directory.name}.lock")
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise TargetError(
                    f"{self.directory.name} is being installed by another process; wait for it"
                ) from None
            yield


def all_kept() -> list[KeptEnvironment]:
    """Those that are there, and those that were not made to the end."""
    found: dict[str, KeptEnvironment] = {}
    for path in sorted(caches().glob("*")) + sorted(caches().glob(".*.unfinished")):
        name = path.name.removeprefix(".").removesuffix(".unfinished")
        if path.is_dir() and name.startswith(("dynamo-", "vllm-")):
            found.setdefault(name, KeptEnvironment.named(name))
    return list(found.values())

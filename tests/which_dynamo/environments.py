"""Environments with a Dynamo that is made up, and those of real releases that are here."""

from __future__ import annotations

import os
import venv
from pathlib import Path

import pytest

from pytest_dynamo_bench.dynamo.kept import all_kept

# Pythons with other releases, with ":" between them; those that install-dynamo made are found.
VARIABLE = "DYNAMO_BENCH_TEST_DYNAMO"


def made_up(directory: Path, version: str, modules=("frontend", "mocker", "replay")) -> Path:
    """A virtual environment that says it has a Dynamo; its Python."""
    venv.create(directory, with_pip=False, symlinks=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    if version:
        information = packages / f"ai_dynamo-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: ai-dynamo\nVersion: {version}\n"
        )
    for module in modules:
        (packages / "dynamo" / module).mkdir(parents=True)
        (packages / "dynamo" / module / "__init__.py").touch()
    return directory / "bin" / "python"


def others() -> list[str]:
    """The Pythons of other releases that are here."""
    named = [path for path in os.environ.get(VARIABLE, "").split(":") if path]
    kept = [item for item in all_kept() if item.directory.name.startswith("dynamo-")]
    return named or [str(item.python) for item in kept if item.complete]


each_other = pytest.mark.parametrize("python", others() or [""])


def skip_unless_there(python: str) -> None:
    if not python:
        pytest.skip(f"needs another release: install-dynamo 1.6.1, or its Python in {VARIABLE}")

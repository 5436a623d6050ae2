"""A copy of the clone, with what a reader would have, and commands run in it."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

from tests.published.catalogue import Runs
from tests.published.commands import PROJECT, blocks

_LONGEST_SECONDS = 300


class Workspace:
    """Runs each command once, and first what it builds on.

    What commands need is real: sessions that were measured, the shipped trace, the module and
    the description of a cluster that the documentation prints.
    """

    def __init__(self, directory: Path, catalogue: dict[str, Runs]) -> None:
        self.directory = directory
        self.seconds: dict[str, float] = {}
        self._catalogue = catalogue
        self._ran: dict[str, subprocess.CompletedProcess[str]] = {}
        for name in ("benchmarks", "calibration", "docs", "examples", "reports/samples"):
            shutil.copytree(PROJECT / name, directory / name)
        for name in ("README.md", "conftest.py", "pyproject.toml"):
            shutil.copy(PROJECT / name, directory)
        sample = PROJECT / "reports" / "samples" / "qwen3-32b-local"
        for name in ("2026-11-24T21-06-10Z-local", "2026-11-25T21-06-10Z-local", "old", "new"):
            shutil.copytree(sample, directory / "reports" / name)
        module = next(
            text for name, text in blocks("python") if name == "docs/write-a-benchmark.md"
        )
        for name in ("MODULE.py", "BENCHMARK.py"):
            (directory / name).write_text(module, encoding="utf-8")
        cluster = next(text for name, text in blocks("yaml") if name == "docs/run-on-a-cluster.md")
        (directory / "my-cluster.yaml").write_text(cluster, encoding="utf-8")
        shipped = resources.files("pytest_dynamo_bench") / "data"
        (trace,) = (item for item in shipped.iterdir() if item.name.endswith(".jsonl.xz"))
        lines = lzma.decompress(trace.read_bytes()).decode().splitlines(keepends=True)
        for name in ("my-trace.jsonl", "mine.jsonl"):
            (directory / name).write_text("".join(lines[:1000]), encoding="utf-8")

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a published command, once, after what it builds on."""
        if command not in self._ran:
            how = self._catalogue[command]
            for earlier in how.after:
                self.run(earlier)
            if how.prepare:
                prepared = self.shell(how.prepare, how.environment)
                assert prepared.returncode == 0, prepared.stdout + prepared.stderr
            text = command
            for printed, given in how.given.items():
                assert printed in text, f"{printed!r} is not in the command any longer"
                text = text.replace(printed, given)
            began = time.monotonic()
            self._ran[command] = self.shell(text, how.environment)
            self.seconds[command] = time.monotonic() - began
        return self._ran[command]

    def shell(self, text: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell, as somebody who has the environment of CI activated."""
        variables = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"PYTEST_|GITHUB_|KUBE|DYNAMO_|DYN_|VIRTUAL_ENV$", name)
        }
        variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
        # The commands that remove an environment are real, and so are the user's environments.
        variables["XDG_CACHE_HOME"] = str(self.directory / "caches")
        return subprocess.run(
            ["bash", "-c", text], cwd=self.directory, env={**variables, **environment},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LONGEST_SECONDS,
        )  # fmt: skip

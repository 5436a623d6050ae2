"""Installing a Dynamo, with a pip that is made up: whole, or not at all."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.dynamo import install as installing
from pytest_dynamo_bench.dynamo.environment import kept_environment
from pytest_dynamo_bench.dynamo.install import followed, install, uv_settings
from pytest_dynamo_bench.dynamo.kept import all_kept, caches
from pytest_dynamo_bench.dynamo.option_check import ParsedCommand
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from tests.which_dynamo.environments import made_up

METADATA = """\
Metadata-Version: 2.1
Name: ai-dynamo
Version: 7.8.9
Requires-Dist: ai-dynamo-runtime==7.8.9
Requires-Dist: aisimulate==0.1; python_version >= "3.11"
Requires-Dist: old-only>=1; python_version < "3"
Requires-Dist: vllm; extra == "vllm"
Requires-Dist: pyzmq>=26
"""
RUNTIME = "Metadata-Version: 2.1\nName: ai-dynamo-runtime\nVersion: 7.8.9\nRequires-Dist: uvloop\n"


class Pip:
    """Does what matters of installing, and keeps what it was asked for."""

    def __init__(self, without=(), raising=None):
        self.asked, self.without, self.raising = [], without, raising

    def __call__(self, command, variables, say):
        what = list(command[command.index("install") + 1 :])
        what = [each for each in what if each not in ("--disable-pip-version-check", "--no-input")]
        self.asked.append(what)
        if self.raising:
            raise self.raising
        if what[0].startswith("ai-dynamo==") and self.without:
            raise installing._FailedError(f"Collecting x\nerror: {self.without[0]} failed to build")
        root = Path(command[0]).parents[1]
        (packages,) = root.glob("lib/python*/site-packages")
        for name, text in (("ai_dynamo", METADATA), ("ai_dynamo_runtime", RUNTIME)):
            if any(each.partition("==")[0].replace("-", "_") == name for each in what):
                (packages / f"{name}-7.8.9.dist-info").mkdir()
                (packages / f"{name}-7.8.9.dist-info" / "METADATA").write_text(text)


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(installing.shutil, "which", lambda name: None)
    monkeypatch.setattr(installing, "parse_command", lambda *given: ParsedCommand())
    # pip's own copy of packaging evaluates the markers, so that pip is needed there.
    real = installing.make_venv
    monkeypatch.setattr(installing, "make_venv", lambda directory: made_up(directory, "", ()))
    monkeypatch.setattr(installing, "requirements", _with_pip_of_this_one(installing.requirements))
    return real


def _with_pip_of_this_one(real):
    def requirements(python):
        (packages,) = Path(python).parents[1].glob("lib/python*/site-packages")
        vendored = packages / "pip" / "_vendor"
        if not vendored.exists():
            vendored.mkdir(parents=True)
            (packages / "pip" / "__init__.py").touch()
            (vendored / "__init__.py").touch()
            import packaging

            (vendored / "packaging").symlink_to(Path(packaging.__file__).parent)
        return real(python)

    return requirements


def test_what_pip_can_install_it_installs(monkeypatch):
    pip = Pip()
    monkeypatch.setattr(installing, "followed", pip)
    said = []
    kept = install(["7.8.9"], said.append)
    assert pip.asked[0] == ["ai-dynamo==7.8.9"] and "pillow" in pip.asked[1] and len(pip.asked) == 2
    assert kept == kept_environment(["7.8.9"]) and kept.complete
    assert kept.marker == {"installed": ["7.8.9"], "without": [], "version": "7.8.9"}
    install(["7.8.9"], said.append)
    assert len(pip.asked) == 2 and "already installed" in said[-1]


def test_without_what_cannot_be_downloaded_it_installs_the_rest_and_says_so(monkeypatch):
    pip = Pip(without=["aisimulate"])
    monkeypatch.setattr(installing, "followed", pip)
    said = []
    kept = install(["7.8.9"], said.append)
    assert pip.asked[1:4] == [
        ["--no-deps", "ai-dynamo==7.8.9"],
        ["--no-deps", "ai-dynamo-runtime==7.8.9"],
        ["pyzmq>=26", "uvloop"],
    ]
    assert kept.complete and kept.marker["without"] == ["aisimulate"]
    assert "without aisimulate, which could not be installed: the mocker's" in said[-1]


@pytest.mark.parametrize(
    ("raised", "error", "told"),
    [
        (
            installing._FailedError(
                "ERROR: Could not find … (from versions: 1.0, 1.1.dev2, 1.2)\n"
                "ERROR: No matching distribution found for ai-dynamo==7.8.9"
            ),
            TargetError,
            "there is no ai-dynamo==7.8.9 .*; there are 1.0, 1.2; nothing is kept",
        ),
        (installing._FailedError("no network"), DeploymentError, "be installed:\n  no network"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_what_fails_leaves_nothing(raised, error, told, monkeypatch):
    monkeypatch.setattr(installing, "followed", Pip(raising=raised))
    with pytest.raises(error, match=told):
        install(["7.8.9"], lambda text: None)
    assert all_kept() == []
    assert [path.name for path in caches().iterdir()] == [".dynamo-7.8.9.lock"]


def test_what_does_not_work_is_not_kept(monkeypatch):
    monkeypatch.setattr(installing, "followed", Pip())
    monkeypatch.setattr(
        installing, "parse_command", lambda *given: ParsedCommand("No module named 'uvloop'")
    )
    with pytest.raises(DeploymentError, match="frontend does not work; nothing is kept: No module"):
        install(["7.8.9"], lambda text: None)
    assert all_kept() == []


def test_a_command_says_how_far_it_is_and_is_ended_with_us(monkeypatch):
    monkeypatch.setattr(installing, "_SAID_EVERY_SECONDS", 0.3)
    said = []
    code = "import time; print('Downloading it', flush=True); time.sleep(1)"
    followed([sys.executable, "-c", code], {}, said.append)
    assert said and "Downloading it" in said[-1]
    with pytest.raises(installing._FailedError, match="broken"):
        followed([sys.executable, "-c", "raise SystemExit('broken')"], {}, said.append)

    def interrupt(text):
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        followed([sys.executable, "-c", "import time; time.sleep(60)"], {}, interrupt)
    assert time.monotonic() - began < 30


def test_uv_looks_where_pip_does():
    listed = "global.extra-index-url='https://a.test/ https://b.test/'\nglobal.find-links='/w'\n"
    assert uv_settings(listed, {"UV_FIND_LINKS": "/own"}) == {
        "UV_INDEX": "https://a.test/ https://b.test/"
    }


def test_the_command_lists_and_removes(monkeypatch, capsys):
    monkeypatch.setattr(installing, "followed", Pip())
    assert main(["install-dynamo", "7.8.9", "--list"]) == 0
    out = capsys.readouterr().out
    assert "ready; use it with: pytest benchmarks/ --dynamo-version=7.8.9" in out
    assert "dynamo-7.8.9: " in out and "not to the end" not in out
    assert main(["install-dynamo", "--remove", "7.8"]) == 2
    assert "there is no environment 'dynamo-7.8'; did you mean 'dynamo-7.8.9'?" in (
        capsys.readouterr().err
    )
    assert main(["install-dynamo", "--remove", "7.8.9"]) == 0
    assert all_kept() == []
    assert main(["install-dynamo"]) == 2

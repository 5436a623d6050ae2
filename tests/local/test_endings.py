"""However a session of the real Dynamo ends, nothing is left behind, and it says what happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.local.test_local_target import dynamo_processes, scratch_directories

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

BENCHMARK = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(2, tp=2, kv_blocks=4000)])
benchmark = Benchmark(
    name="example", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 4),
    traffic=MooncakeTrace("conversation"), configurations=[AGG], claims=[],
)

def test_ends(comparison):
    pass
"""


def ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def session(tmp_path):
    """Start pytest on a benchmark, and wait until it is measuring."""
    (tmp_path / "test_example.py").write_text(BENCHMARK)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    started = []

    def start(preexec=None, *arguments):
        log = (tmp_path / "out").open("wb")
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--dynamo-seconds=30", *arguments],
            cwd=tmp_path, stdout=log, stderr=log, preexec_fn=preexec,
            env={**os.environ, "HOME": str(tmp_path / "home")},
        )  # fmt: skip
        log.close()
        started.append(process)
        deadline = time.monotonic() + 60
        while "agg: measuring" not in (tmp_path / "out").read_text():
            assert process.poll() is None, (tmp_path / "out").read_text()
            assert time.monotonic() < deadline, (tmp_path / "out").read_text()
            time.sleep(0.05)
        return process, lambda: (tmp_path / "out").read_text()

    yield start
    for process in started:
        process.kill()
        process.wait()


def all_gone(processes, before):
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive and scratch_directories() <= before:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("number", "preexec"),
    [
        pytest.param(signal.SIGINT, None, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, None, id="kill"),
        pytest.param(signal.SIGTERM, ignore_interrupts, id="kill where interrupts are ignored"),
        pytest.param(signal.SIGKILL, None, id="kill -9"),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(session, number, preexec, tmp_path):
    before = scratch_directories()
    process, output = session(preexec)
    processes = dynamo_processes()
    names = " ".join(" ".join(p.cmdline()) for p in processes)
    assert "dynamo.frontend" in names
    assert "dynamo.mocker" in names
    os.kill(process.pid, number)
    code = process.wait(20)
    assert all_gone(processes, before)
    assert not (tmp_path / "home").exists()
    if number != signal.SIGKILL:
        assert code == pytest.ExitCode.INTERRUPTED
        assert "KeyboardInterrupt" in output()
        assert "agg: 1" not in output().split("KeyboardInterrupt")[1]

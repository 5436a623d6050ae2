"""Whatever happens, no process and no directory is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_dynamo_bench.targets.local.processes import (
    Processes,
    ProcessSpec,
    tail,
)

pytestmark = pytest.mark.anyio

SLEEP = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
WITH_CHILD = (
    "import subprocess, sys; "
    f"print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
)


def spec(tmp_path, name, code):
    return ProcessSpec(
        name, [sys.executable, "-c", code], dict(os.environ), tmp_path / f"{name}.log"
    )


@pytest.fixture
def scratch(tmp_path):
    directory = tmp_path / "scratch"
    directory.mkdir()
    (directory / "file").write_text("content")
    return directory


def gone(pid, seconds=5.0):
    """Whether a process ends within a time; a zombie that its parent has to reap is gone."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


async def started(processes, count):
    while len(processes.pids) < count:
        await asyncio.sleep(0.01)


async def test_all_end_when_the_context_closes(tmp_path, scratch):
    specs = [spec(tmp_path, "plain", SLEEP), spec(tmp_path, "stubborn", STUBBORN)]
    async with Processes(specs, scratch) as processes:
        await started(processes, 2)
        pids = list(processes.pids.values())
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert all(gone(pid) for pid in pids)
    assert not scratch.exists()


async def test_children_of_processes_end_too(tmp_path, scratch):
    one = spec(tmp_path, "parent", WITH_CHILD)
    async with Processes([one], scratch):
        while not one.log.exists() or not one.log.read_text().strip():
            await asyncio.sleep(0.01)
        child = int(one.log.read_text())
        assert psutil.pid_exists(child)
    assert gone(child)


async def test_a_death_is_noticed_and_told_with_the_end_of_the_log(tmp_path, scratch):
    specs = [
        spec(tmp_path, "lives", SLEEP),
        spec(tmp_path, "dies", "print('out of memory'); raise SystemExit(3)"),
    ]
    async with Processes(specs, scratch) as processes:
        told = await asyncio.wait_for(processes.died(), 10)
        assert "dies ended with exit status 3" in told
        assert "  out of memory" in told


async def test_a_death_by_signal_is_named(tmp_path, scratch):
    async with Processes([spec(tmp_path, "one", SLEEP)], scratch) as processes:
        await started(processes, 1)
        os.kill(processes.pids["one"], signal.SIGKILL)
        assert "one ended by signal SIGKILL" in await asyncio.wait_for(processes.died(), 10)


async def test_a_program_that_does_not_exist_is_told(tmp_path, scratch):
    missing = ProcessSpec("one", ["/nonexistent/program"], {}, tmp_path / "one.log")
    async with Processes([spec(tmp_path, "lives", SLEEP), missing], scratch) as processes:
        told = await asyncio.wait_for(processes.died(), 10)
        assert "could not be started" in told
        pids = list(processes.pids.values())
    assert all(gone(pid) for pid in pids)
    assert not scratch.exists()


async def test_a_ctrl_c_while_processes_are_ended_is_not_lost(tmp_path, scratch):
    async def bring_up_and_down():
        async with Processes([spec(tmp_path, "stubborn", STUBBORN)], scratch) as processes:
            await started(processes, 1)
            asyncio.get_running_loop().call_later(0.05, task.cancel)

    task = asyncio.ensure_future(bring_up_and_down())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not scratch.exists()


async def test_cancelling_in_the_middle_leaves_nothing(tmp_path, scratch):
    pids = []

    async def deploy():
        async with Processes([spec(tmp_path, "one", STUBBORN)], scratch) as processes:
            await started(processes, 1)
            pids.extend(processes.pids.values())
            await asyncio.sleep(600)

    task = asyncio.create_task(deploy())
    while not pids:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()  # Ctrl-C a second time, while things are being taken down
    await asyncio.gather(task, return_exceptions=True)
    assert all(gone(pid) for pid in pids)
    assert not scratch.exists()


PLUGIN = """
import asyncio, json, os, sys
from pathlib import Path
from pytest_dynamo_bench.targets.local.processes import Processes, ProcessSpec

async def main():
    out = Path(sys.argv[1])
    specs = [ProcessSpec(str(i), [sys.executable, "-c", sys.argv[2]], dict(os.environ),
                         out / f"{i}.log") for i in range(2)]
    async with Processes(specs, out / "scratch") as processes:
        while len(processes.pids) < 2:
            await asyncio.sleep(0.01)
        pids = [*processes.pids.values(), processes._supervisor.pid]
        (out / "pids.tmp").write_text(json.dumps(pids))
        (out / "pids.tmp").rename(out / "pids.json")
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("victim", ["plugin", "supervisor"])
def test_kill_9_leaves_nothing(tmp_path, scratch, victim):
    plugin = subprocess.Popen([sys.executable, "-c", PLUGIN, str(tmp_path), STUBBORN])
    try:
        pids_file = tmp_path / "pids.json"
        while not pids_file.exists():
            assert plugin.poll() is None
            time.sleep(0.02)
        *workers, supervisor = json.loads(pids_file.read_text())
        os.kill(plugin.pid if victim == "plugin" else supervisor, signal.SIGKILL)
        assert all(gone(pid) for pid in (*workers, supervisor))
        if victim == "plugin":
            deadline = time.monotonic() + 5
            while Path(scratch).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not scratch.exists()
    finally:
        plugin.kill()
        plugin.wait()


def test_a_log_tail_survives_what_logs_contain(tmp_path):
    log = tmp_path / "log"
    assert "no log" in tail(log)
    log.write_bytes(b"")
    assert tail(log) == "  (empty)"
    log.write_bytes(b"x" * 1_000_000 + b"\n\xff\xfe\n" + b"line\n" * 50)
    assert len(tail(log)) < 4000

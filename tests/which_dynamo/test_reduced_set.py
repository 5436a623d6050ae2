"""What every release that is tested beside the extra's has to pass, from end to end.

The rest of the tests runs on the extra's release only: what differs between releases is asked of a
release and takes the same way through this package, and these tests are that way.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.local.commands import check_options
from tests.any_configuration import benchmark_with
from tests.dynamo_parsers import Parsers
from tests.local.test_endings import all_gone, session  # noqa: F401
from tests.local.test_local_target import dynamo_processes, scratch_directories
from tests.test_real_parsers import BENCHMARKS, SHIPPED, TUNED, local_commands
from tests.which_dynamo.environments import each_other, skip_unless_there

PROJECT = Path(__file__).parents[2]
LOOPBACK = {"127.0.0.1", "::1"}


def listening(processes):
    """Address and port of every socket that waits for somebody, as ``ss -ltn`` shows."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return found


def still_listening(sockets):
    for address, port in sockets:
        with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
            yield address, port


def benchmark_run(python, target, directory, watch=lambda: None):
    """A shipped benchmark with its first 20 requests; every stored run."""
    command = [
        sys.executable, "-m", "pytest", str(PROJECT / "benchmarks" / "qwen3_32b_kv_routing.py"),
        "-k", "promoted-configuration-lowers-ttft", f"--dynamo-version={python}",
        f"--dynamo-target={target}", "--dynamo-scale=smoke", f"--dynamo-reports={directory}",
        "--dynamo-invalid=skip", "--dynamo-inconclusive=skip", "-p", "no:cacheprovider",
    ]  # fmt: skip
    printed = directory.with_suffix(".txt")
    with printed.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=directory.parent, stdout=output, stderr=output,
            env={**os.environ, "DYNAMO_BENCH_REQUESTS": "20"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < deadline:
            watch()
            time.sleep(0.2)
    finally:
        process.terminate()
        code = process.wait(30)
    assert code == 0, printed.read_text()
    runs = [json.loads(path.read_text()) for path in directory.glob("*/*/*/run.json")]
    assert {run["configuration"]["name"] for run in runs} == {"agg-round-robin", "disagg-kv-router"}
    for run in runs:
        assert (run["requests"], run["failed"], run["problems"]) == (20, 0, [])
        assert run["dynamo"] == resolve(python).version
    return runs


@pytest.mark.alone
@pytest.mark.slow
@each_other
def test_a_benchmark_on_this_machine_is_open_to_nobody_else_and_leaves_nothing(python, tmp_path):
    skip_unless_there(python)
    before, sockets, processes = scratch_directories(), set(), set()

    def look():
        processes.update(dynamo_processes())
        sockets.update(listening(dynamo_processes()))

    runs = benchmark_run(python, "local", tmp_path / "reports", look)
    split = next(run for run in runs if run["configuration"]["name"] == "disagg-kv-router")
    assert split["observed"]["workers"] == 8
    assert len(sockets) >= 3 * len(runs) and {address for address, _ in sockets} <= LOOPBACK
    assert all_gone(processes, before)
    assert not list(still_listening(sockets))


@pytest.mark.slow
@each_other
def test_a_benchmark_is_simulated(python, tmp_path):
    skip_unless_there(python)
    runs = benchmark_run(python, "replay", tmp_path / "reports")
    assert all(run["simulated"] for run in runs)


@pytest.mark.alone
@pytest.mark.slow
@each_other
def test_kill_9_of_pytest_leaves_no_process_no_port_and_no_directory(python, session, tmp_path):  # noqa: F811
    skip_unless_there(python)
    before = scratch_directories()
    process, _ = session(None, f"--dynamo-version={python}")
    processes = dynamo_processes()
    sockets = listening(processes)
    named = [p for p in processes if "dynamo.frontend" in p.cmdline()]
    assert named and named[0].cmdline()[0] == python
    assert len(sockets) >= 3 and {address for address, _ in sockets} <= LOOPBACK
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    assert all_gone(processes, before)
    assert not list(still_listening(sockets))
    assert not (tmp_path / "home").exists()


@each_other
def test_its_parsers_take_every_command_line_of_this_machine(python):
    skip_unless_there(python)
    parsers = Parsers(python)
    assert "--bogus" in parsers.ask("dynamo.mocker", ("--bogus",), ())
    asked = 0
    for name, arm in [*SHIPPED, (None, "tuned")]:
        found = BENCHMARKS[name].configuration(arm) if name else TUNED
        configuration = found.but(dynamo=python)
        benchmark = BENCHMARKS[name] if name else benchmark_with(configuration, "vllm")
        for program, argv, env in local_commands(benchmark, configuration):
            if argv[2].startswith("dynamo."):
                # With images the target says which Python runs it.
                assert argv[0] in (python, "python")
                said = parsers.ask(argv[2], tuple(argv[3:]), tuple(sorted(env.items())))
                assert not said, (name, arm, program)
                asked += 1
    assert asked > 2 * len(SHIPPED) - 10


@each_other
def test_its_options_are_checked_before_anything_is_brought_up(python):
    skip_unless_there(python)
    tuned = TUNED.but(dynamo=python)
    check_options(benchmark_with(tuned, "vllm"), tuned, images=False)
    wrong = tuned.but(frontend_args={"router-temperture": 1})
    with pytest.raises(TargetError, match=r"did you mean --router-temperature\?"):
        check_options(benchmark_with(wrong, "vllm"), wrong, images=False)

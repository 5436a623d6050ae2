"""Several simulations at a time: the same numbers, and nothing left of those that were ended."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from replay_bench import AGGREGATED, SPLIT, Silent, make_benchmark, make_traffic

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.replay.runner import Runner
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from tests.simulations import simulating, wait_for_simulations

pytest.importorskip("dynamo.replay")

KV = AGGREGATED.but(name="agg-kv", router="kv")
BENCHMARK = make_benchmark(AGGREGATED, KV, SPLIT)
MODULE = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
benchmark = Benchmark(
    name="small", question="Does it?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 8, 1),
    traffic=MooncakeTrace("conversation"), configurations=[AGG], claims=[],
)

def test_measured(comparison):
    assert comparison["agg"]
"""


def plan(directory, configurations, traffic, repeats=2):
    return [
        PlannedRun(BENCHMARK, item, traffic, directory / f"{item.name}-{repeat}", repeat)
        for repeat in range(repeats)
        for item in configurations
    ]


def test_they_are_the_runs_that_are_made_alone(tmp_path):
    planned = plan(tmp_path / "together", BENCHMARK.configurations, make_traffic())
    progress = Silent()
    together = list(ReplayTarget(runner=Runner(processes=3)).measure_all(planned, progress))
    assert progress.seen == (1200, 0, 1200)
    order = [(item.configuration.name, item.repeat) for item, _ in together]
    for name in ("agg", "agg-kv", "pd"):
        assert [repeat for of, repeat in order if of == name] == [0, 1]
    for item, run in together:
        alone = ReplayTarget().measure(
            dataclasses.replace(item, directory=tmp_path / "alone" / item.directory.name), Silent()
        )
        assert run.records == alone.records
    assert not list((tmp_path / "together").glob("*/replay-*/"))


def test_nothing_to_do_is_no_error():
    assert list(ReplayTarget().measure_all([], Silent())) == []


def test_one_that_fails_does_not_end_the_others(tmp_path):
    broken = SPLIT.but(name="broken", router="random")
    planned = plan(tmp_path, [AGGREGATED, broken, KV], make_traffic(40), repeats=1)
    outcomes = {
        item.configuration.name: outcome
        for item, outcome in ReplayTarget(runner=Runner(processes=2)).measure_all(planned, Silent())
    }
    assert "router 'random' cannot be simulated" in str(outcomes.pop("broken"))
    assert [len(run.records) for run in outcomes.values()] == [40, 40]


def test_those_under_way_are_ended_when_nobody_listens_any_more(tmp_path):
    quick, slow = make_traffic(20), make_traffic(20_000)
    planned = [
        PlannedRun(BENCHMARK, AGGREGATED, quick, tmp_path / "quick"),
        *plan(tmp_path, [KV, SPLIT], slow, repeats=2),
    ]
    runs = ReplayTarget(runner=Runner(processes=3)).measure_all(planned, Silent())
    first, _ = next(runs)
    assert first.traffic is quick
    for _ in range(1000):
        if simulating():
            break
        time.sleep(0.01)
    else:
        pytest.fail("no other simulation is under way")
    runs.close()
    assert not simulating() and not list(tmp_path.glob("*/replay-*/"))


def test_a_simulation_that_takes_too_long_is_an_outcome(tmp_path):
    planned = plan(tmp_path, [AGGREGATED, KV], make_traffic(5_000), repeats=1)
    target = ReplayTarget(runner=Runner(processes=2), timeout_seconds=0.05)
    outcomes = [outcome for _, outcome in target.measure_all(planned, Silent())]
    assert [type(outcome) for outcome in outcomes] == [DeploymentError] * 2
    assert all("took longer than 0.05 s" in str(outcome) for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "whole_group", "code"),
    [(signal.SIGINT, True, 2), (signal.SIGTERM, False, 2), (signal.SIGKILL, False, -9)],
)
def test_an_interrupted_session_leaves_nothing_behind(tmp_path, how, whole_group, code):
    (tmp_path / "test_small.py").write_text(MODULE)
    process = subprocess.Popen(
        [
            sys.executable, "-m", "pytest", "--dynamo-target=replay", "--dynamo-repeats=4",
            "--dynamo-replay-processes=2", "-p", "no:cacheprovider",
        ],
        cwd=tmp_path, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
        # Background jobs of a shell ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        children = wait_for_simulations(process, 2)
        os.killpg(process.pid, how) if whole_group else process.send_signal(how)
        told, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code, told
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    if how != signal.SIGKILL:
        assert "Traceback" not in told and "small: agg: simulating 4 runs, 2 at a time" in told
        assert not list(tmp_path.glob("reports/*/small/*/replay-*/"))
        assert not list(tmp_path.glob("reports/*/small/*/*/replay-*/"))

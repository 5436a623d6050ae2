"""Simulations on executors: the same numbers, none made twice, errors that say what to do."""

import argparse
import dataclasses
import pickle
import sys
import threading
import time
from pathlib import Path

import pytest
from replay_bench import AGGREGATED, SPLIT, Silent, make_benchmark, make_traffic

from pytest_dynamo_bench import Configuration, Worker
from pytest_dynamo_bench.attribution_runs import run_attribution
from pytest_dynamo_bench.dynamo.abilities import abilities
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.reports import stored_types
from pytest_dynamo_bench.sweep import Sweep
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.options import executor
from pytest_dynamo_bench.targets.replay import arguments
from pytest_dynamo_bench.targets.replay import runner as runners
from pytest_dynamo_bench.targets.replay.runner import Runner, SimulationCache
from pytest_dynamo_bench.targets.replay.simulation import versions
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from tests.simulations import simulating

pytest.importorskip("dynamo.replay")

KV = AGGREGATED.but(name="agg-kv", role="treatment", router="kv")
PROMOTED = SPLIT.but(name="pd-kv", role="promoted", router="kv")


def in_memory():
    return Runner(processes=2, cache=SimulationCache(memory={}))


def job(configuration=AGGREGATED, requests=30, **target):
    return ReplayTarget(**target).simulation(
        make_benchmark(configuration), configuration, make_traffic(requests)
    )


# --- local -----------------------------------------------------------------------------------


def test_a_job_is_data_that_names_no_place_of_this_machine():
    data = pickle.dumps(job(PROMOTED))
    assert str(Path(runners.__file__).parents[3]).encode() not in data
    assert pickle.loads(data).fingerprint == job(PROMOTED).fingerprint


def test_names_and_roles_are_no_part_of_a_fingerprint_but_all_else_is():
    same = job().fingerprint
    assert job(AGGREGATED.but(name="other", role="treatment", note="x")).fingerprint == same
    others = [
        job(AGGREGATED.but(block_size=32)), job(requests=31), job(seed=1), job(speedup=2.0),
        job(prefix_pricing="none"),
    ]  # fmt: skip
    changed = dataclasses.replace(job(), profiles={"extra_engine_args": b"other"})
    assert len({same, *(one.fingerprint for one in [*others, changed])}) == 7


def test_equal_jobs_are_simulated_once_and_chance_every_time():
    runner = in_memory()
    jobs = {"one": job(), "same": job(), "again": job(seed=None), "and again": job(seed=None)}
    first = {key: known for key, _, known in runner.simulated(jobs)}
    assert first == dict.fromkeys(jobs, False)
    assert len(runner.cache.memory) == 1
    second = {key: known for key, _, known in runner.simulated(jobs)}
    assert second == {"one": True, "same": True, "again": False, "and again": False}


def test_what_is_kept_is_what_was_simulated(tmp_path):
    runner = Runner(cache=SimulationCache(directory=tmp_path))
    ((_, made, known),) = runner.simulated({0: job(KV)})
    ((_, kept, known_now),) = runner.simulated({0: job(KV)})
    assert (known, known_now) == (False, True) and kept == made


def test_a_simulation_that_cannot_be_kept_is_one_all_the_same(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runners, "write_whole", full)
    runner = Runner(processes=1, cache=SimulationCache(directory=tmp_path))
    with pytest.warns(UserWarning, match=r"cannot be written .*No space left.*--no-cache"):
        ((_, outcome, known),) = runner.outcomes({"one": job()})
    assert not known and job().records(outcome)[0].succeeded


def test_what_a_dynamo_can_do_is_asked_once_for_all_that_have_it(monkeypatch):
    asked = []
    monkeypatch.setattr(
        arguments, "abilities", lambda dynamo: asked.append(dynamo) or abilities(dynamo)
    )
    dp = {"attention_dp": 2, "tp": 2}
    many = [
        Configuration(
            f"c{i}", "treatment", [Worker(1, mode="prefill", **dp), Worker(1, mode="decode")]
        )
        for i in range(20)
    ]
    assert arguments.ranks_as_workers(make_benchmark(*many)) and len(asked) == 1


def test_an_attribution_takes_what_the_comparison_has_simulated(tmp_path):
    benchmark = make_benchmark(AGGREGATED, PROMOTED)
    target, traffic = ReplayTarget(runner=in_memory()), make_traffic(40)
    planned = [
        PlannedRun(benchmark, item, traffic, tmp_path / item.name)
        for item in benchmark.configurations
    ]
    list(target.measure_all(planned, Silent()))
    simulated = []

    def note(done, total, configuration, seed, known):
        simulated.extend([] if known else [(configuration, seed)])

    run_attribution(
        benchmark, "agg", "pd-kv", target=target, traffic=traffic, seeds=(0, 1), on_run=note
    )
    # Two combinations with KV routing have two seeds, two without it one; what the comparison
    # has are the baseline, and the promoted configuration with seed 0.
    assert len(simulated) == 4
    assert ("agg", 0) not in simulated and ("pd-kv", 0) not in simulated


def test_a_simulation_that_is_killed_is_an_error_that_says_so():
    target = ReplayTarget(runner=Runner(processes=1))
    jobs = {0: target.simulation(make_benchmark(), AGGREGATED, make_traffic(20_000))}

    def kill_it():
        deadline = time.monotonic() + 30
        while not (found := simulating()) and time.monotonic() < deadline:
            time.sleep(0.01)
        found[0].kill()

    threading.Thread(target=kill_it, daemon=True).start()
    with pytest.raises(DeploymentError, match=r"configuration 'agg'.*exit code -9"):
        list(target.runner.simulated(jobs))
    assert not simulating()


# --- elsewhere -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
    ) as cluster:
        yield cluster


def on(cluster):
    return Runner(f"dask:{cluster.scheduler_address}")


@pytest.mark.slow
def test_dask_gives_the_numbers_that_this_machine_gives(cluster, tmp_path):
    benchmark, traffic = make_benchmark(AGGREGATED, PROMOTED), make_traffic(60)
    records, points, studies = [], [], []
    for runner in (Runner(processes=2), on(cluster)):
        target = ReplayTarget(runner=runner)
        target.check(benchmark)
        planned = [
            PlannedRun(benchmark, item, traffic, tmp_path / item.name, repeat)
            for item in benchmark.configurations
            for repeat in range(2)
        ]
        runs = {
            (item.configuration.name, item.repeat): run
            for item, run in target.measure_all(planned, Silent())
        }
        records.append({key: run.records for key, run in runs.items()})
        points.append(Sweep(benchmark, target, traffic, speedups=(1, 2)).run())
        studies.append(
            run_attribution(
                benchmark, "agg", "pd-kv", target=target, traffic=traffic, seeds=(0, 1),
                metric="ttft.mean", resamples=200,
            )
        )  # fmt: skip
    assert len(records[0]) == 4 and records[0] == records[1]
    assert points[0] == points[1]
    assert stored_types.attribution(studies[0]) == stored_types.attribution(studies[1])


@pytest.mark.slow
def test_on_dask_one_that_fails_is_an_outcome_with_its_log(cluster, tmp_path):
    traffic = make_traffic(4)
    broken = dataclasses.replace(
        traffic, requests=[dataclasses.replace(traffic.requests[0], hash_ids=())]
    )
    target = ReplayTarget(runner=on(cluster))
    planned = PlannedRun(make_benchmark(), AGGREGATED, broken, tmp_path)
    with pytest.raises(DeploymentError, match="positive input_length"):
        target.measure(planned, Silent())
    assert "positive input_length" in (tmp_path / "replay.log").read_text()


@pytest.mark.slow
def test_on_dask_what_nobody_waits_for_is_not_begun(cluster):
    jobs = {"quick": job(requests=5)} | {
        seed: job(requests=5_000, seed=seed) for seed in range(1, 9)
    }
    outcomes = on(cluster).outcomes(jobs)
    assert next(outcomes)[0] == "quick"
    outcomes.close()
    with cluster.get_client() as client:
        deadline = time.monotonic() + 20
        while any(client.processing().values()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not any(client.processing().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"ai-dynamo": "0.0.1"}, r"worker tcp://127\.0\.0\.1:\d+ has ai-dynamo .*, this process 0"),
        ({"code": "other"}, "has other code of pytest-dynamo-bench"),
    ],
)
def test_a_worker_with_another_version_is_refused(cluster, monkeypatch, changed, told):
    own = versions() | changed
    monkeypatch.setattr(runners, "versions", lambda: own)
    with pytest.raises(TargetError, match=told):
        on(cluster).check()


@pytest.mark.slow
def test_a_worker_without_the_package_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(runners, "_PACKAGES", ("no-such-package",))
    own = versions() | {"no-such-package": "1.2"}
    monkeypatch.setattr(runners, "versions", lambda: own)
    with pytest.raises(TargetError, match=r"has no no-such-package; install no-such-package==1\.2"):
        on(cluster).check()


@pytest.mark.slow
def test_a_scheduler_without_workers_is_refused():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=0, processes=True, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as empty,
        pytest.raises(TargetError, match="the scheduler has no workers; start some with"),
    ):
        on(empty).check()


def test_a_scheduler_that_is_not_there_is_an_error_within_bounds(monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(runners, "_CONNECT_SECONDS", 1)
    target = ReplayTarget(runner=Runner("dask:tcp://127.0.0.1:9"))
    began = time.monotonic()
    with pytest.raises(TargetError, match=r"no dask scheduler answers there within 1 s.*start one"):
        target.check(make_benchmark())
    assert time.monotonic() - began < 20


def test_without_dask_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(TargetError, match=r"pip install 'pytest-dynamo-bench\[dask\]'"):
        Runner("dask:tcp://127.0.0.1:9").check()


@pytest.mark.parametrize("text", ["ray", "dask", "dask:", "ray:tcp://127.0.0.1:1", ""])
def test_other_executors_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="must be local, or dask: and a"):
        executor(text)
    assert executor("local") == "local" and executor("dask:tls://a:1") == "dask:tls://a:1"

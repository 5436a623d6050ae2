"""Sweeps: points, cache, and what is read off them."""

import dataclasses
import shutil

import pytest
from replay_bench import AGGREGATED, SPLIT, make_benchmark, make_traffic

from pytest_dynamo_bench import Concurrency
from pytest_dynamo_bench.errors import BenchmarkError, TargetError
from pytest_dynamo_bench.sweep import Sweep, SweepPoint, Variation, pareto_front
from pytest_dynamo_bench.targets.replay import simulation
from pytest_dynamo_bench.targets.replay.runner import Runner, SimulationCache
from pytest_dynamo_bench.targets.replay.target import ReplayTarget


def keeping(directory, **target):
    """A target that keeps what it simulates."""
    runner = Runner(processes=2, cache=SimulationCache(directory=directory))
    return ReplayTarget(runner=runner, **target)


UP, ACROSS = "output_token_throughput_per_gpu", "output_token_throughput_per_user.mean"


def point(name, speedup=1.0, goodput=1.0, up=1.0, across=1.0, failed=0):
    return SweepPoint(
        name, Variation(speedup), 8, {"goodput": goodput, UP: up, ACROSS: across}, 10, failed
    )


def test_a_split_axis_leaves_other_configurations_alone():
    sweep = Sweep(make_benchmark(), speedups=(1, 2), splits=((3, 1), (2, 2)))
    assert len(sweep.points) == 2 + 4
    workers = {
        (configuration.name, tuple(worker.replicas for worker in configuration.workers))
        for configuration, _ in sweep.points
    }
    assert workers == {("agg", (4,)), ("pd", (3, 1)), ("pd", (2, 2))}


def test_kv_capacity_is_scaled_from_what_is_given_or_computed():
    benchmark = make_benchmark()
    assert Variation(kv_scale=0.5).applied_to(benchmark, AGGREGATED).workers[0].kv_blocks == 2000
    computed = AGGREGATED.but(workers=[dataclasses.replace(AGGREGATED.workers[0], kv_blocks=None)])
    half = Variation(kv_scale=0.5).applied_to(benchmark, computed).workers[0].kv_blocks
    assert half == pytest.approx(751_726 / 64 / 2, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speedups": (0,)}, "speedups"),
        ({"kv_scales": ()}, "kv_scales"),
        ({"splits": ((3,),)}, "splits"),
        ({"metrics": ("tttf",)}, "'tttf' is not a metric"),
    ],
)
def test_wrong_ranges_are_errors_that_name_them(changes, message):
    with pytest.raises(BenchmarkError, match=message):
        Sweep(make_benchmark(), **changes)


def test_goodput_is_left_out_where_there_are_no_limits():
    assert "goodput" not in Sweep(make_benchmark(goodput=None)).metrics


def test_the_front_holds_what_nothing_beats():
    points = [
        point("a", up=1, across=9), point("b", up=5, across=5), point("c", up=4, across=4),
        point("d", up=9, across=1), point("e", up=99, across=99, failed=1),
    ]  # fmt: skip
    assert [found.configuration for found in pareto_front(points)] == ["d", "b", "a"]


def test_an_impossible_point_is_found_before_anything_runs(tmp_path):
    pytest.importorskip("dynamo.replay")
    random = AGGREGATED.but(router="random")
    with pytest.raises(TargetError, match="cannot be simulated"):
        Sweep(make_benchmark(random), keeping(tmp_path), traffic=make_traffic(5)).run()


def test_a_second_call_reads_the_cache(tmp_path):
    pytest.importorskip("dynamo.replay")
    sweep = Sweep(
        make_benchmark(AGGREGATED, SPLIT), keeping(tmp_path), make_traffic(60), speedups=(1, 4)
    )
    seen = []
    first = sweep.run(lambda done, total, found: seen.append((done, total)))
    assert sorted(seen) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [p.configuration for p in first] == ["agg", "agg", "pd", "pd"]
    assert not any(p.cached for p in first)
    assert first[1].metrics["request_throughput"] > first[0].metrics["request_throughput"]
    second = sweep.run()
    assert all(p.cached for p in second)
    assert [p.metrics for p in second] == [p.metrics for p in first]
    renamed = dataclasses.replace(
        sweep, benchmark=make_benchmark(AGGREGATED.but(name="other"), SPLIT)
    )
    assert renamed.run()[0].configuration == "other"


def test_what_goes_in_decides_what_is_cached(tmp_path):
    pytest.importorskip("dynamo.replay")
    sweep = Sweep(make_benchmark(AGGREGATED), keeping(tmp_path), traffic=make_traffic(20))
    sweep.run()
    for changed in (
        dataclasses.replace(sweep, traffic=make_traffic(20, seed=1)),
        dataclasses.replace(sweep, target=keeping(tmp_path, seed=1)),
        dataclasses.replace(sweep, benchmark=make_benchmark(AGGREGATED.but(block_size=32))),
    ):
        assert not changed.run()[0].cached


def test_other_code_of_the_target_is_not_answered_from_the_cache(tmp_path, monkeypatch):
    benchmark, target, traffic = make_benchmark(), ReplayTarget(), make_traffic(10)

    def found():
        simulation._code_digest.cache_clear()
        return target.simulation(benchmark, AGGREGATED, traffic).fingerprint

    before, copy = found(), tmp_path / "package"
    shutil.copytree(simulation._PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "data"))
    monkeypatch.setattr(simulation, "_PACKAGE", copy)
    assert found() == before
    path = copy / "targets" / "replay" / "arguments.py"
    code = path.read_text("utf-8")
    path.write_text(code.replace("_PREFILLS_AT_A_TIME = 1", "_PREFILLS_AT_A_TIME = 2"), "utf-8")
    assert found() != before
    simulation._code_digest.cache_clear()


def test_the_load_of_a_closed_loop_is_its_sessions_in_flight(tmp_path):
    pytest.importorskip("dynamo.replay")
    traffic = make_traffic(60, schedule=Concurrency(4))
    sweep = Sweep(
        make_benchmark(AGGREGATED), keeping(tmp_path), traffic=traffic, speedups=(0.5, 1, 2)
    )
    points = sweep.run()
    rates = [found.metrics["request_throughput"] for found in points]
    latencies = [found.metrics["output_token_throughput_per_user.mean"] for found in points]
    assert rates == sorted(rates) and rates[0] < rates[2]
    assert latencies == sorted(latencies, reverse=True)


def test_1_and_1_0_are_the_same_point(tmp_path):
    pytest.importorskip("dynamo.replay")
    sweep = Sweep(
        make_benchmark(AGGREGATED), keeping(tmp_path), traffic=make_traffic(20), speedups=(1,)
    )
    sweep.run()
    assert dataclasses.replace(sweep, speedups=(1.0,)).run()[0].cached


def test_a_damaged_cache_is_computed_anew(tmp_path):
    pytest.importorskip("dynamo.replay")
    sweep = Sweep(make_benchmark(AGGREGATED), keeping(tmp_path), traffic=make_traffic(20))
    (first,) = sweep.run()
    (file,) = tmp_path.glob("*.simulation")
    file.write_bytes(file.read_bytes()[:40])
    (again,) = sweep.run()
    assert not again.cached and again.metrics == first.metrics

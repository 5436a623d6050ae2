"""The modules in ``benchmarks/`` against a machine-readable copy of the published tables."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import Benchmark, Concurrency, Worker
from pytest_dynamo_bench.attribution import plan
from pytest_dynamo_bench.benchmark import SCALES, traffic_for
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.sweep import Sweep
from pytest_dynamo_bench.traffic import describe

PROJECT = Path(__file__).parent.parent
PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parent / "published.json").read_text("utf-8")
)
del PUBLISHED["_"]
ARMS = [(name, arm) for name, page in PUBLISHED.items() for arm in page["configurations"]]
# Traffic drawn anew is not the published draw; see tests/traffic for what it may differ by.
TOLERANCE = {"deepseek_wideep_routing": 0.02, "kimi_feature_stack": 0.08}


def benchmark_of(name: str) -> Benchmark:
    path = PROJECT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"published_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    benchmark: Benchmark = module.benchmark
    return benchmark


@pytest.mark.parametrize("name", PUBLISHED)
def test_model_hardware_and_objectives(name):
    page, benchmark = PUBLISHED[name], benchmark_of(name)
    hardware = benchmark.hardware
    assert benchmark.name == name
    assert (benchmark.model, benchmark.engine) == (page["model"], page["engine"])
    assert (hardware.gpu, hardware.count, hardware.nodes) == (
        page["gpu"], page["gpus"], page["nodes"],
    )  # fmt: skip
    assert benchmark.recipe == page["recipe"]
    assert benchmark.question and benchmark.held_constant and benchmark.notes and benchmark.claims
    limits = {} if benchmark.goodput is None else vars(benchmark.goodput)
    assert {k: v for k, v in limits.items() if v is not None} == (page["goodput"] or {})


@pytest.mark.parametrize("name", PUBLISHED)
def test_traffic(name):
    page, traffic = PUBLISHED[name], benchmark_of(name).traffic
    expected = dict(page["traffic"])
    assert type(traffic).__name__ == expected.pop("kind")
    assert {field: getattr(traffic, field) for field in expected} == expected
    if "schedule" in page:
        assert traffic.schedule.description == page["schedule"]
    figures = describe(traffic.load())
    for figure, value in page["traffic_figures"].items():
        tolerance = TOLERANCE.get(name, 0.002)
        assert getattr(figures, figure) == pytest.approx(value, rel=tolerance, abs=0.001), figure


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_configuration(name, arm):
    expected = dict(PUBLISHED[name]["configurations"][arm])
    configuration = benchmark_of(name).configuration(arm)
    assert configuration.published
    workers = expected.pop("workers")
    assert {field: getattr(configuration, field) for field in expected} == expected
    assert [worker.mode for worker in configuration.workers] == [w["mode"] for w in workers]
    for worker, fields in zip(configuration.workers, workers, strict=True):
        assert {field: _plain(worker, field) for field in fields} == fields
        if fields.get("speculative") and worker.speculative:
            draft = PUBLISHED[name]["draft"]
            assert {field: getattr(worker.speculative, field) for field in draft} == draft


def _plain(worker: Worker, field: str) -> Any:
    if field == "speculative":
        return worker.speculative is not None
    if field == "kv_offload":
        return worker.kv_offload and worker.kv_offload.host_gib
    return getattr(worker, field)


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_published_configuration_is_missing_or_made_up(name):
    ours = {c.name for c in benchmark_of(name).configurations if c.published}
    assert ours == set(PUBLISHED[name]["configurations"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results(name):
    results, published = PUBLISHED[name].get("results"), benchmark_of(name).published
    assert (published and published.values) == results


@pytest.mark.parametrize("arm", PUBLISHED["llama_topology"]["configurations"])
def test_llama_has_16_requests_in_flight_per_gpu_and_ten_times_as_many_in_all(arm):
    benchmark = benchmark_of("llama_topology")
    configuration = benchmark.configuration(arm)
    traffic = traffic_for(benchmark.traffic.load(), configuration)
    assert traffic.schedule == Concurrency(16 * configuration.gpus)
    assert len(traffic.requests) == 10 * 16 * configuration.gpus


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_threshold_has_its_evidence(name):
    for claim in benchmark_of(name).claims:
        assert claim.evidence, claim.name


@pytest.mark.parametrize("name", PUBLISHED)
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_any_of_its_configurations_make_a_benchmark(name, data):
    benchmark = benchmark_of(name)
    names = [configuration.name for configuration in benchmark.configurations]
    some = benchmark.only(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    left = [configuration.name for configuration in some.configurations]
    for scale in SCALES:
        brought_up, before = some.size(scale).configurations, benchmark.size(scale).configurations
        assert brought_up is before is None or set(brought_up) == set(before) & set(left)
    assert some.claims == tuple(
        claim for claim in benchmark.claims if {claim.treatment, claim.baseline} <= set(left)
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_arms_of_an_attribution_and_all_points_of_a_sweep_make_a_benchmark(name):
    benchmark = benchmark_of(name)
    for baseline, treatment in itertools.permutations(benchmark.configurations, 2):
        try:
            arms = plan(baseline, treatment).configurations.values()
        except BenchmarkError:
            continue  # what differs in too much, or cannot be combined
        made = benchmark.with_configurations(arms)
        derived = {arm.name for arm in arms if arm not in benchmark.configurations}
        for scale in SCALES:
            assert derived <= set(made.size(scale).configurations or derived)
    swept = Sweep(benchmark, speedups=(0.5, 2), kv_scales=(0.5, 1))
    for configuration, _ in swept.points:
        assert benchmark.with_configurations([configuration]).configurations == (configuration,)

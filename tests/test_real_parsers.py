"""Every command line that is made for Dynamo, through the parsers of the installed Dynamo.

TensorRT-LLM has no flags of its own: Dynamo's parser knows all. vLLM's and SGLang's are asked of
``engine_flags.json``, which their own parsers wrote, and vLLM's also of vLLM where it is installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import (
    Configuration,
    PooledImages,
    SlidingWindowImages,
    Worker,
)
from pytest_dynamo_bench.dynamo_release import DYNAMO_RELEASE
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError
from pytest_dynamo_bench.targets.kubernetes.manifest import image_of, render
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.targets.local.commands import Ports, process_specs
from pytest_dynamo_bench.targets.local.image_engine import ImageServing
from pytest_dynamo_bench.targets.local.vllm.deployment import CachePlan, worker_command
from pytest_dynamo_bench.targets.local.vllm.environment import VllmEnvironment, find_environment
from tests.any_configuration import ENGINES, benchmark_with, configurations
from tests.dynamo_parsers import Parsers, problem
from tests.kubernetes.test_manifests import CLUSTERS, benchmark_of

pytest.importorskip("dynamo.frontend", reason="needs ai-dynamo")

PROJECT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py"))
BENCHMARKS = {name: benchmark_of(name) for name in NAMES}
SHIPPED = [(name, c.name) for name, b in BENCHMARKS.items() for c in b.configurations]
PORTS = Ports(8100, 8101, 8102)


def containers(benchmark, configuration, cluster):
    """Command line and variables of every container of a configuration's manifest."""
    (*_, graph) = render(benchmark, configuration, cluster, "run")
    shared = graph["spec"].get("envs", [])
    for name, service in graph["spec"]["services"].items():
        container = service["extraPodSpec"]["mainContainer"]
        variables = {v["name"]: v["value"] for v in (*shared, *container.get("env", ()))}
        yield name, [*container["command"], *container["args"]], variables


def local_commands(benchmark, configuration, fast_forward=1.0):
    """The command lines of Dynamo's own processes on this machine."""
    shows = isinstance(benchmark.traffic, PooledImages | SlidingWindowImages)
    images = ImageServing({}, "python") if shows else None
    specs = process_specs(
        benchmark, configuration, Path("/scratch"), Path("/logs"), PORTS, fast_forward, images
    )
    for spec in specs:
        if spec.argv[1] == "-m":
            dynamos = {k: v for k, v in spec.environment.items() if k.startswith("DYN_")}
            yield spec.name, list(spec.argv), dynamos


def refused(commands):
    found = {name: problem(argv, env) for name, argv, env in commands}
    return {name: text for name, text in found.items() if text}


# -- the release -----------------------------------------------------------------------------------


def test_one_release_is_pinned_installed_deployed_and_asked_here():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f"ai-dynamo=={DYNAMO_RELEASE}" in project["optional-dependencies"]["local"]
    assert importlib.metadata.version("ai-dynamo") == DYNAMO_RELEASE
    for benchmark in BENCHMARKS.values():
        assert image_of(benchmark, ClusterSettings("ns")).endswith(f"-runtime:{DYNAMO_RELEASE}")


def test_the_engines_whose_flags_are_kept_are_those_of_the_release():
    wanted = " ".join(importlib.metadata.requires("ai-dynamo") or ())
    kept = json.loads((PROJECT / "tests" / "engine_flags.json").read_text("utf-8"))
    assert kept.keys() == {"vllm", "sglang"}
    for engine, entry in kept.items():
        version = re.search(rf"{engine} ([\d.]+)", entry["source"])[1]
        assert re.search(rf"{engine}\[[^]]*\]=={re.escape(version)};", wanted), (engine, version)


# -- what is shipped -------------------------------------------------------------------------------


def test_no_shipped_configuration_is_left_out():
    assert len(SHIPPED) >= 24 and len(NAMES) == 6


@pytest.mark.parametrize(("page", "arm"), SHIPPED)
def test_dynamo_takes_every_shipped_manifest(page, arm):
    benchmark = BENCHMARKS[page]
    configuration = benchmark.configuration(arm)
    for cluster in (ClusterSettings("ns"), CLUSTERS[page]):
        assert refused(containers(benchmark, configuration, cluster)) == {}


@pytest.mark.parametrize(("page", "arm"), SHIPPED)
def test_dynamo_takes_every_shipped_configuration_on_this_machine(page, arm):
    benchmark = BENCHMARKS[page]
    commands = list(local_commands(benchmark, benchmark.configuration(arm)))
    assert commands[0][0] == "frontend"
    assert refused(commands) == {}


def test_the_vllm_worker_of_this_machine():
    worker = Worker(1, max_num_seqs=4, frontend_decoding=True, embedding_cache_gib=1)
    argv = worker_command(
        VllmEnvironment(Path("/venv")), Configuration("agg", "baseline", [worker]),
        CachePlan(1000, 1.0), Path("/scratch"), 3,
    )  # fmt: skip
    assert "--ec-transfer-config" in argv
    assert problem(argv) == ""


def test_vllms_own_parser_takes_what_is_rendered_for_it():
    try:
        environment = find_environment()
    except TargetError as missing:
        pytest.skip(str(missing))
    real = Parsers(str(environment.python))
    asked = 0
    for page, benchmark in BENCHMARKS.items():
        for configuration in benchmark.configurations:
            for _, argv, env in containers(benchmark, configuration, CLUSTERS[page]):
                if "dynamo.vllm" in argv:
                    asked += 1
                    assert real.ask(argv[2], tuple(argv[3:]), tuple(env.items())) == ""
    assert asked > 20
    assert "--bogus" in real.ask("dynamo.vllm", ("--model", "x", "--bogus"), ())


# -- what can be configured ------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.filter_too_much])
@given(configuration=configurations(), fast_forward=st.floats(0.1, 1000))
def test_whatever_can_be_configured_is_refused_by_us_or_taken_by_dynamo(
    engine, configuration, fast_forward
):
    try:
        benchmark = benchmark_with(configuration, engine)
        deployed = list(containers(benchmark, configuration, ClusterSettings("ns")))
    except DynamoBenchError:
        assume(False)
    assert refused(deployed) == {}
    assert refused(local_commands(benchmark, configuration, fast_forward)) == {}


# -- the parsers refuse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "arguments", "says"),
    [
        # Gone since 1.4.0.
        ("frontend", ["--router-mode", "kv", "--router-reset-states"], "--router-reset-states"),
        ("frontend", ["--router-mode", "clever"], "invalid choice: 'clever'"),
        ("mocker", ["--num-workers", "two"], "invalid int value: 'two'"),
        ("mocker", ["--bogus"], "--bogus"),
        ("trtllm", ["--disaggregation-mode", "half"], "invalid choice: 'half'"),
        ("trtllm", ["--model-path", "m", "--bogus"], "--bogus"),
        ("vllm", ["--model", "m", "--bogus"], "--bogus"),
        ("vllm", ["--model", "m", "--kv-events-config", "{"], "--kv-events-config"),
        ("vllm", ["--model", "m", "--block-size", "many"], "--block-size"),
        ("sglang", ["--model-path", "m", "--bogus"], "--bogus"),
        ("sglang", ["--model-path", "m", "--hicache-size", "1.5"], "invalid int value: '1.5'"),
    ],
)  # fmt: skip
def test_a_command_line_that_dynamo_refuses_is_seen(module, arguments, says):
    assert says in problem(["python3", "-m", f"dynamo.{module}", *arguments])


def test_a_flag_of_a_manifest_that_dynamo_refuses_is_seen():
    benchmark = BENCHMARKS["qwen3_32b_kv_routing"]
    configuration = benchmark.configuration("agg-round-robin")
    commands = list(containers(benchmark, configuration, ClusterSettings("ns")))
    assert refused(commands) == {}
    commands[0][1].append("--router-reset-states")
    assert refused(commands) == {
        "Frontend": "Unknown arguments specified: ['--router-reset-states']"
    }

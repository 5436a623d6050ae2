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
from typing import get_args

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import (
    Configuration,
    KvOffload,
    PooledImages,
    SlidingWindowImages,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.benchmark import RouterMode
from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.dynamo.option_check import parse_command
from pytest_dynamo_bench.dynamo.releases import DYNAMO_RELEASE
from pytest_dynamo_bench.dynamo_options import ENGINE_FIELDS, FRONTEND_FIELDS
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError
from pytest_dynamo_bench.targets.kubernetes.engine_arguments import engine_command
from pytest_dynamo_bench.targets.kubernetes.graph import NEW_OPERATOR
from pytest_dynamo_bench.targets.kubernetes.manifest import image_of, render
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.targets.local.commands import Ports, check_options, process_specs
from pytest_dynamo_bench.targets.local.image_engine import ImageServing
from pytest_dynamo_bench.targets.local.vllm.deployment import CachePlan, worker_command
from pytest_dynamo_bench.targets.local.vllm.environment import VllmEnvironment, find_environment
from pytest_dynamo_bench.targets.replay.target import ReplayTarget, describe
from tests.any_configuration import ENGINES, benchmark_with, configurations
from tests.dynamo_parsers import Parsers, problem
from tests.kubernetes.forms import components, shared_env
from tests.kubernetes.test_manifests import CLUSTERS, benchmark_of

pytest.importorskip("dynamo.frontend", reason="needs ai-dynamo")

PROJECT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py"))
BENCHMARKS = {name: benchmark_of(name) for name in NAMES}
SHIPPED = [(name, c.name) for name, b in BENCHMARKS.items() for c in b.configurations]
PORTS = Ports(8100, 8101, 8102)


def containers(benchmark, configuration, cluster):
    """Command line and variables of every container of a configuration's manifest."""
    (*_, graph) = render(benchmark, configuration, cluster, "run", NEW_OPERATOR)
    for name, component in components(graph).items():
        container = component["container"]
        variables = {v["name"]: v["value"] for v in (*shared_env(graph), *container.get("env", ()))}
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
        image = image_of(benchmark, benchmark.configurations[0], ClusterSettings("ns"))
        assert image.endswith(f"-runtime:{DYNAMO_RELEASE}")


def test_the_engines_whose_flags_are_kept_are_those_of_the_release():
    wanted = " ".join(importlib.metadata.requires("ai-dynamo") or ())
    kept = json.loads((PROJECT / "tests" / "engine_flags.json").read_text("utf-8"))
    assert kept.keys() == {"vllm", "sglang"}
    for engine, entry in kept.items():
        version = re.search(rf"{engine} ([\d.]+)", entry["source"])[1]
        assert re.search(rf"{engine}\[[^]]*\]=={re.escape(version)};", wanted), (engine, version)


# -- what is shipped -------------------------------------------------------------------------------


def test_no_shipped_configuration_is_left_out():
    assert len(SHIPPED) >= 24 and len(NAMES) == 7


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


# -- options that a configuration gives by Dynamo's own names --------------------------------------


TUNED = Configuration(
    "tuned", "treatment",
    [Worker(2, tp=2, engine_args={"preemption-mode": "fifo", "startup-time": 1})],
    router="kv", env={"DYN_ROUTER_TTL_SECS": "7"},
    frontend_args={
        "router-temperature": 0.5, "router-kv-overlap-score-credit": 2, "tokenizer": "fastokens",
        "router-kv-events": False, "router-session-affinity-ttl-secs": 60,
    },
)  # fmt: skip


def test_every_router_mode_of_dynamo_is_one_of_ours():
    refusal = parse_command(resolve(None), "dynamo.frontend", ["--router-mode", "none"], {}).problem
    offered = re.findall(r"'([a-z-]+)'", refusal.partition("choose from")[2])
    assert set(offered) == set(get_args(RouterMode))


def test_every_option_that_we_render_is_known_to_be_a_fields():
    features = {
        "kv_blocks": 9, "max_num_seqs": 9, "max_num_batched_tokens": 9, "memory_fraction": 0.5,
        "speculative": SpeculativeDecoding(1, (1.0,)), "kv_offload": KvOffload(1), "wideep": True,
        "attention_dp": 2, "moe_ep": 2, "prefix_caching": False,
    }  # fmt: skip
    split = [Worker(1, mode="prefill", **features), Worker(1, mode="decode", **features)]
    for engine in ENGINES:
        for workers in (split, [Worker(1, **features)]):
            plain = Configuration("plain", "baseline", workers, router="kv")
            benchmark = benchmark_with(plain, engine)
            words = {"frontend": [], "worker": []}
            for name, argv, _ in local_commands(benchmark, plain, 2.0):
                words["frontend" if name == "frontend" else "worker"] += argv
            for worker in workers:
                words["worker"] += engine_command(benchmark, plain, worker).args
            for name, fields in (("frontend", FRONTEND_FIELDS), ("worker", ENGINE_FIELDS)):
                options = {word for word in words[name] if word.startswith("--")}
                named = {f"--{prefix}{field}" for field in fields for prefix in ("", "no-")}
                assert options and options - named <= {"--trust-remote-code"}


def test_dynamo_takes_the_options_that_a_configuration_gives():
    benchmark = benchmark_with(TUNED, "vllm")
    assert refused(local_commands(benchmark, TUNED)) == {}
    check_options(benchmark, TUNED, images=False)
    engines = TUNED.but(
        workers=[Worker(2, engine_args={"max-model-len": 9, "enforce-eager": True})]
    )
    assert (
        refused(containers(benchmark_with(engines, "vllm"), engines, ClusterSettings("ns"))) == {}
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"frontend_args": {"router-temperture": 1}}, "did you mean --router-temperature?"),
        ({"frontend_args": {"router-temp": 1}}, "has no option --router-temp"),
        ({"frontend_args": {"router-temperature": "hot"}}, "invalid float value: 'hot'"),
        ({"frontend_args": {"router-temperature": False}}, "no option --no-router-temperature"),
        ({"frontend_args": {"router-session-affinity-ttl-secs": 0}}, "must be between 1 and"),
        ({"env": {"DYN_ROUTER_TTL_SECS": "long"}}, "could not convert string to float: 'long'"),
        (
            {"workers": [Worker(2, engine_args={"preemption-mod": "fifo"})]},
            "mean --preemption-mode",
        ),
        ({"workers": [Worker(2, engine_args={"preemption-mode": "x"})]}, "invalid choice: 'x'"),
    ],
)
def test_what_the_installed_dynamo_does_not_take_is_found_before_anything_is_brought_up(
    changes, told
):
    changed = TUNED.but(**changes)
    with pytest.raises(TargetError, match="configuration 'tuned': dynamo") as error:
        check_options(benchmark_with(changed, "vllm"), changed, images=False)
    assert told in str(error.value)


def test_the_replay_gets_what_it_has_and_names_the_rest():
    benchmark = benchmark_with(TUNED, "vllm")
    target = ReplayTarget()
    arguments = describe(target, benchmark, TUNED)
    assert arguments["router_config"] == {
        "router_temperature": 0.5, "overlap_score_credit": 2.0, "use_kv_events": False,
    }  # fmt: skip
    assert arguments["extra_engine_args"]["preemption_mode"] == "fifo"
    limits = target.limitations(benchmark, TUNED)
    without = {text for text in limits if text.endswith("has no effect in a simulation.")}
    assert without == {
        "The frontend's --tokenizer has no effect in a simulation.",
        "The frontend's --router-session-affinity-ttl-secs has no effect in a simulation.",
        "The variable DYN_ROUTER_TTL_SECS has no effect in a simulation.",
    }
    random = TUNED.but(
        router="round-robin", workers=[Worker(2, tp=2, engine_args={"max-loras": 3})]
    )
    assert "router_config" not in describe(target, benchmark, random)
    assert "session-affinity-absent" in {item.id for item in target.caveats(benchmark, TUNED)}
    limits = target.limitations(benchmark, random)
    assert "The frontend's --router-temperature has no effect in a simulation." in limits
    assert "--max-loras of the aggregated workers has no effect in a simulation." in limits
    with pytest.raises(TargetError, match="did you mean --router-temperature"):
        describe(target, benchmark, TUNED.but(frontend_args={"router-temperatur": 1}))


@pytest.mark.parametrize("router", sorted(set(get_args(RouterMode)) - {"kv", "round-robin"}))
def test_the_replay_says_which_routers_it_does_not_have(router):
    benchmark = benchmark_with(TUNED, "vllm")
    with pytest.raises(TargetError, match=f"router '{router}' cannot be simulated"):
        describe(ReplayTarget(), benchmark, TUNED.but(router=router))

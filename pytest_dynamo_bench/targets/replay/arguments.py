"""A configuration as arguments of Dynamo's replay, and what of it they leave out."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import (
    Benchmark,
    Configuration,
    Engine,
    Worker,
    WorkerMode,
)
from pytest_dynamo_bench.dynamo.abilities import Abilities, abilities
from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment, dynamos_of
from pytest_dynamo_bench.dynamo.option_check import ParsedCommand, parse_command, refuse_unknown
from pytest_dynamo_bench.dynamo_options import option_arguments
from pytest_dynamo_bench.engines import (
    EngineProfile,
    HostTier,
    device_blocks,
    find_profile,
    host_tiers,
)
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.features import Simulation, feature_limits, features_lacking
from pytest_dynamo_bench.targets.replay import child

ROUTERS = {"round-robin": "round_robin", "kv": "kv_router"}
_DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_STEP_TOKENS = 8192
# Where a prompt is handed over only when its prefill worker has no other in work, one that is
# never idle would hand over nothing (Abilities.hands_over_at_once).
_PREFILLS_AT_A_TIME = 1


def simulating_dynamo(configuration: Configuration) -> DynamoEnvironment:
    """The Dynamo whose replay simulates a configuration.

    Raises:
        TargetError: it is not there, has no replay, or is not one but several.
    """
    owner = f"configuration {configuration.name!r}"
    found = set(dynamos_of(configuration).values())
    if len(found) > 1:
        raise TargetError(
            f"{owner}: a simulation has one Dynamo, and this has workers of another one than its "
            "frontend; leave Worker(dynamo=…) out, or use --dynamo-target=local"
        )
    (dynamo,) = found
    if "dynamo.replay" not in dynamo.modules:
        raise TargetError(
            f"{owner}: {dynamo} has no dynamo.replay; name another with --dynamo-version"
        )
    return dynamo


def one_prefill_at_a_time(configuration: Configuration) -> bool:
    """Whether prefill workers are simulated with one prompt at a time, for a defect of replay."""
    return (
        configuration.disaggregated
        and not abilities(simulating_dynamo(configuration)).hands_over_at_once
    )


def find_profiles(
    benchmark: Benchmark, configuration: Configuration, directories: Iterable[Path] = ()
) -> tuple[EngineProfile, ...]:
    """The engine profile of each role.

    Args:
        directories: where to look first.

    Raises:
        TargetError: there is none for a role; the message says how to make it.
    """
    found = []
    for worker in configuration.workers:
        profile = find_profile(
            benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker, directories
        )
        if profile is None:
            words = [
                "python -m pytest_dynamo_bench.engines.make",
                f"--model {benchmark.model} --gpu {benchmark.hardware.gpu}",
                f"--engine {benchmark.engine} --tp {worker.tp}",
            ]
            words += [f"--attention-dp {worker.attention_dp}"] if worker.attention_dp > 1 else []
            words += [f"--moe-ep {worker.moe_ep}"] if worker.moe_ep else []
            if worker.speculative:
                words.append(f"--draft-tokens {worker.speculative.draft_tokens}")
            raise TargetError(
                f"benchmark {benchmark.name!r}: there is no engine profile of this deployment, so "
                f"that its timing isn't known; make one with: {' '.join(words)}"
            )
        found.append(profile)
    return tuple(found)


def profile_contents(
    configuration: Configuration, profiles: Sequence[EngineProfile]
) -> dict[str, str]:
    """Name and digest of each role's profile, by the name of its engine arguments.

    They stand for the path that Dynamo is given, which is another one in every run where
    prefixes are priced, and on every machine, so that no stored run could be compared with.
    """
    return {
        engine_key(
            worker
        ): f"{profile.name}, sha256 {hashlib.sha256(profile.content).hexdigest()[:16]}"
        for worker, profile in zip(configuration.workers, profiles, strict=True)
    }


def engine_arguments(
    benchmark: Benchmark, configuration: Configuration, profiles: Sequence[EngineProfile]
) -> dict[str, Any]:
    """A configuration as arguments of ``dynamo.replay.run_trace_replay``, traffic aside.

    Args:
        profiles: of each role.

    Raises:
        TargetError: it cannot be expressed.
    """
    if configuration.router not in ROUTERS:
        raise TargetError(
            f"configuration {configuration.name!r}: router {configuration.router!r} cannot be "
            f"simulated; the replay has {', '.join(map(repr, ROUTERS))}"
        )
    router = ROUTERS[configuration.router]
    if _routing_targets(configuration) < 2:
        router = "round_robin"
    arguments: dict[str, Any] = {"router_mode": router, "replay_mode": "offline"}
    routing = _frontend(configuration).effect(configuration.frontend_args)
    if routing and router == ROUTERS["kv"]:
        arguments["router_config"] = routing
    tiers = simulated_host_tiers(benchmark, configuration)
    for worker, profile in zip(configuration.workers, profiles, strict=True):
        engine = _engine(benchmark, configuration, worker, profile, tiers.get(worker.mode))
        count = worker.replicas
        if ranks_as_workers(benchmark):
            count *= worker.attention_dp
        elif worker.attention_dp > 1:
            engine["dp_size"] = worker.attention_dp
        if worker.mode == "aggregated":
            arguments |= {"extra_engine_args": engine, "num_workers": count}
        else:
            arguments |= {
                f"{worker.mode}_engine_args": engine,
                f"num_{worker.mode}_workers": count,
            }
    return arguments


def simulated_host_tiers(
    benchmark: Benchmark, configuration: Configuration
) -> dict[WorkerMode, HostTier]:
    """The host tiers for KV blocks that a simulation has, by the mode of the workers.

    Raises:
        TargetError: as for :func:`~pytest_dynamo_bench.engines.host_tiers`.
    """
    return host_tiers(benchmark, configuration, _engine_type(benchmark))


def ranks_as_workers(benchmark: Benchmark) -> bool:
    """Whether ranks of attention data parallelism are simulated as separate workers.

    Not every replay has attention data parallelism in a split. Where a comparison has that, all
    of its configurations are simulated the same way, so that they can be compared.
    """
    split = any(
        configuration.disaggregated and worker.attention_dp > 1
        for configuration in benchmark.configurations
        for worker in configuration.workers
    )
    return split and not _all_can(benchmark, lambda able: able.attention_dp_in_a_split)


def _all_can(benchmark: Benchmark, ability: Callable[[Abilities], bool]) -> bool:
    """Whether the replay of every configuration of a comparison has an ability."""
    # Every configuration asks this, and most have the same Dynamo.
    distinct = {frozenset(c.dynamos.values()): c for c in benchmark.configurations}
    return all(ability(abilities(simulating_dynamo(c))) for c in distinct.values())


def _routing_targets(configuration: Configuration) -> int:
    """Workers or ranks that the router has to choose from, in the larger pool."""
    return max(worker.replicas * worker.attention_dp for worker in configuration.workers)


def engine_key(worker: Worker) -> str:
    """What Dynamo's replay calls the engine arguments of a role."""
    return f"{'extra' if worker.mode == 'aggregated' else worker.mode}_engine_args"


def _engine(
    benchmark: Benchmark,
    configuration: Configuration,
    worker: Worker,
    profile: EngineProfile,
    host_tier: HostTier | None,
) -> dict[str, Any]:
    """Engine arguments of one role; per rank under attention data parallelism."""
    engine: dict[str, Any] = {
        "engine_type": _engine_type(benchmark),
        "block_size": configuration.block_size,
        "num_gpu_blocks": device_blocks(benchmark, configuration, worker),
        "enable_prefix_caching": worker.prefix_caching,
        "planner_profile_data": str(profile.path),
        "worker_type": worker.mode,
    }
    if worker.mode == "prefill" and one_prefill_at_a_time(configuration):
        engine["max_num_seqs"] = _PREFILLS_AT_A_TIME
    elif worker.max_num_seqs is not None:
        engine["max_num_seqs"] = worker.max_num_seqs
    if worker.max_num_batched_tokens is not None:
        engine["max_num_batched_tokens"] = worker.max_num_batched_tokens
    bandwidth = benchmark.hardware.kv_transfer_gb_per_second
    if configuration.disaggregated and bandwidth is not None:
        engine["kv_transfer_bandwidth"] = bandwidth
        engine["kv_bytes_per_token"] = profile.dimensions.kv_bytes_per_token
    if host_tier is not None:
        engine["native_host_offload"] = {
            "num_host_blocks": host_tier.blocks,
            "d2h_bandwidth_gbps": host_tier.to_host_gb_per_second,
            "h2d_bandwidth_gbps": host_tier.to_gpu_gb_per_second,
        }
        engine["kv_cache_bytes_per_token"] = host_tier.bytes_per_token
    if worker.speculative is not None and worker.mode != "prefill":
        rates = worker.speculative.acceptance_rates
        if not rates:
            raise TargetError(
                f"configuration {configuration.name!r}: a simulation cannot know how many drafts "
                "are accepted; give SpeculativeDecoding its acceptance_rates"
            )
        engine["aic_nextn"] = worker.speculative.draft_tokens
        engine["aic_nextn_accept_rates"] = ",".join(f"{rate:g}" for rate in rates)
    return engine | _mocker(configuration, worker).effect(worker.engine_args)


def _frontend(configuration: Configuration) -> ParsedCommand:
    """What Dynamo makes of the frontend's options."""
    given = configuration.frontend_args
    if not given:
        return ParsedCommand()
    program = "dynamo.frontend"
    arguments = ["--router-mode", configuration.router, *option_arguments(given)]
    parsed = parse_command(simulating_dynamo(configuration), program, arguments, {})
    refuse_unknown(f"configuration {configuration.name!r}", program, given, parsed)
    return parsed


def _mocker(configuration: Configuration, worker: Worker) -> ParsedCommand:
    """What the mocker makes of those options of a worker that it has; others are an engine's."""
    if not worker.engine_args:
        return ParsedCommand()
    program, dynamo = "dynamo.mocker", simulating_dynamo(configuration)
    known = parse_command(dynamo, program, [], {}).known(worker.engine_args)
    parsed = parse_command(dynamo, program, option_arguments(known), {})
    refuse_unknown(f"configuration {configuration.name!r}", program, known, parsed)
    return parsed


def _options_without_effect(configuration: Configuration) -> Iterator[str]:
    """The options and variables that a simulation knows nothing of, a sentence each."""
    given, variables = configuration.frontend_args, dict(configuration.env)
    routed = configuration.router == "kv" and _routing_targets(configuration) > 1
    for name in _frontend(configuration).without_effect(given) if routed else given:
        yield f"The frontend's --{name} has no effect in a simulation."
    for worker in configuration.workers:
        for name in _mocker(configuration, worker).without_effect(worker.engine_args):
            yield f"--{name} of the {worker.mode} workers has no effect in a simulation."
        variables |= worker.env
    for name in variables:
        yield f"The variable {name} has no effect in a simulation."


def _engine_type(benchmark: Benchmark) -> Engine:
    """The scheduler that is simulated, the same for all configurations of a comparison.

    Not every replay has a split for TensorRT-LLM's scheduler; vLLM's takes its place there.
    """
    split = benchmark.engine == "trtllm" and any(c.disaggregated for c in benchmark.configurations)
    if split and not _all_can(benchmark, lambda able: able.trtllm_in_a_split):
        return "vllm"
    return benchmark.engine


def not_expressed(benchmark: Benchmark, configuration: Configuration) -> Iterable[str]:
    """What of the configuration the arguments above leave out or replace."""
    if _engine_type(benchmark) != benchmark.engine:
        yield (
            "This Dynamo's replay has no prefill/decode split for TensorRT-LLM: in all "
            "configurations of this comparison its scheduler is simulated by vLLM's, with "
            "TensorRT-LLM's step times."
        )
    for worker in configuration.workers:
        if worker.kv_blocks is None:
            yield (
                f"KV blocks of the {worker.mode} workers are computed from the model's and the "
                "GPU's numbers, not taken from the deployment."
            )
        for name, default in (
            ("max_num_seqs", _DEFAULT_MAX_NUM_SEQS),
            ("max_num_batched_tokens", DEFAULT_STEP_TOKENS),
        ):
            if (
                name == "max_num_seqs"
                and worker.mode == "prefill"
                and one_prefill_at_a_time(configuration)
            ):
                continue
            if getattr(worker, name) is None:
                yield f"{name} of the {worker.mode} workers is the replay's default, {default}."
    yield from _options_without_effect(configuration)
    yield from features_lacking(configuration)
    yield from feature_limits(Simulation(benchmark, configuration), "simulated")


def bare_command(dynamo: DynamoEnvironment, arguments: Mapping[str, Any]) -> str:
    """The same simulation as a command, to be pasted into a shell.

    It is one of Dynamo's own where its replay is a program, else that of the run's directory.
    """
    if not abilities(dynamo).replay_command:
        return shlex.join(["python", str(Path(child.__file__).name), "replay-job.json"])
    words = ["python", "-m", "dynamo.replay", "trace.jsonl"]
    for name, value in arguments.items():
        if name in ("trace_files", "report_jsonl_path"):
            continue
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)

"""A configuration as the command lines of local Dynamo processes."""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.dynamo.abilities import untried
from pytest_dynamo_bench.dynamo.environment import interpreter, resolve, variables_for
from pytest_dynamo_bench.dynamo.option_check import parse_command, refuse_unknown
from pytest_dynamo_bench.dynamo.releases import TRIED
from pytest_dynamo_bench.dynamo_options import option_arguments
from pytest_dynamo_bench.engines import (
    device_blocks,
    find_profile,
    host_blocks,
    host_tiers,
    model_dimensions,
)
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.local.image_engine import ImageServing
from pytest_dynamo_bench.targets.local.processes import ProcessSpec

LOOPBACK = "127.0.0.1"
# The mocker's own default, in the releases that have one.
_KV_TRANSFER_GB_PER_SECOND = 64.0


@dataclass(frozen=True)
class Ports:
    """Ports of one deployment, all on loopback."""

    frontend: int
    event_publishers: int
    event_subscribers: int


def environment(directory: Path, ports: Ports) -> dict[str, str]:
    """What Dynamo's processes get beside the plugin's own environment.

    The host settings keep Dynamo's listeners on loopback (``DYN_TCP_RESPONSE_STREAM_HOST``
    wants an interface, not an address); the broker does so for the event plane. At log level
    info the router writes a line per request, which slows it down.
    """
    return {
        "DYN_FILE_KV": str(directory / "discovery"),
        # A mocker leaves a file there.
        "TMPDIR": str(directory),
        "DYN_HTTP_RPC_HOST": LOOPBACK,
        "DYN_TCP_RPC_HOST": LOOPBACK,
        "DYN_SYSTEM_HOST": LOOPBACK,
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "DYN_ZMQ_BROKER_URL": (
            f"xsub=tcp://{LOOPBACK}:{ports.event_publishers} , "
            f"xpub=tcp://{LOOPBACK}:{ports.event_subscribers}"
        ),
        "DYN_SELF_HOST_METADATA": "0",
        "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        "DYN_LOG": "warn",
        "HF_HUB_OFFLINE": "1",
    }


def own_home(directory: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """What keeps the frontend from leaving files in the user's home.

    It keeps a copy of every model's metadata in ``$HOME/.cache/dynamo/mdc``, and nothing but
    ``HOME`` decides where (``mdc_cache_root`` in Dynamo's ``lib/llm/src/model_card.rs``). What
    else is looked for from there stays where it is: the caches of models, and what was installed
    with ``pip --user``.
    """
    caches = variables.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return {
        "HOME": str(directory / "home"),
        "XDG_CACHE_HOME": caches,
        "HF_HOME": variables.get("HF_HOME") or str(Path(caches, "huggingface")),
        "PYTHONUSERBASE": site.getuserbase(),
    }


def inherited_environment(source: Mapping[str, str] | None = None) -> dict[str, str]:
    """The plugin's environment without settings that would steer Dynamo behind our back."""
    source = os.environ if source is None else source
    return {key: value for key, value in source.items() if not key.startswith(("DYN_", "PYTEST_"))}


def process_specs(
    benchmark: Benchmark,
    configuration: Configuration,
    directory: Path,
    logs: Path,
    ports: Ports,
    fast_forward: float = 1.0,
    images: ImageServing | None = None,
) -> list[ProcessSpec]:
    """Event tap, frontend, and workers, in starting order.

    Workers are one process of mockers for each role; for traffic with images those of its engine.
    """
    ours = environment(directory, ports) | dict(images.variables if images is not None else {})
    python = interpreter(configuration.dynamo) if images is None else images.python
    # What it needs is a requirement of Dynamo.
    tap = [
        python, str(Path(__file__).with_name("event_tap.py")),
        "--publishers-port", str(ports.event_publishers),
        "--subscribers-port", str(ports.event_subscribers),
        "--events", str(directory / "events.jsonl"),
    ]  # fmt: skip
    frontend = [
        python, "-m", "dynamo.frontend",
        "--http-host", LOOPBACK, "--http-port", str(ports.frontend),
        "--router-mode", configuration.router, "--discovery-backend", "file",
        *option_arguments(configuration.frontend_args),
    ]  # fmt: skip
    commands: dict[str, Sequence[str]] = {"event-tap": tap, "frontend": frontend}
    if images is not None:
        commands |= images.commands
    else:
        for worker in configuration.workers:
            commands[worker.mode] = mocker_command(
                benchmark, configuration, worker, directory, fast_forward
            )
    inherited = inherited_environment()
    home = own_home(directory, inherited)
    own: dict[str, Mapping[str, str]] = dict.fromkeys(commands, configuration.env)
    own["event-tap"] = {}
    own["frontend"] = {**configuration.env, **home}
    dynamos: dict[str, str | None] = dict.fromkeys(commands, configuration.dynamo)
    for worker in configuration.workers:
        # With images there is one role, of one process or several.
        for name in images.commands if images is not None else (worker.mode,):
            own[name] = {**configuration.env, **worker.env}
            dynamos[name] = configuration.dynamos[worker.mode]
    return [
        ProcessSpec(
            name, argv, {**variables_for(dynamos[name], inherited), **ours, **own[name]},
            logs / f"{name}.log",
        )
        for name, argv in commands.items()
    ]  # fmt: skip


def check_options(benchmark: Benchmark, configuration: Configuration, *, images: bool) -> None:
    """Have its Dynamo look at the options and variables that a configuration gives.

    Raises:
        TargetError: it has no such option, or does not take the value.
    """
    given = {"frontend": configuration.frontend_args}
    if not images:
        given |= {worker.mode: worker.engine_args for worker in configuration.workers}
    nowhere = Path("/nowhere")
    serving = ImageServing({}, sys.executable) if images else None
    for spec in process_specs(
        benchmark, configuration, nowhere, nowhere, Ports(0, 0, 0), images=serving
    ):
        if spec.name in given:
            _, _, program, *arguments = spec.argv
            dynamo = resolve(configuration.dynamos[spec.name])
            steering = {k: v for k, v in spec.environment.items() if k.startswith("DYN_")}
            refuse_unknown(
                f"configuration {configuration.name!r}", program, given[spec.name],
                parse_command(dynamo, program, arguments, steering),
            )  # fmt: skip


def check_programs(benchmark: Benchmark, configuration: Configuration) -> None:
    """See that a Dynamo that has not been tried has every option that it would be given.

    One that ignored its port would come up at another configuration's, or where anybody is.

    Raises:
        TargetError: it lacks some.
    """
    nowhere = Path("/nowhere")
    for spec in process_specs(benchmark, configuration, nowhere, nowhere, Ports(0, 0, 0)):
        if spec.name not in configuration.dynamos:
            continue
        dynamo = resolve(configuration.dynamos[spec.name])
        if not untried(dynamo):
            continue
        _, _, program, *arguments = spec.argv
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        lacking = sorted(given - parse_command(dynamo, program, [], {}).options.keys())
        if lacking:
            raise TargetError(
                f"configuration {configuration.name!r}: {program} of {dynamo} has no "
                f"{', '.join(lacking)}, which target 'local' gives it; name another release "
                f"({', '.join(TRIED)} have been tried)"
            )


def kv_blocks(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> int | None:
    """Blocks that a mocker gets per replica or rank; None where their number is not known.

    Where the mocker has no host tier, it is modelled as more blocks; which hits are the host's is
    counted afterwards.
    """
    try:
        device = device_blocks(benchmark, configuration, worker)
    except TargetError:
        return None
    if worker.mode in host_tiers(benchmark, configuration, benchmark.engine):
        return device
    return device + host_blocks(benchmark, configuration, worker)


def mocker_command(
    benchmark: Benchmark,
    configuration: Configuration,
    worker: Worker,
    directory: Path,
    fast_forward: float = 1.0,
) -> list[str]:
    """The command line of the mockers of one role, one process for all its replicas.

    A prefill worker gets no drafts, since it generates nothing. A decode worker gets the
    engine's own limit of tokens in a step: a mocker takes a prompt that was processed elsewhere
    through as many steps as that limit asks for, which an engine that receives the KV cache
    does not.
    """
    command = [
        interpreter(configuration.dynamos[worker.mode]), "-m", "dynamo.mocker",
        "--model-path", str(directory / "model"),
        "--num-workers", str(worker.replicas),
        "--discovery-backend", "file",
        "--engine-type", benchmark.engine,
        "--block-size", str(configuration.block_size),
        "--enable-prefix-caching" if worker.prefix_caching else "--no-enable-prefix-caching",
    ]  # fmt: skip
    optional: dict[str, object] = {
        "--num-gpu-blocks-override": kv_blocks(benchmark, configuration, worker),
        "--max-num-seqs": worker.max_num_seqs,
        "--max-num-batched-tokens": (
            None if worker.mode == "decode" else worker.max_num_batched_tokens
        ),
        "--data-parallel-size": worker.attention_dp if worker.attention_dp > 1 else None,
        "--speedup-ratio": f"{fast_forward:g}" if fast_forward != 1 else None,
    }
    drafts = worker.speculative
    if drafts is not None and worker.mode != "prefill":
        optional["--aic-nextn"] = drafts.draft_tokens
        optional["--aic-nextn-accept-rates"] = ",".join(f"{r:g}" for r in drafts.acceptance_rates)
    profile = find_profile(benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker)
    if profile is not None:
        optional["--planner-profile-data"] = str(profile.path)
    if worker.mode != "aggregated":
        # No --bootstrap-ports: they stand for SGLang's handshake, and bind all interfaces.
        command += ["--disaggregation-mode", worker.mode]
        # The mocker's speed-up leaves transfers as they are; what it takes for one that is not
        # given depends on the release.
        bandwidth = benchmark.hardware.kv_transfer_gb_per_second or _KV_TRANSFER_GB_PER_SECOND
        optional["--kv-transfer-bandwidth"] = f"{bandwidth * fast_forward:g}"
        optional["--kv-bytes-per-token"] = model_dimensions(benchmark.model).kv_bytes_per_token
    tier = host_tiers(benchmark, configuration, benchmark.engine).get(worker.mode)
    if tier is not None:
        # Nor does the mocker's speed-up change these transfers.
        optional |= {
            "--num-host-blocks": tier.blocks,
            "--host-offload-d2h-bandwidth-gbps": f"{tier.to_host_gb_per_second * fast_forward:g}",
            "--host-offload-h2d-bandwidth-gbps": f"{tier.to_gpu_gb_per_second * fast_forward:g}",
            "--kv-bytes-per-token": tier.bytes_per_token,
        }
    for option, value in optional.items():
        if value is not None:
            command += [option, str(value)]
    return command + option_arguments(worker.engine_args)

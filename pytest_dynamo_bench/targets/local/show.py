"""What a local deployment would be, as shell commands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, ScaleName
from pytest_dynamo_bench.dynamo_options import shown_variables
from pytest_dynamo_bench.targets.local.commands import Ports, environment, process_specs
from pytest_dynamo_bench.targets.local.scaling import sized
from pytest_dynamo_bench.targets.local.vision.deployment import VisionWorkers

_SCALE: ScaleName = "standard"
_SCRATCH, _LOGS = Path("$SCRATCH"), Path("$LOGS")
_PORTS = Ports(frontend=8000, event_publishers=8001, event_subscribers=8002)


def describe(benchmark: Benchmark, configuration: Configuration) -> str:
    """The processes of a local deployment as shell commands, in starting order.

    At scale standard: the size of embedding caches, and how fast modelled time runs, depend on it.
    """
    lines = ["# ports are chosen at startup; $SCRATCH is a temporary directory"]
    size = benchmark.size(_SCALE)
    traffic = sized(benchmark, _SCALE, size)
    images = None
    if traffic.images is not None:
        images = VisionWorkers().serving(benchmark, configuration, traffic, _SCRATCH)
    variables = environment(_SCRATCH, _PORTS) | dict(images.variables if images else {})
    variables |= shown_variables(configuration.env)
    lines += [f"export {name}={_quoted(value)}" for name, value in variables.items()]
    for spec in process_specs(
        benchmark, configuration, _SCRATCH, _LOGS, _PORTS, size.fast_forward, images
    ):
        own = {
            name: shown_variables(worker.env)
            for worker in configuration.workers
            for name in (images.commands if images is not None else (worker.mode,))
        }
        words = [f"{name}={value}" for name, value in own.get(spec.name, {}).items()]
        python = "python" if spec.argv[0] == sys.executable else spec.argv[0]
        words += [python, *spec.argv[1:]]
        command = " ".join(_quoted(part) for part in words)
        lines += [f"# {spec.name}", command]
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """For a shell, which is to put the directory in."""
    return f'"{word}"' if word.startswith(f"{_SCRATCH}/") else shlex.quote(word)

"""Times every arm of the replay target beside Dynamo's bare replay with the same arguments.

    python performance/replay.py benchmarks/*.py
    python performance/replay.py benchmarks/qwen3_32b_kv_routing.py --repeats 3 --json replay.json

For each configuration in turn: the arm as ``pytest --dynamo-target=replay`` measures it (writing
the trace, pricing prefixes, simulating, reading records), then ``python -m dynamo.replay`` on the
same trace with the same engine arguments, as a whole process. Prints a Markdown table, of medians
if repeated. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, traffic_for
from pytest_dynamo_bench.cli.common import load_benchmark
from pytest_dynamo_bench.errors import DynamoBenchError
from pytest_dynamo_bench.targets.base import PlannedRun, Unwatched
from pytest_dynamo_bench.targets.replay.child import peak_memory_mb
from pytest_dynamo_bench.targets.replay.results import write_trace
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import Traffic


@dataclass(frozen=True)
class Timing:
    """One arm: seconds of wall time and MB of peak memory, here and of the bare command.

    ``memory_mb`` is of the simulating process on both sides.
    """

    benchmark: str
    configuration: str
    requests: int
    seconds: float
    bare_seconds: float
    memory_mb: float
    bare_memory_mb: float
    simulations: int
    pilot_requests: int

    @property
    def ratio(self) -> float:
        return self.seconds / self.bare_seconds


def time_arm(benchmark: Benchmark, configuration: Configuration, traffic: Traffic) -> Timing:
    """Time one arm, then the bare replay of it."""
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-performance-") as scratch:
        directory = Path(scratch)
        began = time.perf_counter()
        run = ReplayTarget().measure(
            PlannedRun(benchmark, configuration, traffic, directory), Unwatched()
        )
        here_seconds = time.perf_counter() - began
        trace = directory / "trace.jsonl"
        write_trace(traffic_for(traffic, configuration).requests, trace)
        words = shlex.split(run.deployed["command"])
        words[0], words[words.index("trace.jsonl")] = sys.executable, str(trace)
        words += ["--report-jsonl", str(directory / "bare.jsonl")]
        words += ["--report-json", str(directory / "bare.json")]
        began = time.perf_counter()
        with (directory / "bare.log").open("wb") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, env={**os.environ, "DYN_LOG": "error"}
            )
            memory = 0
            while process.poll() is None:
                memory = max(memory, peak_memory_mb(str(process.pid)) or 0)
                time.sleep(0.02)
        seconds = time.perf_counter() - began
        if process.returncode:
            tail = (directory / "bare.log").read_text(errors="replace")[-2000:]
            raise SystemExit(f"the bare replay of {configuration.name} failed:\n{tail}")
    observed = run.observed
    return Timing(
        benchmark=benchmark.name,
        configuration=configuration.name,
        requests=len(run.records),
        seconds=here_seconds,
        bare_seconds=seconds,
        memory_mb=observed["simulation_peak_memory_mb"],
        bare_memory_mb=memory,
        simulations=observed["prefill_pricing"]["simulations"],
        pilot_requests=observed["prefill_pricing"]["pilot_requests"],
    )


def median(timings: list[Timing]) -> Timing:
    """The timing with the median ratio."""
    middle = statistics.median_low([timing.ratio for timing in timings])
    return next(timing for timing in timings if timing.ratio == middle)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("benchmarks", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--repeats", type=int, default=1, help="times each arm is timed (1)")
    parser.add_argument("--json", type=Path, help="also write all timings there")
    options = parser.parse_args()
    timings: list[Timing] = []
    print(
        "| benchmark | configuration | requests | here, s | bare, s | ratio | here, MB | bare, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for path in options.benchmarks:
        try:
            benchmark = load_benchmark(path)
            ReplayTarget().check(benchmark)
        except DynamoBenchError as error:
            print(f"{path.name}: left out: {error}", file=sys.stderr)
            continue
        traffic = benchmark.traffic.load()
        for configuration in benchmark.configurations:
            repeated = []
            for _ in range(options.repeats):
                print(f"{benchmark.name}: {configuration.name}", file=sys.stderr)
                repeated.append(time_arm(benchmark, configuration, traffic))
            timings += repeated
            row = median(repeated)
            print(
                f"| {row.benchmark} | {row.configuration} | {row.requests:,} | {row.seconds:.1f} "
                f"| {row.bare_seconds:.1f} | {row.ratio:.2f} | {row.memory_mb:.0f} "
                f"| {row.bare_memory_mb:.0f} |",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps([asdict(timing) for timing in timings], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

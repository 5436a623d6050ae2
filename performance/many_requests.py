"""Times what follows a measurement of very many requests: storing, judging, reporting.

    python performance/many_requests.py
    python performance/many_requests.py --requests 33000 333000 --json many.json

Three runs, of a baseline and two treatments, are made up: requests of 100 chunks on average, in a
queue, in sessions of four turns, each a record of its own, as the load generator makes them. They
are stored and judged as a session does it (records, metrics, gates, five claims), then reported
from what is stored, each in a process of its own. Prints a Markdown table with seconds and the
peak of memory; starting Python and making the requests up are stated apart.
To time another commit, give its checkout as PYTHONPATH.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pytest_dynamo_bench import Benchmark, Claim, Configuration, Goodput, Hardware, Worker
from pytest_dynamo_bench.comparison import Comparison, MeasuringPlan
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.reports.store import ResultStore
from pytest_dynamo_bench.targets.base import PlannedRun, Progress, Unwatched
from pytest_dynamo_bench.traffic import FixedSchedule, Traffic, TrafficRequest, TrafficSource
from pytest_dynamo_bench.verdicts import GateThresholds

CHUNKS, TURNS, RATE = 100, 4, 40.0
# How fast each configuration is: time to first token and time per chunk, in ms.
SPEED = {"agg": (120.0, 12.0), "agg-kv": (95.0, 12.0), "disagg": (140.0, 10.5)}


class MadeUp(TrafficSource):
    """A source of traffic, and a target that makes up what became of it."""

    name = "local"
    description = "made up"

    def __init__(self, requests: int) -> None:
        self.seconds = self.cpu_seconds = 0.0
        random = np.random.default_rng(1)
        due = np.cumsum(random.exponential(1000 / RATE, requests)).tolist()
        inputs = random.integers(200, 4000, requests).tolist()
        outputs = random.integers(CHUNKS // 2, 3 * CHUNKS // 2, requests).tolist()
        self._traffic = Traffic(
            tuple(
                TrafficRequest(
                    f"{i:07d}", f"s{i // TURNS:07d}", i % TURNS, due[i], 0.0, inputs[i], outputs[i],
                    (i,),
                )
                for i in range(requests)
            ),
            FixedSchedule(), 512, ("made up",),
        )  # fmt: skip

    def load(self) -> Traffic:
        """The traffic of the benchmark."""
        return self._traffic

    def check(self, benchmark: Benchmark) -> None:
        """Everything can be made up."""

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """The traffic as it is sent."""
        return self._traffic

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What is only modelled."""
        return ("everything is made up",)

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """A run of the configuration."""
        began, cpu_began = time.perf_counter(), time.process_time()
        name = planned.configuration.name
        first, step = SPEED[name]
        random = np.random.default_rng([len(name), len(planned.traffic.requests)])
        count = len(planned.traffic.requests)
        # Waits are long together, as in a queue.
        noise = random.standard_normal(count)
        queue = np.convolve(noise, 0.9 ** np.arange(60))[:count] * 0.2
        waits = (first * np.exp(queue + 0.1 * random.standard_normal(count))).tolist()
        records = []
        for index, request in enumerate(planned.traffic.requests):
            gaps = random.gamma(9.0, step / 9.0, request.output_tokens)
            sent = request.timestamp_ms + 0.2
            gaps[0] = waits[index] + sent
            chunks = array("d", np.cumsum(gaps).tobytes())
            worker = f"worker-{(index // TURNS + index // 7) % 8}"
            records.append(
                RequestRecord(
                    request.request_id, request.session_id, request.turn, request.timestamp_ms,
                    sent, chunks, chunks[-1] + 0.1, request.input_tokens, request.output_tokens,
                    prompt_tokens=request.input_tokens, completion_tokens=len(chunks),
                    cached_tokens=request.input_tokens * (index % TURNS) // TURNS,
                    router_hit_rate=(index % TURNS) / TURNS,
                    prefill_worker=worker, decode_worker=worker, response_id=f"chatcmpl-{index}",
                    status=200, receive_clock="kernel", coalesced_chunks=1,
                    chunk_tokens=None if index % 50 else (1,) * len(chunks),
                )
            )  # fmt: skip
        # Answers are recorded as they end.
        records.sort(key=lambda record: record.end_ms or 0.0)
        run = Run(
            planned.benchmark.name, name, self.name, planned.configuration.gpus, records,
            "2026-01-01T00:00:00+00:00", observed={"load_generator": {
                "cpu_share": 0.4, "kernel_timestamp_share": 1.0, "receive_lag_ms": {"p99": 1.0},
                "loop_busy_ms": {"p99": 1.0}, "clock_steps": 0,
            }},
        )  # fmt: skip
        self.seconds += time.perf_counter() - began
        self.cpu_seconds += time.process_time() - cpu_began
        return run


def store(directory: Path, requests: int) -> dict[str, Any]:
    """Make three runs up; store and judge them."""
    target = MadeUp(requests)
    claims = [
        Claim(f"{treatment} {metric}", metric, treatment, "agg", lower_by=0.05)
        for treatment, metric in (
            ("agg-kv", "ttft.mean"), ("agg-kv", "ttft.p99"), ("disagg", "itl.mean"),
            ("disagg", "latency.mean"),
        )
    ]  # fmt: skip
    claims.append(Claim("disagg goodput", "goodput", "disagg", "agg", higher_by=0.01))
    benchmark = Benchmark(
        name="many", question="What follows many requests?", model="Qwen/Qwen3-0.6B",
        hardware=Hardware("h200_sxm", 8), traffic=target,
        configurations=tuple(
            Configuration(name, workers=(Worker(replicas=8),), router="kv" if "kv" in name else
                          "round-robin", role="baseline" if name == "agg" else "treatment")
            for name in SPEED
        ),
        goodput=Goodput(time_to_first_token_ms=150, inter_token_latency_ms=12.5),
        claims=tuple(claims),
    )  # fmt: skip
    began, cpu_began = time.perf_counter(), time.process_time()
    comparison = Comparison(
        benchmark, target, ResultStore(directory, target.name, []),
        lambda *names: nullcontext(Unwatched()), claims=claims,
        plan=MeasuringPlan(thresholds=GateThresholds()),
    )  # fmt: skip
    verdicts = [comparison.verdict(claim) for claim in claims]
    return {
        "seconds": time.perf_counter() - began - target.seconds,
        "cpu_seconds": time.process_time() - cpu_began - target.cpu_seconds,
        "made_up_seconds": target.seconds,
        "outcomes": [verdict.outcome for verdict in verdicts],
    }


def report(directory: Path) -> dict[str, Any]:
    """Everything that is reported, from what is stored."""
    from pytest_dynamo_bench.cli.main import main as command_line

    began, cpu_began = time.perf_counter(), time.process_time()
    command_line(["report", str(directory)])
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[33_000, 333_000])
    parser.add_argument("--json", type=Path, help="also write all figures there")
    parser.add_argument("--keep", type=Path, help="results stay in this directory")
    parser.add_argument("--phase", choices=("store", "report"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        directory = options.keep
        found = store(directory, options.requests[0]) if options.phase == "store" else (
            report(directory))  # fmt: skip
        found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps(found))
        return 0
    print("| requests of each run | | seconds | of CPU | making up | peak, MB | outcomes |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for requests in options.requests:
        with tempfile.TemporaryDirectory() as scratch:
            directory = options.keep or Path(scratch) / "results"
            for phase in ("store", "report"):
                words = [sys.executable, __file__, "--phase", phase, "--keep", str(directory)]
                done = subprocess.run(
                    [*words, "--requests", str(requests)], stdout=subprocess.PIPE, text=True,
                    check=True,
                )  # fmt: skip
                row = {"made_up_seconds": 0.0, "outcomes": ()}
                row |= json.loads(done.stdout.splitlines()[-1])
                rows.append({"requests": requests, "phase": phase, **row})
                print(
                    f"| {requests:,} | {phase} | {row['seconds']:.1f} | {row['cpu_seconds']:.1f} "
                    f"| {row['made_up_seconds']:.1f} | {row['peak_mb']:,} "
                    f"| {', '.join(row['outcomes'])} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

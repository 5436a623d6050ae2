"""Measure load generators side by side on one reference server, and report what came out.

    python client_benchmark/compare.py run RESULTS.jsonl [--seconds 280] [--repeats 5]
        [--aiperf PATH] [--guidellm PATH] [--inference-perf PATH] [--wrk PATH]
    python client_benchmark/compare.py report RESULTS.jsonl docs/load-generator.md

``run`` does what is missing in RESULTS.jsonl, one repeat of everything after the other, and
stops when the time is up; call it again until it says that nothing is missing. A run during
which anything else took more than 5 % of the machine is thrown out and done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from tools import CHUNKS, HERE, Tool, Workload, available

MOST_OTHERS = 0.05
_SLOW = ("AIPerf", "guidellm", "inference-perf")
_START = Workload("start-up", 1, concurrency=1)


def workloads(tool: str) -> list[Workload]:
    """What is asked of a tool.

    Those that take long to start are asked less, and fewer requests where only the rate counts.
    """
    slow = tool in _SLOW
    found = [
        _START,
        Workload("1 stream", 12, concurrency=1),
        Workload("16 streams", 96, concurrency=16),
        # Enough for the processor time of the chunks to stand out from that of starting, which
        # differs by a tenth of a second from run to run.
        Workload("64 streams", 256 if slow else 4096, concurrency=64),
        Workload("200 streams", 600, concurrency=200),
        Workload(
            "capacity", 1200 if slow else 8000, concurrency=64, ttft_ms=0, itl_ms=0, in_step=False
        ),
        Workload("50 requests/s", 300, rate=50.0, input_tokens=2000, in_step=False),
    ]
    left_out = {
        "AIPerf": ("1 stream",),
        "inference-perf": ("1 stream", "16 streams", "50 requests/s"),
        "guidellm": ("1 stream", "16 streams", "64 streams", "50 requests/s"),
        "wrk": ("start-up", "1 stream", "16 streams", "200 streams", "50 requests/s"),
    }
    return [w for w in found if w.name not in left_out.get(tool, ())]


@dataclass(frozen=True)
class Server:
    """The running reference server."""

    url: str
    pid: int

    def get(self, path: str) -> str:
        return httpx.get(self.url + path, timeout=30, trust_env=False).text


@contextmanager
def reference_server(program: Path, workload: Workload) -> Iterator[Server]:
    """The server with the timing of a workload; it ends with this."""
    argv = [str(program), str(workload.ttft_ms), str(workload.itl_ms), str(int(workload.in_step))]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        try:
            yield Server(f"http://127.0.0.1:{int(child.stdout.readline())}", child.pid)
        finally:
            child.stdin.close()


def build(directory: Path) -> Path:
    """Compile the server."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        sys.exit("the reference server of this comparison needs a C compiler: install gcc")
    program = directory / "reference_server"
    subprocess.run(
        [compiler, "-O2", "-o", str(program), str(HERE / "reference_server.c")], check=True
    )
    return program


class Tree:
    """Processor time and memory of a process with all its descendants, while it runs."""

    def __init__(self, pid: int, leave_out: int | None = None) -> None:
        self._leave_out = leave_out
        self._root = psutil.Process(pid)
        self._cpu: dict[tuple[int, float], float] = {}
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu.values())

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self.look()

    def look(self) -> None:
        total = 0
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            if process.pid == self._leave_out:
                continue
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    self._cpu[key] = times.user + times.system
                    total += process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        self.peak_bytes = max(self.peak_bytes, total)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def _machine_busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    guest = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
    return float(sum(times)) - idle - guest


def measure(tool: Tool, workload: Workload, program: Path) -> dict[str, Any] | None:
    """One run; None when the tool cannot do this workload."""
    scratch = Path(tempfile.mkdtemp(prefix="client-benchmark-"))
    try:
        with reference_server(program, workload) as server:
            argv = tool.command(workload, server.url, scratch)
            if argv is None:
                return None
            others = psutil.Process(server.pid)
            server_before, own_before = others.cpu_times(), psutil.Process().cpu_times()
            busy_before, began_ns = _machine_busy_seconds(), time.monotonic_ns()
            # The children that have been waited for are in the parent's own account.
            usage_before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with (scratch / "output.txt").open("w") as output:
                child = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
                tree = Tree(child.pid)
                try:
                    code = child.wait(timeout=240)
                finally:
                    tree.end()
                    if child.poll() is None:
                        os.killpg(child.pid, signal.SIGKILL)
                        child.wait()
            wall = (time.monotonic_ns() - began_ns) / 1e9
            busy = _machine_busy_seconds() - busy_before
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            reaped = (usage.ru_utime + usage.ru_stime) - (
                usage_before.ru_utime + usage_before.ru_stime
            )
            cpu = max(reaped, tree.cpu_seconds)
            server_after, own_after = others.cpu_times(), psutil.Process().cpu_times()
            known = cpu + _spent(server_before, server_after) + _spent(own_before, own_after)
            if code:
                text = (scratch / "output.txt").read_text(errors="replace")
                raise SystemExit(f"{tool.name}, {workload.name}: exit {code}\n{text[-3000:]}")
            log = [[int(n) for n in line.split()] for line in server.get("/log").splitlines()]
        found = {
            "tool": tool.name,
            "workload": workload.name,
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "others_share": max(busy - known, 0.0) / (wall * (psutil.cpu_count() or 1)),
            "peak_bytes": tree.peak_bytes,
            "first_request_seconds": (min(entry[0] for entry in log) - began_ns) / 1e9,
            "chunks": sum(len(entry) - 1 for entry in log),
        }
        return found | judged(tool, workload, log, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _spent(before: Any, after: Any) -> float:
    return float(after.user + after.system - before.user - before.system)


def judged(tool: Tool, workload: Workload, log: list[list[int]], scratch: Path) -> dict[str, Any]:
    """What the tool recorded against what the server did, request by request in their order."""
    whole = [entry for entry in log if len(entry) == CHUNKS + 1]
    span = (max(entry[-1] for entry in whole) - min(entry[0] for entry in whole)) / 1e9
    found: dict[str, Any] = {"requests_per_second": len(whole) / span}
    requests = sorted(tool.read(scratch), key=lambda r: r.sent_ms)
    if not requests:
        return found
    if len(requests) != len(whole):
        raise ValueError(f"{tool.name} recorded {len(requests)} of {len(whole)} requests")
    whole.sort()
    true_ttft = np.array([(entry[1] - entry[0]) / 1e6 for entry in whole])
    error = np.abs(np.array([r.ttft_ms for r in requests]) - true_ttft)
    found["ttft_error_mean_ms"] = float(error.mean())
    found["ttft_error_p99_ms"] = float(np.percentile(error, 99))
    found["ttft_ms"] = float(np.mean([r.ttft_ms for r in requests]))
    found["true_ttft_ms"] = float(true_ttft.mean())
    gaps = [
        np.abs(np.asarray(r.gaps_ms) - np.diff(entry[1:]) / 1e6)
        for r, entry in zip(requests, whole, strict=True)
        if r.gaps_ms is not None and len(r.gaps_ms) == CHUNKS - 1
    ]
    if len(gaps) == len(requests):
        found["gap_error_p99_ms"] = float(np.percentile(np.concatenate(gaps), 99))
    if workload.rate:
        # By the server's clock, so that every tool is measured alike: how far each request
        # came from its place in the schedule that fits all of them best.
        arrivals = np.array([entry[0] for entry in whole]) / 1e6
        late = arrivals - 1000 / workload.rate * np.arange(len(arrivals))
        late -= np.percentile(late, 1)
        found["arrival_lateness_p50_ms"] = float(np.percentile(late, 50))
        found["arrival_lateness_p99_ms"] = float(np.percentile(late, 99))
        delays = [r.sent_ms - r.due_ms for r in requests if r.due_ms is not None]
        if delays:
            found["schedule_delay_p50_ms"] = float(np.percentile(delays, 50))
            found["schedule_delay_p99_ms"] = float(np.percentile(delays, 99))
    return found


def missing(results: Path, tools: list[Tool], repeats: int) -> Iterator[tuple[Tool, Workload]]:
    """What has not been measured often enough, one repeat of everything after the other.

    The tools do each workload one right after the other, since machines have their moods.
    """
    done: Counter[tuple[str, str]] = Counter()
    if results.exists():
        for line in results.read_text().splitlines():
            entry = json.loads(line)
            if entry["others_share"] <= MOST_OTHERS:
                done[entry["tool"], entry["workload"]] += 1
    names = [workload.name for workload in workloads("this client")]
    runs = [(tool, workload) for tool in tools for workload in workloads(tool.name)]
    runs.sort(key=lambda run: names.index(run[1].name))
    for repeat in range(repeats):
        for tool, workload in runs:
            if done[tool.name, workload.name] <= repeat:
                yield tool, workload


def run(options: argparse.Namespace) -> None:
    """Measure what is missing, as long as there is time."""
    from pytest_dynamo_bench.engines import model_dimensions
    from pytest_dynamo_bench.targets.local.model_directory import write_model_directory

    until = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory(prefix="client-benchmark-") as directory:
        program = build(Path(directory))
        tokenizer = Path(directory) / "model"
        write_model_directory(tokenizer, model_dimensions("Qwen/Qwen3-32B"))
        paths = {name: getattr(options, name.replace("-", "_")) for name in options.names}
        tools = [
            tool
            for tool in available(paths, tokenizer)
            if not options.only or tool.name in options.only.split(",")
        ]
        left = list(missing(options.results, tools, options.repeats))
        longest: dict[str, float] = {}
        for index, (tool, workload) in enumerate(left):
            if time.monotonic() + longest.get(tool.name, 20.0) > until:
                print(f"{len(left) - index} runs are missing; call again")
                return
            began = time.monotonic()
            found = measure(tool, workload, program)
            longest[tool.name] = max(longest.get(tool.name, 0.0), time.monotonic() - began)
            if found is None:
                continue
            with options.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
            kept = "" if found["others_share"] <= MOST_OTHERS else "  THROWN OUT"
            figures = ("ttft_error_mean_ms", "ttft_error_p99_ms", "gap_error_p99_ms",
                       "requests_per_second", "schedule_delay_p99_ms")  # fmt: skip
            print(
                f"{tool.name:15} {workload.name:14} {found['wall_seconds']:6.1f} s  "
                f"others {found['others_share']:.1%}{kept}  "
                + " ".join(f"{key}={found[key]:.3f}" for key in figures if key in found),
                flush=True,
            )
        again = bool(list(missing(options.results, tools, options.repeats)))
    print("thrown-out runs are missing; call again" if again else "nothing is missing")


def machine() -> dict[str, Any]:
    """The machine, without its name."""
    names = ("pytest-dynamo-bench", "numpy", "httptools", "msgspec")
    return {
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    running = commands.add_parser("run", help="measure what is missing")
    running.add_argument("results", type=Path)
    running.add_argument("--seconds", type=float, default=280.0, help="stop after (default: 280)")
    running.add_argument("--repeats", type=int, default=5)
    running.add_argument("--only", metavar="TOOL,…", help="only these, such as 'AIPerf,wrk'")
    names = ("aiperf", "guidellm", "inference-perf", "wrk")
    for name in names:
        running.add_argument(f"--{name}", metavar="PATH", help=f"the program of {name}")
    running.set_defaults(do=run, names=names)
    reporting = commands.add_parser("report", help="write the table and the figure")
    reporting.add_argument("results", type=Path)
    reporting.add_argument("page", type=Path)
    reporting.set_defaults(do=report)
    options = parser.parse_args()
    options.do(options)


def report(options: argparse.Namespace) -> None:
    """Write the page."""
    from page import write_page

    write_page(options.results, options.page, machine())


if __name__ == "__main__":
    main()

"""``traffic``: what a benchmark's requests, or those of a file, are like; whole and cut."""

from __future__ import annotations

import argparse
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, traffic_for
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.engines import kv_capacity_tokens
from pytest_dynamo_bench.errors import DynamoBenchError, TrafficError
from pytest_dynamo_bench.traffic import (
    Concurrency,
    TraceFile,
    Traffic,
    cut,
    describe,
    write_mooncake,
)
from pytest_dynamo_bench.traffic.mooncake import BLOCK_TOKENS

_WINDOW_SECONDS = 10.0
_PERCENTILES = (50, 90, 99)


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "traffic",
        help="what the requests of a benchmark, or of a file, are like",
        description="Describes traffic: lengths, reuse, schedule, load per worker and cache "
        "pressure, of the whole and of the cut that the local target sends. A file may be a "
        "Mooncake trace, Dynamo's request trace, or AIPerf's inputs; also gzip or xz.",
    )
    parser.add_argument("source", type=Path, metavar="MODULE.py|FILE", help="a benchmark or a file")
    parser.add_argument(
        "--seconds", type=_seconds, default=35.0, metavar="N",
        help="length of the cut (default: %(default)g, the local target's)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="which of equally good cuts (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="OUT.jsonl", help="write the whole in Mooncake's format"
    )
    parser.add_argument(
        "--write-cut", type=Path, metavar="OUT.jsonl", help="write the cut in Mooncake's format"
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    (value, *others) = common.numbers(text)
    if others:
        raise argparse.ArgumentTypeError(f"{text!r}: give one number of seconds")
    return value


def run(options: argparse.Namespace) -> None:
    """Describe, and write where asked.

    Raises:
        DynamoBenchError: the module or the file cannot be read, or the cut cannot be made.
    """
    benchmark = None
    if options.source.suffix == ".py":
        benchmark = common.load_benchmark(options.source)
        whole = benchmark.traffic.load()
        name = f"{benchmark.name}: {benchmark.traffic.description}"
    else:
        whole = TraceFile(str(options.source)).load()
        name = f"{options.source.name}, {whole.schedule.description}"
    try:
        short = cut(whole, options.seconds, seed=options.seed)
        problem = ""
    except TrafficError as error:
        short, problem = None, str(error)
    if short is whole:
        short = None
        problem = (
            f"no cut: it is no longer than {options.seconds:g} s as it is"
            if whole.duration_seconds > 0
            else f"no cut: with {whole.schedule.description} it has no times to compress"
        )
    console = common.output_console()
    console.print(Text(name, style="bold"), soft_wrap=True)
    for step in whole.history:
        console.print(Text(f"  {step}"), soft_wrap=True)
    shown = {"whole": whole} | ({f"cut to {options.seconds:g} s": short} if short else {})
    table = common.plain_table("", *shown)
    for label, values in _figures(list(shown.values()), benchmark):
        table.add_row(Text(label), *values)
    console.print(table)
    if problem:
        console.print(Text(problem), soft_wrap=True)
    if short is not None:
        for step in short.history[len(whole.history) :]:
            console.print(Text(step), soft_wrap=True)
    if options.write:
        _write(whole, options.write)
        common.say_written(console, [options.write])
    if options.write_cut:
        if short is None:
            raise TrafficError(f"--write-cut: {problem}")
        _write(short, options.write_cut)
        common.say_written(console, [options.write_cut])


def _write(traffic: Traffic, path: Path) -> None:
    """Write a Mooncake trace in one step."""
    if traffic.block_tokens != BLOCK_TOKENS:
        raise TrafficError(
            f"{path.name}: a Mooncake trace has an id for every {BLOCK_TOKENS} tokens; this "
            f"traffic has one for every {traffic.block_tokens}"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            write_mooncake(traffic.requests, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _figures(
    traffics: Sequence[Traffic], benchmark: Benchmark | None
) -> list[tuple[str, list[str]]]:
    """Rows of the table: a label with its unit, and a text per traffic."""
    rows: list[tuple[str, list[str]]] = []

    def row(label: str, value: Callable[[Traffic], str]) -> None:
        rows.append((label, [value(traffic) for traffic in traffics]))

    row("requests", lambda t: f"{len(t.requests):,}")
    row("sessions", lambda t: f"{describe(t).sessions:,}")
    row("turns per session, mean / most", _turns)
    row("schedule", lambda t: t.schedule.description)
    first = traffics[0]
    timed = not isinstance(first.schedule, Concurrency) and first.duration_seconds > 0
    if timed:
        row("duration, s", lambda t: f"{t.duration_seconds:,.1f}")
        row("requests/s, mean", lambda t: _per_second(len(t.requests), t))
        row(f"requests/s, busiest {_WINDOW_SECONDS:g} s", _peak)
    for what, attribute in (("input", "input_tokens"), ("output", "output_tokens")):
        row(
            f"{what} tokens, mean",
            lambda t, attribute=attribute: (  # type: ignore[misc]
                f"{np.mean([getattr(r, attribute) for r in t.requests]):,.0f}"
            ),
        )
        row(
            f"{what} tokens, p50 / p90 / p99 / most",
            lambda t, attribute=attribute: _percentiles(  # type: ignore[misc]
                [getattr(r, attribute) for r in t.requests]
            ),
        )
    if timed:
        row("input tokens/s", lambda t: _per_second(describe(t).input_tokens, t))
        row("output tokens/s", lambda t: _per_second(describe(t).output_tokens, t))
    row("reusable blocks, %", lambda t: f"{100 * describe(t).reusable_share:.1f}")
    row("working set, tokens", lambda t: f"{describe(t).working_set_tokens:,}")
    for configuration in benchmark.configurations if benchmark else ():
        if timed:
            row(
                f"{configuration.name}: input tokens/s per prefilling worker",
                lambda t, c=configuration: _per_second(  # type: ignore[misc]
                    describe(t).input_tokens / c.prefill_replicas, t
                ),
            )
        if configuration.concurrency is not None or configuration.requests is not None:
            row(
                f"{configuration.name}: its own schedule and requests",
                lambda t, c=configuration: _own(t, c),  # type: ignore[misc]
            )
        tokens = _kv_tokens(benchmark, configuration) if benchmark else None
        row(
            f"{configuration.name}: working set / KV cache of prefilling workers",
            lambda t, tokens=tokens: (  # type: ignore[misc]
                f"{describe(t).cache_pressure(tokens):.2f}" if tokens else "not known"
            ),
        )
    return rows


def _kv_tokens(benchmark: Benchmark, configuration: Configuration) -> int | None:
    """KV tokens of all workers that keep prefixes; None where a capacity isn't known."""
    total = 0
    for worker in configuration.workers:
        if worker.mode == "decode":
            continue
        ranks = worker.replicas * worker.attention_dp
        if worker.kv_blocks is not None:
            total += ranks * worker.kv_blocks * configuration.block_size
            continue
        try:
            total += ranks * kv_capacity_tokens(
                benchmark.model, benchmark.hardware.gpu, worker, benchmark.engine
            )
        except (DynamoBenchError, KeyError, ValueError):
            return None
    return total


def _own(traffic: Traffic, configuration: Configuration) -> str:
    """What a configuration with a load of its own gets."""
    own = traffic_for(traffic, configuration)
    return f"{own.schedule.description}, {len(own.requests):,}"


def _per_second(count: float, traffic: Traffic) -> str:
    seconds = traffic.duration_seconds
    rate = count / seconds
    return f"{rate:,.2f}" if rate < 100 else f"{rate:,.0f}"


def _turns(traffic: Traffic) -> str:
    counts = Counter(request.session_id for request in traffic.requests)
    return f"{len(traffic.requests) / len(counts):.2f} / {max(counts.values())}"


def _peak(traffic: Traffic) -> str:
    times = np.array([r.timestamp_ms for r in traffic.requests if r.turn == 0]) / 1000
    bins = np.bincount((times / _WINDOW_SECONDS).astype(int))
    return f"{bins.max() / _WINDOW_SECONDS:,.2f}"


def _percentiles(values: Sequence[int]) -> str:
    parts = [*np.percentile(values, _PERCENTILES), max(values)]
    return " / ".join(f"{math.floor(part + 0.5):,}" for part in parts)

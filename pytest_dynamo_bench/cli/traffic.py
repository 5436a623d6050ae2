"""``traffic``: what a benchmark's requests, or those of a file, are like; whole and cut.

Also writes them, as a Mooncake trace or as an AIPerf dataset, and draws them.
"""

from __future__ import annotations

import argparse
import io
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.text import Text

from pytest_dynamo_bench.benchmark import (
    DEFAULT_SIZES,
    Benchmark,
    Configuration,
    ScaleName,
    traffic_for,
)
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.engines import kv_capacity_tokens
from pytest_dynamo_bench.errors import DynamoBenchError, TrafficError
from pytest_dynamo_bench.files import whole_file, write_whole
from pytest_dynamo_bench.reports.figures import TrafficLines, write_traffic
from pytest_dynamo_bench.traffic import (
    Arrivals,
    Concurrency,
    TraceFile,
    Traffic,
    aiperf_rows,
    arrivals,
    cut,
    describe,
    write_mooncake,
)
from pytest_dynamo_bench.traffic.images import media_type
from pytest_dynamo_bench.traffic.model import BLOCK_TOKENS

_WINDOW_SECONDS = 10.0
_PERCENTILES = (50, 90, 99)
_SCALE: ScaleName = "standard"
_SECONDS = DEFAULT_SIZES[_SCALE].seconds or 0.0


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "traffic",
        help="describe the traffic of a benchmark or a file",
        description="Shows lengths, reuse, schedule, load per worker and cache pressure, for the "
        "whole traffic and for the cut that target local sends. A file can be a Mooncake trace, a "
        "Dynamo request trace or an AIPerf input file, also compressed with gzip or xz.",
    )
    parser.add_argument("source", type=Path, metavar="MODULE.py|FILE", help="a benchmark or a file")
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N",
        help=f"length of the cut (default: the benchmark's at --dynamo-scale={_SCALE}; "
        f"{_SECONDS:g} for a file)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="seed of the cut; all cuts are equally representative (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--write", type=Path, metavar="OUT.jsonl", help="write the whole traffic as Mooncake trace"
    )
    parser.add_argument(
        "--write-cut", type=Path, metavar="OUT.jsonl", help="write the cut as Mooncake trace"
    )
    parser.add_argument(
        "--write-aiperf", type=Path, metavar="OUT.jsonl",
        help="write the whole traffic as AIPerf dataset (--custom-dataset-type single_turn) with "
        "texts, and its images as files in OUT-images; run aiperf in the directory of OUT.jsonl, "
        "because image paths are relative",
    )  # fmt: skip
    parser.add_argument(
        "--write-aiperf-cut", type=Path, metavar="OUT.jsonl",
        help="the same for the cut",
    )  # fmt: skip
    parser.add_argument(
        "--figure", type=Path, metavar="OUT.svg",
        help="plot lengths, reuse and schedule as SVG or PNG",
    )  # fmt: skip
    parser.add_argument(
        "--concurrency", type=int, metavar="N",
        help="sessions in flight, for a file without timestamps",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    (value, *others) = common.numbers(text)
    if others:
        raise argparse.ArgumentTypeError(f"{text!r}: must be one number of seconds")
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
        whole = _file(options).load()
        name = f"{options.source.name}, {whole.schedule.description}"
    label, short, problem = _short(benchmark, whole, options)
    console = common.output_console()
    console.print(Text(name, style="bold"), soft_wrap=True)
    for step in whole.history:
        console.print(Text(f"  {step}"), soft_wrap=True)
    shown = {"whole": whole} | ({label: short} if short else {})
    table = common.plain_table("", *shown)
    timed = not isinstance(whole.schedule, Concurrency) and whole.duration_seconds > 0
    columns = [_figures(traffic, benchmark, timed=timed) for traffic in shown.values()]
    for label in {label: None for rows in columns for label in rows}:
        table.add_row(Text(label), *(rows.get(label, "-") for rows in columns))
    console.print(table)
    if problem:
        console.print(Text(problem), soft_wrap=True)
    if short is not None:
        for step in short.history[len(whole.history) if short.images is None else 0 :]:
            console.print(Text(step), soft_wrap=True)
    written: list[Path] = []
    for option, traffic, write in (
        ("write", whole, _write_mooncake),
        ("write-cut", short, _write_mooncake),
        ("write-aiperf", whole, _write_aiperf),
        ("write-aiperf-cut", short, _write_aiperf),
    ):
        path = getattr(options, option.replace("-", "_"))
        if path is not None:
            if traffic is None:
                raise TrafficError(f"--{option}: {problem}")
            written += write(traffic, path)
    if options.figure:
        write_traffic(
            options.figure, [_lines(name, traffic) for name, traffic in shown.items()],
            title=f"Traffic of {benchmark.name if benchmark else options.source.name}",
            subtitle=whole.schedule.description,
        )  # fmt: skip
        written.append(options.figure)
    if written:
        common.say_written(console, written)


def _file(options: argparse.Namespace) -> TraceFile:
    if options.concurrency is None:
        return TraceFile(str(options.source))
    return TraceFile(str(options.source), Concurrency(options.concurrency))


def _short(
    benchmark: Benchmark | None, whole: Traffic, options: argparse.Namespace
) -> tuple[str, Traffic | None, str]:
    """What the local target sends: its name, the traffic if it is another, and why it isn't."""
    if benchmark is not None and _SCALE in benchmark.sizes:
        from pytest_dynamo_bench.targets.local.scaling import sized

        size = benchmark.size(_SCALE).lasting(options.seconds)
        return f"local, {_SCALE}", sized(benchmark, _SCALE, size, options.seed), ""
    seconds = options.seconds or _SECONDS
    label = f"cut to {seconds:g} s"
    try:
        short = cut(whole, seconds, seed=options.seed)
    except TrafficError as error:
        return label, None, str(error)
    if short is not whole:
        return label, short, ""
    if whole.duration_seconds > 0:
        return label, None, f"no cut: the traffic is not longer than {seconds:g} s"
    return label, None, f"no cut: {whole.schedule.description} has no timestamps to compress"


def _write_mooncake(traffic: Traffic, path: Path) -> list[Path]:
    """Write a Mooncake trace in one step."""
    if traffic.block_tokens != BLOCK_TOKENS:
        raise TrafficError(
            f"{path.name}: a Mooncake trace has one id per {BLOCK_TOKENS} tokens; this traffic has "
            f"one per {traffic.block_tokens}"
        )
    if traffic.images is not None:
        raise TrafficError(f"{path.name}: a Mooncake trace cannot have images; use --write-aiperf")
    with whole_file(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
        write_mooncake(traffic.requests, text)
    return [path]


def _write_aiperf(traffic: Traffic, path: Path) -> list[Path]:
    """Write an AIPerf dataset, the images first; nothing is held but one of them."""
    written = [path]
    places: dict[int, str] = {}
    if traffic.images is not None:
        directory = path.with_name(f"{path.stem}-images")
        directory.mkdir(parents=True, exist_ok=True)
        shown = sorted({image for request in traffic.requests for image in request.images})
        for image in track(
            shown, f"writing {len(shown)} images", console=Console(stderr=True), transient=True
        ):
            content = traffic.images.encoded(image)
            ending = media_type(content).removeprefix("image/")
            name = f"image-{image:04d}.{ending}"
            places[image] = f"{directory.name}/{name}"
            write_whole(directory / name, content)
        written.append(directory)
    with whole_file(path) as file:
        for row in aiperf_rows(traffic, places.__getitem__):
            file.write(f"{json.dumps(row)}\n".encode())
    return written


def _lines(name: str, traffic: Traffic) -> TrafficLines:
    """What a figure shows of a traffic."""
    seen: set[int] = set()
    references, repeats, reuse = 0, 0, []
    for request in traffic.requests:
        items = request.images if traffic.images is not None else request.hash_ids
        references += len(items)
        repeats += sum(item in seen for item in items)
        seen.update(items)
        reuse.append(repeats / references if references else 0.0)
    starts = [r.timestamp_ms / 1000 for r in traffic.requests if r.turn == 0]
    return TrafficLines(
        name=name,
        input_tokens=[r.input_tokens for r in traffic.requests],
        output_tokens=[r.output_tokens for r in traffic.requests],
        reuse=reuse,
        reuse_of="images" if traffic.images is not None else "prompt blocks",
        starts_seconds=[] if isinstance(traffic.schedule, Concurrency) else starts,
        turns=list(Counter(r.session_id for r in traffic.requests).values()),
    )


def _figures(traffic: Traffic, benchmark: Benchmark | None, *, timed: bool) -> dict[str, str]:
    """What a table says of a traffic, by labels with units.

    Args:
        timed: whether its requests, or those that it is cut from, have times.
    """
    figures = describe(traffic)
    turns = Counter(request.session_id for request in traffic.requests)
    rows = {
        "requests": f"{figures.requests:,}",
        "sessions": f"{figures.sessions:,}",
        "turns per session, mean / most": f"{figures.requests / len(turns):.2f} / "
        f"{max(turns.values())}",
        "schedule": traffic.schedule.description,
    }
    if timed:
        rows["duration, s"] = f"{traffic.duration_seconds:,.1f}"
        rows |= _starts(arrivals(traffic))
        rows["requests/s, mean"] = _per_second(figures.requests, traffic)
        rows[f"requests/s, busiest {_WINDOW_SECONDS:g} s"] = _peak(traffic)
    for what in ("input", "output"):
        tokens = [getattr(request, f"{what}_tokens") for request in traffic.requests]
        parts = [*np.percentile(tokens, _PERCENTILES), max(tokens)]
        rows[f"{what} tokens, mean"] = f"{np.mean(tokens):,.0f}"
        rows[f"{what} tokens, p50 / p90 / p99 / most"] = " / ".join(
            f"{math.floor(part + 0.5):,}" for part in parts
        )
    if timed:
        rows["input tokens/s"] = _per_second(figures.input_tokens, traffic)
        rows["output tokens/s"] = _per_second(figures.output_tokens, traffic)
    if traffic.images is not None:
        rows["images per request, mean"] = f"{figures.images / figures.requests:.2f}"
        rows["images, all / distinct"] = f"{figures.images:,} / {figures.distinct_images:,}"
        rows["images seen before, %"] = f"{100 * figures.repeated_images_share:.1f}"
        rows["size of images, pixels"] = _image_sizes(traffic)
        rows["distinct images, encoded, MB"] = f"{figures.image_bytes / 1e6:,.1f}"
        rows["images sent as base64, MB"] = _sent_megabytes(traffic)
    rows["reusable blocks, %"] = f"{100 * figures.reusable_share:.1f}"
    rows["working set, tokens"] = f"{figures.working_set_tokens:,}"
    for own in benchmark.configurations if benchmark else ():
        if timed:
            rows[f"{own.name}: input tokens/s per prefilling worker"] = _per_second(
                figures.input_tokens / own.prefill_replicas, traffic
            )
        if own.concurrency is not None or own.requests is not None:
            sent = traffic_for(traffic, own)
            rows[f"{own.name}: its own schedule and requests"] = (
                f"{sent.schedule.description}, {len(sent.requests):,}"
            )
        kv_tokens = _kv_tokens(benchmark, own) if benchmark else None
        rows[f"{own.name}: working set / KV cache of prefilling workers"] = (
            f"{figures.cache_pressure(kv_tokens):.2f}" if kv_tokens else "not known"
        )
    return rows


def _starts(found: Arrivals | None) -> dict[str, str]:
    """When sessions start; unknown for a closed loop."""
    labels = ("distinct start times", "starts at once, mean / most",
              "resolution of start times, ms")  # fmt: skip
    if found is None:
        return dict.fromkeys(labels, "-")
    step = "not seen" if found.resolution_ms is None else f"{found.resolution_ms:,g}"
    at_once = f"{found.mean_at_once:.1f} / {found.most_at_once:,}"
    return dict(zip(labels, (f"{found.instants:,}", at_once, step), strict=True))


def _image_sizes(traffic: Traffic) -> str:
    """The size of all, or the range of widths and heights."""
    if traffic.images is None:
        return "-"
    shown = {image for request in traffic.requests for image in request.images}
    sizes = {traffic.images.size(image) for image in shown}
    if len(sizes) == 1:
        width, height = sizes.pop()
        return f"{width} x {height}"
    widths, heights = zip(*sizes, strict=True)
    return f"{min(widths)}–{max(widths)} x {min(heights)}–{max(heights)}"


def _sent_megabytes(traffic: Traffic) -> str:
    """Bytes of all requests' images on the wire: four for every three."""
    pool = traffic.images
    if pool is None:
        return "-"
    sizes = {i: pool.encoded_bytes(i) for r in traffic.requests for i in r.images}
    total = sum(-(-sizes[image] // 3) * 4 for r in traffic.requests for image in r.images)
    return f"{total / 1e6:,.0f}"


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


def _per_second(count: float, traffic: Traffic) -> str:
    seconds = traffic.duration_seconds
    rate = count / seconds
    return f"{rate:,.2f}" if rate < 100 else f"{rate:,.0f}"


def _peak(traffic: Traffic) -> str:
    times = np.array([r.timestamp_ms for r in traffic.requests if r.turn == 0]) / 1000
    bins = np.bincount((times / _WINDOW_SECONDS).astype(int))
    return f"{bins.max() / _WINDOW_SECONDS:,.2f}"

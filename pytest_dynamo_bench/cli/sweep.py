"""``sweep``: configurations over ranges of load, KV capacity or prefill/decode workers."""

from __future__ import annotations

import argparse
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import METRICS, headings, in_words, metric_of
from pytest_dynamo_bench.reports import figures
from pytest_dynamo_bench.reports.stored_types import Best, Finding, Points, number
from pytest_dynamo_bench.reports.stored_types import point as stored_point
from pytest_dynamo_bench.sweep import (
    METRICS_OF_A_POINT,
    Sweep,
    SweepPoint,
    pareto_front,
)
from pytest_dynamo_bench.traffic import Concurrency

ACROSS, UP = "output_token_throughput_per_user.mean", "output_token_throughput_per_gpu"
_USELESS = 0.05
# Over five seeds, ties in the router alone move goodput by 1.3 % (docs/sensitivity.md).
_CLOSE = 0.02
_SPLIT = re.compile(r"(\d+)\+(\d+)")
_SHOWN = headings("sweep")
_AT_POINTS = dict(headings("point"))
_COLUMNS = (
    *((name, _AT_POINTS[name].short) for name in (UP, ACROSS)),
    *(
        (name, f"{heading.short}, {'%' if metric_of(name).is_share else metric_of(name).unit}")
        for name, heading in _SHOWN
    ),
)
# In the order in which they are left out where there is little room.
_DISPENSABLE = [name for name, _ in sorted(_SHOWN, key=lambda one: -one[1].priority)]


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sweep",
        help="sweep configurations over load, KV capacity or prefill/decode workers",
        description="Simulates a benchmark's configurations at every combination of the given "
        "loads, KV capacities and prefill/decode workers. Shows where the best configuration "
        "changes, and which points are on the Pareto front of tokens/s per GPU and per user. "
        "Simulated points are cached.",
    )
    parser.add_argument("module", type=Path, metavar="MODULE.py", help="a benchmark")
    parser.add_argument(
        "--speedup", type=common.numbers, default=(0.5, 1.0, 1.5, 2.0, 3.0), metavar="X,X,…",
        help="loads, as factors of the traffic's requests per second or sessions in flight "
        "(default: 0.5,1,1.5,2,3)",
    )  # fmt: skip
    parser.add_argument(
        "--kv-scale", type=common.numbers, default=(1.0,), metavar="X,X,…",
        help="KV capacities, relative to each configuration's own (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--split", type=_splits, default=(), metavar="P+D,…",
        help="prefill and decode workers of disaggregated configurations, such as 7+1,6+2",
    )  # fmt: skip
    parser.add_argument(
        "--configuration", nargs="+", action="extend", metavar="NAME",
        help="only these configurations (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="METRIC",
        help="metric that decides the best configuration (default: goodput, or "
        "time_to_first_token.mean if the benchmark has no SLOs)",
    )  # fmt: skip
    common.add_running_options(parser)
    parser.set_defaults(run=run)


def _splits(text: str) -> tuple[tuple[int, int], ...]:
    found = []
    for part in text.split(","):
        match = _SPLIT.fullmatch(part.strip())
        if match is None or "0" in match.groups():
            raise argparse.ArgumentTypeError(
                f"{part!r}: must be prefill+decode workers, separated by commas, such as 7+1,6+2"
            )
        found.append((int(match[1]), int(match[2])))
    return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class _Axis:
    """One of the ranges, with the others held."""

    name: str
    label: str
    values: tuple[Any, ...]
    held: str


def run(options: argparse.Namespace) -> None:
    """Sweep, and show and write what came out.

    Raises:
        DynamoBenchError: as :meth:`Sweep.run <pytest_dynamo_bench.sweep.Sweep.run>`.
    """
    began = time.monotonic()
    benchmark = common.load_benchmark(options.module, options.dynamo_version)
    if options.configuration:
        known = [configuration.name for configuration in benchmark.configurations]
        benchmark = benchmark.only(
            {common.choose("configuration", name, known) for name in options.configuration}
        )
    metric = _metric(options.metric, benchmark)
    directory = common.output_directory(options, Path("reports") / f"{benchmark.name}-sweep")
    if options.split and not any(c.disaggregated for c in benchmark.configurations):
        raise BenchmarkError("--split: none of the configurations is disaggregated")
    swept = Sweep(
        benchmark,
        target=common.simulating_target(options),
        speedups=options.speedup,
        kv_scales=options.kv_scale,
        splits=options.split,
        metrics=tuple(dict.fromkeys((*METRICS_OF_A_POINT, metric))),
    )
    with common.progress("sweep") as tell:
        points = swept.run(
            lambda done, total, point: tell(
                done, total, _described(point) + (" (cached)" if point.cached else "")
            ),
        )
    _report(options, directory, benchmark, metric, swept, points, time.monotonic() - began)


def _metric(asked: str | None, benchmark: Benchmark) -> str:
    if asked is None:
        return "goodput" if benchmark.goodput else "time_to_first_token.mean"
    metric = common.check_metric(asked)
    if metric_of(metric).needs_limits and benchmark.goodput is None:
        raise BenchmarkError(
            f"--metric: {metric} needs SLOs, and benchmark {benchmark.name!r} has none"
        )
    return metric


def _described(point: SweepPoint) -> str:
    varied = point.variation
    text = f"{point.configuration}, load {varied.speedup:g}"
    if varied.kv_scale != 1:
        text += f", KV {varied.kv_scale:g}"
    return text + (f", split {_split_text(varied.split)}" if varied.split else "")


def _split_text(split: tuple[int, int] | None) -> str:
    return "+".join(map(str, split)) if split else ""


def _report(
    options: argparse.Namespace,
    directory: Path,
    benchmark: Benchmark,
    metric: str,
    swept: Sweep,
    points: Sequence[SweepPoint],
    seconds: float,
) -> None:
    console = common.output_console()
    front = pareto_front(points)
    console.print(Text(f"{common.title(benchmark)}, {common.SIMULATED}", style="bold"))
    console.print(_fitting_table(console, points, metric, front))
    files: list[Path] = []
    findings = []
    for axis in _axes(swept):
        lines = _lines(axis, swept, points, metric)
        best = winners(lines, metric_of(metric).better)
        sentence = _sentence(metric, axis, best)
        held = f" ({axis.held})" if axis.held else ""
        leading = _sentence(metric, axis, best, leads=True)
        console.print(Text(f"{leading}{held}"), soft_wrap=True)
        findings.append(
            Finding(axis=axis.name, held=axis.held, metric=metric, winners=best, sentence=leading)
        )
        if len(axis.values) > 1:
            crossovers = [
                figures.Crossover(one.x, other.x, other.label, number(other.lead) < _CLOSE)
                for one, other in itertools.pairwise(best)
                if one.label != other.label != "none"
            ]
            directory.mkdir(parents=True, exist_ok=True)
            files += common.draw(
                console, directory, f"{metric.replace('.', '-')}-by-{axis.name}", options.png,
                lambda path, lines=lines, sentence=sentence, axis=axis, crossovers=crossovers:  # type: ignore[misc]
                figures.write_curves(
                    path, lines, title=sentence,
                    subtitle=_subtitle(benchmark, metric, axis.held),
                    x_label=axis.label, metric=metric, crossovers=crossovers,
                    x_ticks=_ticks(axis),
                ),
            )  # fmt: skip
    console.print(Text(_front_sentence(front)), soft_wrap=True)
    if len(points) > 1:
        directory.mkdir(parents=True, exist_ok=True)
        files += common.draw(
            console, directory, "pareto", options.png,
            lambda path: figures.write_pareto(
                path, _pareto_lines(points, front),
                title=_front_title(front),
                subtitle=f"{common.title(benchmark)}; numbers at points of the front are the load",
            ),
        )  # fmt: skip
    rows = [_row(point, point in front) for point in points]
    content = Points(
        benchmark=benchmark.name,
        metric=metric,
        points=[stored_point(point, on_front=point in front) for point in points],
        findings=findings,
        limitations=common.limitations(swept.target, benchmark),
    )
    files = common.write_results(directory, "points", content, rows) + files
    common.say_written(console, files)
    common.say_limitations(console, "points.json")
    cached = sum(point.cached for point in points)
    console.print(
        f"{len(points)} points in {seconds:.1f} s, {cached} of them from the cache",
        soft_wrap=True,
    )


def _front_sentence(front: Sequence[SweepPoint]) -> str:
    """The points of the front, from the cheapest to the fastest."""
    if not front:
        return "Pareto front: every point has failed requests"
    parts = []
    for name, group in itertools.groupby(front, key=_line_name):
        parts.append(f"{name} at load {', '.join(f'{p.variation.speedup:g}' for p in group)}")
    return f"Pareto front, from cheap to fast: {'; '.join(parts)}"


def _front_title(front: Sequence[SweepPoint]) -> str:
    counts = Counter(map(_line_name, front)).most_common()
    if not counts:
        return "Every point has failed requests"
    title = f"{counts[0][0]} has {counts[0][1]} of the {len(front)} points on the Pareto front"
    return title if len(counts) > 1 else f"{counts[0][0]} alone makes up the Pareto front"


def _row(point: SweepPoint, on_front: bool) -> dict[str, Any]:
    """A row of the CSV."""
    varied = point.variation
    return {
        "configuration": point.configuration,
        "speedup": varied.speedup,
        "kv_scale": varied.kv_scale,
        "split": _split_text(varied.split),
        "gpus": point.gpus,
        "requests": point.requests,
        "failed": point.failed,
        "on_front": on_front,
        "simulated": True,
        **point.metrics,
    }


def _fitting_table(
    console: Console, points: Sequence[SweepPoint], metric: str, front: Sequence[SweepPoint]
) -> Table:
    """The table with as many columns as the terminal is wide; files have all."""
    dropped: list[str] = []
    for name in ("", *_DISPENSABLE):
        dropped.append(name)
        table = _table(points, metric, front, dropped)
        unbounded = console.options.update(max_width=1000)
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
    return table


def _table(
    points: Sequence[SweepPoint], metric: str, front: Sequence[SweepPoint], dropped: Sequence[str]
) -> Table:
    with_kv = any(point.variation.kv_scale != 1 for point in points)
    with_split = any(point.variation.split for point in points)
    definition = metric_of(metric)
    columns = [(name, title) for name, title in _COLUMNS if name not in (metric, *dropped)]
    table = common.plain_table(
        "configuration", "load", *(["KV"] if with_kv else []),
        *(["split"] if with_split else []), "GPUs",
        f"{metric}\n{'%' if definition.is_share else definition.unit}",
        *(title for _, title in columns), "front",
    )  # fmt: skip
    sign = 1 if definition.better == "higher" else -1
    best: dict[tuple[float, float], float] = {}
    for point in points:
        at = (point.variation.speedup, point.variation.kv_scale)
        value = sign * point.metrics[metric]
        if math.isfinite(value):
            best[at] = max(best.get(at, -math.inf), value)
    for point in points:
        varied = point.variation
        won = sign * point.metrics[metric] == best.get((varied.speedup, varied.kv_scale))
        table.add_row(
            point.configuration, f"{varied.speedup:g}",
            *([f"{varied.kv_scale:g}"] if with_kv else []),
            *([_split_text(varied.split)] if with_split else []), str(point.gpus),
            Text(
                common.number(point.metrics[metric], definition.unit) + (" *" if won else "  "),
                style="bold" if won else "",
            ),
            *(common.number(point.metrics[name], metric_of(name).unit)
              for name, _ in columns),
            "x" if point in front else "",
        )  # fmt: skip
    where = "load and KV capacity" if with_kv else "load"
    table.caption = (
        f"* best {metric} at this {where}; a lead under {100 * _CLOSE:g} % may come from how the "
        "router breaks ties"
    )
    table.caption_justify = "left"
    return table


def _base(values: Sequence[float]) -> float:
    return 1.0 if 1.0 in values else values[0]


def _axes(swept: Sweep) -> Iterable[_Axis]:
    """Every range with more than one value; the load in any case."""
    load, kv = _base(swept.speedups), _base(swept.kv_scales)
    at_load = f"load {load:g}" if len(swept.speedups) > 1 else ""
    at_kv = f"KV capacity {kv:g}" if len(swept.kv_scales) > 1 else ""
    yield _Axis(
        "speedup", f"load: {_load_words(swept)} (1 is the traffic as it is)",
        tuple(sorted(swept.speedups)), at_kv,
    )  # fmt: skip
    if len(swept.kv_scales) > 1:
        yield _Axis(
            "kv_scale", "KV capacity, relative to the configuration's own",
            tuple(sorted(swept.kv_scales)), at_load,
        )  # fmt: skip
    if len(swept.splits) > 1:
        held = ", ".join(filter(None, (at_load, at_kv)))
        yield _Axis("split", "prefill + decode workers", tuple(swept.splits), held)


def _load_words(swept: Sweep) -> str:
    schedule = getattr(swept.benchmark.traffic, "schedule", None)
    if isinstance(schedule, Concurrency):
        return f"sessions in flight, times {schedule.sessions}"
    return "arrival speed-up"


def _subtitle(benchmark: Benchmark, metric: str, held: str) -> str:
    """The benchmark, what is held, and for goodput what counts as good."""
    parts = [common.title(benchmark), held]
    if metric_of(metric).needs_limits and benchmark.goodput:
        limits = benchmark.goodput.limits.items()
        parts += [f"{METRICS[name].words} within {limit:g} ms" for name, limit in limits]
    return ", ".join(filter(None, parts))


def _ticks(axis: _Axis) -> list[tuple[float, str]]:
    if axis.name == "split":
        return [(float(index), _split_text(split)) for index, split in enumerate(axis.values)]
    return [(float(value), f"{value:g}") for value in axis.values]


def _lines(
    axis: _Axis, swept: Sweep, points: Sequence[SweepPoint], metric: str
) -> list[figures.Line]:
    """One line per configuration along the axis; one per split where that isn't the axis."""
    load, kv = _base(swept.speedups), _base(swept.kv_scales)
    found: dict[str, dict[float, float]] = {}
    for point in points:
        varied = point.variation
        if axis.name != "speedup" and varied.speedup != load:
            continue
        if axis.name != "kv_scale" and varied.kv_scale != kv:
            continue
        if axis.name == "split":
            # What has no split is as good everywhere.
            places = [
                float(index) for index, split in enumerate(axis.values)
                if varied.split in (None, split)
            ]  # fmt: skip
            label = point.configuration
        else:
            places = [getattr(varied, axis.name)]
            label = _line_name(point)
        line = found.setdefault(label, {})
        line.update(dict.fromkeys(places, point.metrics[metric]))
    return [
        figures.Line(label, tuple(sorted(line)), tuple(line[x] for x in sorted(line)))
        for label, line in found.items()
    ]


def _line_name(point: SweepPoint) -> str:
    split = point.variation.split
    return f"{point.configuration} {_split_text(split)}" if split else point.configuration


def _pareto_lines(points: Sequence[SweepPoint], front: Sequence[SweepPoint]) -> list[figures.Line]:
    groups: dict[str, list[SweepPoint]] = {}
    for point in points:
        scale = point.variation.kv_scale
        name = _line_name(point) + (f", KV {scale:g}" if scale != 1 else "")
        groups.setdefault(name, []).append(point)
    lines = []
    for name, group in groups.items():
        group.sort(key=lambda point: point.variation.speedup)
        lines.append(
            figures.Line(
                name,
                [point.metrics[ACROSS] for point in group],
                [point.metrics[UP] for point in group],
                [f"{point.variation.speedup:g}" for point in group],
                [point in front for point in group],
            )
        )
    return lines


def winners(lines: Sequence[figures.Line], better: str) -> list[Best]:
    """The best line at every value of an axis.

    Returns:
        For each value ``x``, ``label`` and ``y`` of the best, and its ``lead``: how far the
        next one is behind, relative to it (0.02 is 2 %; NaN without another). The label is
        ``none`` where more is better and even the best has less than 5 % of what it has
        elsewhere: there, who is best says nothing.
    """
    sign = 1 if better == "higher" else -1
    at: dict[float, list[tuple[float, str]]] = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y):
                at.setdefault(x, []).append((sign * y, line.label))
    most = max((max(found)[0] for found in at.values()), default=0.0)
    result = []
    for x in sorted(at):
        ranked = sorted(at[x], key=lambda item: -item[0])
        value, label = ranked[0]
        lead = math.nan
        if len(ranked) > 1 and value != 0:
            lead = (value - ranked[1][0]) / abs(value)
        if sign > 0 and value < _USELESS * most:
            label = "none"
        result.append(Best(x=x, label=label, y=sign * value, lead=lead))
    return result


def _sentence(metric: str, axis: _Axis, best: Sequence[Best], *, leads: bool = False) -> str:
    """Who is best where, in words; with by how much, if asked."""
    if not best:
        return f"No configuration has a value of {metric}"
    most = "Highest" if metric_of(metric).better == "higher" else "Lowest"
    word = {"speedup": "load", "kv_scale": "KV capacity", "split": "split"}[axis.name]
    texts = dict(_ticks(axis))
    parts = []
    for label, group in itertools.groupby(best, key=lambda item: item.label):
        items = list(group)
        places = [texts[item.x] for item in items]
        where = places[0] if len(places) == 1 else f"{places[0]} to {places[-1]}"
        if label == "none":
            parts.append(
                f"at {where} none is of use" + (" (under 5 % of the best)" if leads else "")
            )
            continue
        leads_of = (number(item.lead) for item in items)
        ahead = sorted(100 * lead for lead in leads_of if math.isfinite(lead))
        by = ""
        if leads and ahead:
            low, high = f"{ahead[0]:.1f}", f"{ahead[-1]:.1f}"
            by = f" (by {low} %)" if low == high else f" (by {low} to {high} %)"
        parts.append(f"{label} at {where}{by}")
    return f"{most} {in_words(metric)} by {word}: {', '.join(parts)}"

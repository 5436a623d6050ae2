"""Figures as files: what the commands ``attribution``, ``sweep`` and ``traffic`` draw.

They are for documents and slides. What a session measured is drawn in its HTML report
(:mod:`~pytest_dynamo_bench.reports.charts`), which can be zoomed and needs no Matplotlib; no
session has figures of both kinds.

Plain data in, SVG or PNG out, in one step and by the file's ending; ReportError where Matplotlib is
missing, the ending is unknown, or there is nothing to show. Each figure is a card with a light
background, so that it can be read on light and dark pages alike, and says in its title
what is shown. Colours are those of Okabe & Ito (2008), which colour-blind people can tell apart;
markers differ as well. Text stays text in SVG: it can be searched, and costs no font data.

Matplotlib draws them. It is imported when the first figure is drawn, and comes with the extra
``figures``.
"""

from __future__ import annotations

import importlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_dynamo_bench.errors import ReportError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.metric_definitions import in_words, metric_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'pytest-dynamo-bench[figures]'"
FORMATS = (".svg", ".png")
_BACKGROUND, _INK, _FAINT, _GRID = "#ffffff", "#1f2328", "#6b7280", "#e5e7eb"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5d4b8c", "#7a5c00")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LONGEST_NAME = 60
_LABEL_GAP = 0.062  # of the height of the axes
_STYLE: Mapping[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "pytest-dynamo-bench",
    "text.parse_math": False,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "figure.facecolor": _BACKGROUND,
    "axes.facecolor": _BACKGROUND,
    "savefig.facecolor": _BACKGROUND,
}


@dataclass(frozen=True)
class Crossover:
    """Another configuration becomes the best between two values of the axis.

    ``close`` says that its lead is too small to mean something.
    """

    after: float
    before: float
    to_configuration: str
    close: bool = False


@dataclass(frozen=True)
class Line:
    """One configuration over a range.

    Attributes:
        label: its name.
        x: (n,) values on the horizontal axis.
        y: (n,) values on the vertical axis; NaN leaves a gap.
        notes: (n,) a short text for each point, or none.
        marked: (n,) whether a point is on the front; only for Pareto figures.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str] = ()
    marked: Sequence[bool] = ()


def write_attribution(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    subtitle: str = "",
    metric: str = "goodput",
) -> None:
    """What each feature brings alone, on top of the others, and averaged over orders.

    Args:
        rows: as :meth:`Attribution.as_rows <pytest_dynamo_bench.attribution.Attribution.as_rows>`
            gives them, as shares of the baseline's value (0.05 is 5 %); a row's interval is drawn
            where it has one.
        title: what is shown; a sentence.
        metric: full name of the metric that is divided.
    """
    features = [row for row in rows if row.get("feature") != "total"]
    if not features:
        raise ReportError("figure of an attribution: there are no features to show")
    parts = (
        ("alone", "alone, added to the baseline"),
        ("on_top", "on top of everything else"),
        ("average", "averaged over all orders"),
    )
    entries: list[tuple[float, Mapping[str, Any], str, str]] = []
    ticks: list[tuple[float, str]] = []
    at = 0.0
    for row in features:
        first = at
        for index, (part, words) in enumerate(parts):
            entries.append((at, row[part], _COLOURS[index], words if row is features[0] else ""))
            at += 1.0
        ticks.append(((first + at - 1) / 2, _shortened(str(row["feature"]))))
        at += 0.7
    for row in rows:
        if row.get("feature") == "total":
            entries.append((at, row["average"], _FAINT, ""))
            ticks.append((at, "all together"))
            at += 1.0
    with _figure(path, 7.6, 1.75 + 0.3 * at, title, subtitle) as (figure, axes):
        for y, estimate, colour, _ in entries:
            _bar(axes, y, estimate, colour)
        axes.axvline(0, color=_INK, linewidth=1)
        axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.margins(x=0.16)
        axes.set_xlabel(f"change of {in_words(metric)}, % of the baseline's")
        patch = importlib.import_module("matplotlib.patches").Patch
        handles = [patch(color=c, alpha=0.8, label=words) for _, _, c, words in entries if words]
        _legend_below(figure, axes, handles)


def write_curves(
    path: Path,
    lines: Sequence[Line],
    *,
    title: str,
    subtitle: str = "",
    x_label: str,
    metric: str = "goodput",
    crossovers: Iterable[Crossover] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
) -> None:
    """A metric against load, KV capacity or split, one line per configuration.

    The best configuration at each value has a filled marker, and where the best changes a band
    says from which to which.

    Args:
        x_label: name and unit of the horizontal axis.
        crossovers: where the best configuration changes.
        x_ticks: positions and texts, if the axis is not numeric.
    """
    if not any(line.x for line in lines):
        raise ReportError("figure of a sweep: there are no points to show")
    sign = 1 if metric_of(metric).better == "higher" else -1
    best: dict[float, float] = {}
    for line in lines:
        for x, y in zip(line.x, line.y, strict=True):
            if math.isfinite(y):
                best[x] = max(best.get(x, -math.inf), sign * y)
    name, unit = in_words(metric), metric_of(metric).unit
    with _figure(path, 7.6, 4.6, title, subtitle) as (_, axes):
        styles = [_style_of(index) for index in range(len(lines))]
        for line, (colour, marker) in zip(lines, styles, strict=True):
            axes.plot(line.x, line.y, color=colour, linewidth=1.8, zorder=3)
            won = [math.isfinite(y) and sign * y == best[x]
                   for x, y in zip(line.x, line.y, strict=True)]  # fmt: skip
            for x, y, filled in zip(line.x, line.y, won, strict=True):
                axes.plot(
                    [x], [y], marker=marker, markersize=8 if filled else 6, color=colour,
                    markerfacecolor=colour if filled else _BACKGROUND, zorder=4,
                )  # fmt: skip
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        found = list(crossovers)
        if found:
            bottom, top = axes.get_ylim()
            axes.set_ylim(bottom, top + 0.16 * (top - bottom))
        for index, crossing in enumerate(found):
            axes.axvspan(crossing.after, crossing.before, color="#f5f1d8", linewidth=0, zorder=0)
            for edge in (crossing.after, crossing.before):
                axes.axvline(edge, color="#d8cf9a", linewidth=0.8, zorder=0.5)
            axes.annotate(
                _shortened(crossing.to_configuration, 24)
                + ("\ndraws level" if crossing.close else "\ntakes over"),
                ((crossing.after + crossing.before) / 2, 1.0),
                xycoords=("data", "axes fraction"), ha="center",
                va="top" if index % 2 else "bottom", fontsize=8, color=_FAINT, linespacing=1.15,
                xytext=(0, -3 if index % 2 else 2), textcoords="offset points", zorder=5,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(f"{name}, {unit}")
        if x_ticks:
            axes.set_xticks([x for x, _ in x_ticks], [text for _, text in x_ticks])
        _label_lines(axes, lines)


@dataclass(frozen=True)
class TrafficLines:
    """What is drawn of one traffic.

    Attributes:
        name: of it.
        input_tokens: (n,) length of each request's text.
        output_tokens: (n,) length of each output.
        reuse: (n,) share of blocks or images up to each request that an earlier one had.
        reuse_of: what ``reuse`` counts.
        starts_seconds: when sessions are due; empty for a closed loop.
        turns: requests of each session.
    """

    name: str
    input_tokens: Sequence[int]
    output_tokens: Sequence[int]
    reuse: Sequence[float]
    reuse_of: str
    starts_seconds: Sequence[float]
    turns: Sequence[int]


def write_traffic(
    path: Path, traffics: Sequence[TrafficLines], *, title: str, subtitle: str = ""
) -> None:
    """Lengths, reuse and schedule of one or more traffics, side by side.

    Lengths are cumulative shares of requests over tokens; the schedule is starts over time, or
    the turns of sessions for a closed loop.
    """
    if not traffics or not all(one.input_tokens for one in traffics):
        raise ReportError("figure of a traffic: there are no requests to show")
    with _figure(path, 10.5, 3.4, title, subtitle, simulated=False, columns=3) as (figure, _):
        lengths, reuse, schedule = figure.axes
        for index, one in enumerate(traffics):
            colour = _style_of(index)[0]
            count = len(one.input_tokens)
            places = [100 * (place + 1) / count for place in range(count)]
            for tokens, style, word in (
                (one.input_tokens, "-", "input"),
                (one.output_tokens, "--", "output"),
            ):
                lengths.step(
                    sorted(tokens), places, style, where="post", color=colour,
                    label=f"{word}, {one.name}",
                )  # fmt: skip
            reuse.plot(places, [100 * share for share in one.reuse], color=colour, label=one.name)
            if one.starts_seconds:
                schedule.hist(one.starts_seconds, bins=60, histtype="step", color=colour)
            else:
                most = max(one.turns)
                edges = [place + 0.5 for place in range(most + 1)]
                schedule.hist(one.turns, bins=edges, histtype="step", color=colour, linewidth=1.8)
        lengths.set_xscale("log")
        ticker = importlib.import_module("matplotlib.ticker")
        lengths.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.0f}"))
        lengths.xaxis.set_minor_formatter(ticker.NullFormatter())
        lengths.set_xlabel("tokens of text")
        lengths.set_ylabel("requests up to that length, %")
        handles, _ = lengths.get_legend_handles_labels()
        _legend_below(figure, lengths, handles)
        reuse.set_ylim(0, 100)
        reuse.set_xlabel("requests sent, %")
        reuse.set_ylabel(f"{traffics[0].reuse_of} seen before, %")
        timed = bool(traffics[0].starts_seconds)
        schedule.set_xlabel("seconds" if timed else "turns of a session")
        schedule.set_ylabel("starts" if timed else "sessions")


def write_pareto(
    path: Path,
    lines: Sequence[Line],
    *,
    title: str,
    subtitle: str = "",
) -> None:
    """Output tokens/s per GPU against output tokens/s per user, one line per configuration.

    Points on the front (that no other beats on both) are filled and joined by a gray line.

    Args:
        lines: ``x`` is tokens/s/user, ``y`` tokens/s/GPU, ``notes`` the load of each point.
    """
    if not any(line.x for line in lines):
        raise ReportError("figure of a Pareto front: there are no points to show")
    notes: list[tuple[float, float, str]] = []
    with _figure(path, 7.6, 5.2, title, subtitle) as (_, axes):
        styles = [_style_of(index) for index in range(len(lines))]
        for line, (colour, marker) in zip(lines, styles, strict=True):
            axes.plot(line.x, line.y, color=colour, linewidth=1.4, alpha=0.75, zorder=3)
            marked = line.marked or [False] * len(line.x)
            for x, y, filled in zip(line.x, line.y, marked, strict=True):
                axes.plot(
                    [x], [y], marker=marker, markersize=8 if filled else 5.5, color=colour,
                    markerfacecolor=colour if filled else _BACKGROUND, zorder=4,
                )  # fmt: skip
            notes += [
                (x, y, note) for x, y, note, filled
                in zip(line.x, line.y, line.notes or [""] * len(line.x), marked, strict=True)
                if filled
            ]  # fmt: skip
        front = sorted((x, y) for x, y, _ in notes)
        if front:
            axes.plot(
                [x for x, _ in front], [y for _, y in front], color="#9ca3af", linewidth=6,
                alpha=0.35, zorder=1, solid_capstyle="round",
            )  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.04 * axes.get_ylim()[1])
        right, top = axes.get_xlim()[1], axes.get_ylim()[1]
        noted: list[tuple[float, float]] = []
        for x, y, note in sorted(notes, key=lambda item: -item[1]):
            if note and _apart(noted, x / right, y / top):
                noted.append((x / right, y / top))
                axes.annotate(
                    note, (x, y), xytext=(0, 8), textcoords="offset points", fontsize=8,
                    ha="center", color=_FAINT, zorder=5,
                )  # fmt: skip
        axes.set_xlabel("output tokens/s per user (mean over requests): further right is faster")
        axes.set_ylabel("output tokens/s per GPU: further up is cheaper")
        _label_lines(axes, lines)


# ---------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------


def _bar(axes: Axes, y: float, estimate: Mapping[str, Any], colour: str) -> None:
    value = 100 * float(estimate["value"])
    axes.barh([y], [value], height=0.82, color=colour, alpha=0.8, zorder=2)
    low, high = (estimate.get(name) for name in ("low", "high"))
    tip = value
    if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
        axes.plot(
            [100 * low, 100 * high], [y, y], color=_INK, linewidth=1.4, marker="|",
            markersize=6, zorder=3,
        )  # fmt: skip
        tip = max(value, 100 * high) if value >= 0 else min(value, 100 * low)
    side = 1 if value >= 0 else -1
    axes.annotate(
        f"{_signed(value)} %", (tip, y), xytext=(6 * side, 0), textcoords="offset points",
        va="center", ha="left" if side > 0 else "right", fontsize=9, zorder=4,
    )  # fmt: skip


def _label_lines(axes: Axes, lines: Sequence[Line]) -> None:
    """Names beside the lines' right ends with their markers, moved apart where they would touch."""
    wanted: list[tuple[float, float, str, int]] = []
    for index, line in enumerate(lines):
        points = [
            (x, y) for x, y in zip(line.x, line.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]  # fmt: skip
        if points:
            x, y = max(points)
            wanted.append((x, y, _shortened(line.label, 34), index))
    if not wanted:
        return
    low, high = axes.get_ylim()
    wanted.sort(key=lambda item: item[1])
    ends = [(y - low) / (high - low) for _, y, _, _ in wanted]
    placed: list[float] = []
    for end in ends:
        placed.append(max(end, placed[-1] + _LABEL_GAP) if placed else end)
    over = max(placed[-1] - 1.0, 0.0)
    placed = [at - over for at in placed]
    # Where lines end together, a connection would say nothing; the marker does.
    connected = all(abs(at - end) < 1.5 * _LABEL_GAP for at, end in zip(placed, ends, strict=True))
    for (x, y, label, index), at in zip(wanted, placed, strict=True):
        colour, marker = _style_of(index)
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.7,
                 "shrinkA": 14, "shrinkB": 6, "relpos": (0, 0.5)}  # fmt: skip
        axes.annotate(
            label, (x, y), xytext=(1.055, at), textcoords="axes fraction", va="center",
            fontsize=9, color=_darker(colour), fontweight="bold",
            arrowprops=arrow if connected else None, annotation_clip=False, zorder=6,
        )  # fmt: skip
        axes.plot(
            [1.03], [at], transform=axes.transAxes, marker=marker, color=colour, markersize=7,
            clip_on=False, zorder=6,
        )  # fmt: skip


def _apart(noted: Sequence[tuple[float, float]], x: float, y: float) -> bool:
    """Whether a note at a place would not cover one that is there already; shares of the axes."""
    return all(abs(x - left) > 0.06 or abs(y - low) > 0.045 for left, low in noted)


def _legend_below(figure: Figure, axes: Axes, handles: Sequence[Any]) -> None:
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=len(handles), frameon=False, fontsize=9,
        handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip
    legend.set_in_layout(True)


def _signed(value: float) -> str:
    """A change to one decimal, with its sign."""
    return f"{value:+.1f}".replace("-", "−") if math.isfinite(value) else ""


def _style_of(index: int) -> tuple[str, str]:
    """Colour and marker of a line; where colours begin again, markers are others."""
    count = len(_COLOURS)
    return _COLOURS[index % count], _MARKERS[(index + index // count) % count]


def _darker(colour: str) -> str:
    """The colour as it can be read as text on white."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(0.8 * part):02x}" for part in parts)


def _shortened(text: str, longest: int = _LONGEST_NAME) -> str:
    """A name on one line, without what a font or XML cannot show, and not too long."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= longest else clean[: longest - 1].rstrip() + "…"


@contextmanager
def _figure(
    path: Path,
    width: float,
    height: float,
    title: str,
    subtitle: str,
    *,
    simulated: bool = True,
    columns: int = 1,
) -> Iterator[tuple[Figure, Axes]]:
    """A figure with its first pair of axes, written when the block ends without an error.

    Args:
        columns: pairs of axes side by side.
    """
    ending = path.suffix.lower()
    if ending not in FORMATS:
        raise ReportError(
            f"{path.name}: figures are written as {' or '.join(FORMATS)}, not as "
            f"{path.suffix or 'a file without an ending'}"
        )
    title = "\n".join(textwrap.wrap(_shortened(title, 240), 72, break_on_hyphens=False)) or " "
    parts = [_shortened(subtitle, 160)] if subtitle else []
    parts += ["Simulated by Dynamo's replay, not measured on GPUs."] if simulated else []
    below = [line for part in parts for line in textwrap.wrap(part, 100, break_on_hyphens=False)]
    lines = title.count("\n") + 1
    head = 0.12 + 0.21 * lines + 0.17 * len(below) + 0.08
    total = height + head
    with _matplotlib().rc_context(_STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is still text in the SVG.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        module = importlib.import_module("matplotlib.figure")
        figure: Figure = module.Figure(figsize=(width, total), layout="constrained")
        engine: Any = figure.get_layout_engine()
        engine.set(rect=(0.01, 0.0, 0.98, 1 - head / total))
        figure.text(
            0.02, 1 - 0.1 / total, title, fontsize=12, fontweight="bold", va="top",
            linespacing=1.2, in_layout=False,
        )  # fmt: skip
        figure.text(
            0.02, 1 - (0.12 + 0.21 * lines) / total, "\n".join(below), fontsize=9, color=_FAINT,
            va="top", linespacing=1.25, in_layout=False,
        )  # fmt: skip
        yield figure, figure.subplots(1, columns, squeeze=False)[0][0]
        buffer = io.BytesIO()
        metadata = {"Date": None} if ending == ".svg" else {}
        figure.savefig(buffer, format=ending.removeprefix("."), dpi=160, metadata=metadata)
    write_whole(path, buffer.getvalue())


def _matplotlib() -> Any:
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise ReportError(f"figures need Matplotlib: {INSTALL}") from None

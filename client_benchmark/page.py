"""The page of the comparison: what each tool reached, the ratios, and a figure."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

OURS = "this client"
Rows = list[tuple[str, str, dict[str, float | None]]]
_MOST_OTHERS = 0.05
_ROWS: tuple[tuple[str, str, Callable[[dict[str, Any]], float | None], str], ...] = (
    ("TTFT error at 1 stream, mean", "1 stream", lambda e: e.get("ttft_error_mean_ms"), "ms"),
    ("TTFT error at 1 stream, p99", "1 stream", lambda e: e.get("ttft_error_p99_ms"), "ms"),
    ("TTFT error at 16 streams, mean", "16 streams", lambda e: e.get("ttft_error_mean_ms"), "ms"),
    ("TTFT error at 16 streams, p99", "16 streams", lambda e: e.get("ttft_error_p99_ms"), "ms"),
    ("TTFT error at 64 streams, mean", "64 streams", lambda e: e.get("ttft_error_mean_ms"), "ms"),
    ("TTFT error at 64 streams, p99", "64 streams", lambda e: e.get("ttft_error_p99_ms"), "ms"),
    ("TTFT error at 200 streams, mean", "200 streams", lambda e: e.get("ttft_error_mean_ms"), "ms"),
    ("TTFT error at 200 streams, p99", "200 streams", lambda e: e.get("ttft_error_p99_ms"), "ms"),
    ("gap error at 200 streams, p99", "200 streams", lambda e: e.get("gap_error_p99_ms"), "ms"),
    ("capacity", "capacity", lambda e: e["requests_per_second"], "requests/s"),
    ("processor time of 1,000 chunks", "64 streams", lambda e: e.get("cpu_per_1000"), "s"),
    ("peak memory at 200 streams", "200 streams", lambda e: e["peak_bytes"] / 1e6, "MB"),
    ("schedule delay, p50", "50 requests/s", lambda e: e.get("schedule_delay_p50_ms"), "ms"),
    ("schedule delay, p99", "50 requests/s", lambda e: e.get("schedule_delay_p99_ms"), "ms"),
    ("command to first request", "start-up", lambda e: e["first_request_seconds"], "s"),
)  # fmt: skip


def write_page(results: Path, page: Path, machine: dict[str, Any]) -> None:
    """Write the page, and its figure beside it."""
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    tools = sorted({entry["tool"] for entry in entries}, key=lambda name: (name != OURS, name))
    by_run: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        by_run[entry["tool"], entry["workload"]].append(entry)
    disturbed = set()
    for key, runs in by_run.items():
        undisturbed = [entry for entry in runs if entry["others_share"] <= _MOST_OTHERS]
        if not undisturbed:
            disturbed.add(key)
        by_run[key] = undisturbed or [min(runs, key=lambda entry: entry["others_share"])]
    for tool in tools:
        # What a run takes before and after its requests is that of a run of one request.
        start = [e["cpu_seconds"] for e in entries
                 if (e["tool"], e["workload"]) == (tool, "start-up")]  # fmt: skip
        base = statistics.median(start) if start else 0.0
        for entry in by_run[tool, "64 streams"]:
            entry["cpu_per_1000"] = (entry["cpu_seconds"] - base) / (entry["chunks"] - 64) * 1000
    table = [
        (label, unit, {tool: _median(by_run[tool, workload], value) for tool in tools})
        for label, workload, value, unit in _ROWS
    ]
    counts = [len(runs) for key, runs in by_run.items() if runs and key not in disturbed]
    thrown_out = sum(entry["others_share"] > _MOST_OTHERS for entry in entries)
    doubtful = {
        (label, tool)
        for label, workload, _, _ in _ROWS
        for tool in tools
        if (tool, workload) in disturbed
    }
    figure = page.with_name("images") / f"{page.stem}.svg"
    _draw(figure, table, tools)
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    lines = [
        _INTRODUCTION,
        f"Machine: {machine['cores']} cores, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, Python {machine['python']}; {versions}. Medians of "
        f"{_span(counts)} runs; {thrown_out} of {len(entries)} thrown out "
        f"because other processes took more than {_MOST_OTHERS:.0%} of the machine."
        + (" *In italics*: where all were, the least disturbed." if disturbed else "")
        + "\n",
        "| | " + " | ".join(tools) + " | best other / this |",
        "|---|" + "---|" * (len(tools) + 1),
        *(_row(label, unit, values, tools, doubtful) for label, unit, values in table),
        "",
        f"![ratios](images/{figure.name})",
        "",
    ]
    marker = "<!-- everything below is written by client_benchmark/compare.py report -->\n"
    before = page.read_text().partition(marker)[0] if page.exists() else ""
    page.write_text(before + marker + "\n" + "\n".join(lines))


_INTRODUCTION = """\
## Result
"""


def _median(
    entries: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> float | None:
    found = [number for entry in entries if (number := value(entry)) is not None]
    return statistics.median(found) if found else None


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _row(
    label: str,
    unit: str,
    values: dict[str, float | None],
    tools: list[str],
    doubtful: set[tuple[str, str]],
) -> str:
    cells = [
        f"*{_number(values[tool])}*"
        if (label, tool) in doubtful and values[tool] is not None
        else _number(values[tool])
        for tool in tools
    ]
    ratio = _ratio(unit, values)
    return f"| {label}, {unit} | " + " | ".join(cells) + f" | {_times(ratio)} |"


def _ratio(unit: str, values: dict[str, float | None]) -> float | None:
    """How many times better this client is than the best of the others that record anything."""
    mine = values.get(OURS)
    others = [v for tool, v in values.items() if tool not in (OURS, "wrk") and v is not None]
    if not mine or not others:
        return None
    return mine / max(others) if unit == "requests/s" else min(others) / mine


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:,.0f} ×" if ratio >= 10 else f"{ratio:.1f} ×"


def _draw(
    path: Path, table: list[tuple[str, str, dict[str, float | None]]], tools: list[str]
) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "client-benchmark"
    import matplotlib.pyplot as plt

    rows = [
        (f"{label}, {unit}", {t: v for t, v in values.items() if v is not None and v > 0})
        for label, unit, values in table
    ]
    rows = [(label, values) for label, values in rows if len(values) > 1 and OURS in values]
    figure, axes = plt.subplots(figsize=(8.5, 0.36 * len(rows) + 1.1))
    markers = dict(zip(tools, "oDs^vP", strict=False))
    for tool in tools:
        points = [
            (values[tool] / values[OURS], -index)
            for index, (_, values) in enumerate(rows)
            if tool in values
        ]
        axes.scatter(*zip(*points, strict=True), label=tool, marker=markers[tool], s=36, zorder=3)
    axes.set_xscale("log")
    axes.axvline(1, color="0.7", linewidth=1, zorder=1)
    axes.set_yticks([-index for index in range(len(rows))], [label for label, _ in rows])
    axes.set_xlabel("value / that of this client; more is worse, except for the capacity")
    axes.grid(axis="y", color="0.92", zorder=0)
    axes.legend(ncols=len(tools), loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})

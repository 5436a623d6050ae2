"""The calibration page: tables from the JSON that the study wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INTRODUCTION = """# How often a verdict is wrong

`python -m calibration` writes this page in a clone, from [calibration.json](calibration.json). It
shows how the procedure of [How a verdict is made](verdicts.md) performs where the truth is known:
on synthetic queues (`calibration/queues.py`) with bursts, correlated prompt lengths, several
workers, decodes that slow each other down, and a drifting machine. Their TTFTs are correlated over
tens of requests, more than those of a real production trace in Dynamo's replay. (In the part
"stress", over hundreds.) The page then shows the same on [Dynamo's
replay](#no-effect-on-dynamos-replay), where only step times are modelled, and on [real
processes](#no-effect-on-this-machine).

The constants of the procedure were chosen with other seeds than those shown here.

A **false claim** is a 95 % interval that excludes "no change" although both configurations are the
same. **Covered** means that the interval contains the true change. Brackets show exact binomial 95
% intervals (Clopper–Pearson). The **naive** method resamples single requests of each run
separately, as if they were independent.

How to read it:

* Coverage should be between 93 and 97 %. Above that, intervals are wider than necessary, which
  costs power but makes no verdict wrong:
  * *Goodput* of two runs of the same traffic differs by a handful of requests. With few such
    requests, a difference widens its own interval; below a dozen the rule of three does.
  * *A p99* of 1,000 requests depends on ten of them, for which Student's t allows.
  * *Repeats*: differences between runs are added to the noise within them unless the noise explains
    them, and two or three runs leave few degrees of freedom.
  * *Throughput of different traffic*: the time between scheduled requests is resampled in blocks
    that are longer than its bursts.
* *Throughput in an open loop* without overload is the offered load. Two runs of the same traffic
  differ only in the arrival of the last response; the interval shows how much that varies along the
  run. The naive method is always wrong for requests per second, because each request counts exactly
  1.
* *Short runs*, of 122 to 500 requests, cannot detect a drift of the machine. Their intervals allow
  for drift, are wider without it, and cover more than 97 % of changes in TTFT. A gate rejects a p99
  of fewer than 500 requests; below 300 it has no interval.
* With the same traffic the naive method can look harmless for TTFT: without pairing, it treats the
  traffic as noise, which hides that it treats correlated noise as independent. For ITL, where the
  traffic matters little, nothing hides it.
* **Where the procedure fails.** Under "stress", bursts cause queues of hundreds of requests, and
  their course differs between runs. Blocks of 200 requests are too short for this. A single run of
  each claims a difference of mean TTFT in 14 % of cases, and of its p99, which one or two bursts
  decide, in 28 %. Nothing within one run shows this. Repeats do: see "stress, 3 repeats".
* With 4,000 requests, a difference of the p90 of ITL is claimed in 7 % of cases. This may be chance
  (4.9 to 10.2 %), or blocks of 200 requests are slightly too short.
* One run of each configuration cannot detect differences between runs. If runs differ by 2 %, a
  single run of each claims a difference of ITL far too often, and three runs of each do not:
  compare "1 repeat" with "3 repeats". Use repeats on busy machines.
"""

_REPLAY = """## No effect, on Dynamo's replay

One configuration of Qwen3-32B on 16 H200, twice on a window of the conversation trace, simulated
with Dynamo's replay and KV routing. Each comparison has two different seeds. They decide how the
router breaks ties; after the first tie that breaks differently, queues and caches diverge.

* With the *same traffic*, only the seeds are random, so comparisons are independent although
  windows overlap. Most metrics have even fewer false claims than on the synthetic queues. For the
  throughput of disaggregated workers, the rule for the end of a run was corrected after these runs,
  which end with a few long requests. Before, a difference was claimed in 10.5 % of cases.
* *Adjacent windows* have different traffic, which changes over the hour, and nothing is paired.
  Windows of different comparisons overlap. There are therefore far fewer independent cases than
  comparisons (twelve pairs of windows share no request), and the true binomial intervals are wider
  than those shown. The load changes over the hour, so "no change" is only approximately true.
* On the same traffic the naive method looks harmless for most latencies, because it treats the
  traffic as noise. It fails for the ITL of disaggregated workers, where the traffic matters little,
  and on adjacent windows.
"""

_LOCAL = """## No effect, on this machine

Dynamo's real frontend, router and mockers with eight aggregated workers and KV routing, on two
otherwise idle shared cores; 35 seconds of the conversation trace, 122 requests. Every run has a
fresh deployment with cold caches. Comparisons of consecutive runs are independent, but few. In the
second table every run is compared with every other. An unusual run then counts many times, and the
true binomial intervals are wider than those shown.
"""

_ATTRIBUTION = """## Coverage of an attribution's intervals

Attribution (`python -m pytest_dynamo_bench attribution`) with a known answer: two features on the
synthetic queues. One makes prefills 5 % faster, the other removes a delay of half of the first
tokens. The true change is that of all comparisons pooled. With several runs of each combination,
intervals are wider than necessary. With one run of each, those of goodput are too narrow and cover
87 to 95 % of cases. Use more than one seed (`--seeds`).
"""


def render(found: Mapping[str, Any]) -> str:
    """The page as Markdown.

    Args:
        found: by part, what :mod:`~calibration.study` measured.
    """
    parts = [_INTRODUCTION]
    alike = {name: part for name, part in found.items() if name.startswith("aa-")}
    if alike:
        parts.append("## No effect: false claims\n")
        parts += [_scenario(part, "claimed", "false claims") for part in alike.values()]
    replayed = [part for name, part in found.items() if name.startswith("replay-")]
    if replayed:
        parts.append(_REPLAY)
        parts += [_scenario(part, "claimed", "false claims") + _gates(part) for part in replayed]
    local = [part for name, part in found.items() if name.startswith("local")]
    if local:
        parts.append(_LOCAL)
        parts += [
            _scenario(part, "claimed", "false claims") + _gates(part) + _planted(part)
            for part in local
        ]
    planted = {name: part for name, part in found.items() if name.startswith(("slower", "delayed"))}
    if planted:
        parts.append("## A planted effect: coverage of the interval\n")
        parts += [_scenario(part, "covered", "covered") for part in planted.values()]
    attributed = {name: part for name, part in found.items() if name.startswith("attribution-")}
    if attributed:
        parts.append(_ATTRIBUTION)
        parts += [_scenario(part, "covered", "covered") for part in attributed.values()]
    power = [part for name, part in found.items() if name.startswith("power-")]
    if power:
        parts.append(_power(power))
    seconds = sum(part["seconds"] for part in found.values())
    parts.append(
        f"## Run time\n\nAll {len(found)} parts took {seconds / 60:.0f} minutes on one shared "
        "core. Name a part to run only that part; `--scale 0.1` makes a tenth of the "
        "comparisons:\n\n```\npython -m calibration\n"
        "python -m calibration aa-same --scale 0.1\n```\n"
    )
    return "\n".join(parts)


def _percent(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return "–"
    value = 100 * share["count"] / share["cases"]
    return f"{value:.1f} % ({100 * share['low']:.1f}–{100 * share['high']:.1f})"


def _scenario(part: Mapping[str, Any], key: str, title: str) -> str:
    scenario = part["scenario"]
    naive = scenario["naive"]
    planted = key == "covered"
    runs = scenario["repeats"]
    head = ["metric", title]
    head += ["naive method"] if naive else []
    head += ["true change"] if planted else []
    head += ["half-width of the interval (median)"]
    rows = []
    for metric in part["metrics"]:
        row = [metric["metric"], _percent(metric[key])]
        row += [_percent(metric["naive_claimed"])] if naive else []
        row += [f"{100 * metric['true_change']:+.1f} %"] if planted else []
        half = metric["median_half_width"]
        row += ["none" if half is None else f"{100 * half:.1f} %"]
        rows.append(row)
    made = f" made of {scenario['runs']} runs" if "runs" in scenario else ""
    caption = (
        f"### {scenario['name']}\n\n{scenario['comparisons']:,} comparisons{made}, "
        f"{scenario['n']:,} requests a run, {runs} run{'s' * (runs > 1)} of each configuration, "
        f"{part['resamples']} resamples, seed {part['seed']}, {part['seconds']:.0f} s.\n"
    )
    return caption + "\n" + _table(head, rows)


def _gates(part: Mapping[str, Any]) -> str:
    """How many of the comparisons a validity gate would have kept from being judged."""
    closed = [f"{name!r} in {count}" for name, count in part["gates_closed"].items()]
    if not closed:
        return "\nAll comparisons pass the validity gates.\n"
    return (
        f"\nSome comparisons would fail a validity gate but are judged here: {'; '.join(closed)}.\n"
    )


def _planted(part: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{100 * row['planted']:.0f} % on the mean",
            row["metric"],
            _percent(row["found"]),
            _percent(row["covered"]),
        ]
        for row in part["planted"]
    ]
    return "\nThe same with a known delay added to half of one run's first tokens:\n\n" + _table(
        ["planted", "metric", "found", "covered"], rows
    )


def _power(parts: list[Mapping[str, Any]]) -> str:
    sizes = sorted({part["scenario"]["n"] for part in parts})
    lines: dict[tuple[float, int], dict[int, Mapping[str, Any]]] = {}
    for part in parts:
        scenario = part["scenario"]
        lines.setdefault((scenario["delay"], scenario["repeats"]), {})[scenario["n"]] = part
    rows = []
    for (delay, repeats), by_size in sorted(lines.items()):
        for number, metric in enumerate(("mean", "p50")):
            row = [f"{100 * delay:.0f} % on the mean", str(repeats), f"TTFT {metric}"]
            row += [
                _percent(by_size[n]["metrics"][number]["claimed"]) if n in by_size else "–"
                for n in sizes
            ]
            rows.append(row)
    comparisons = parts[0]["scenario"]["comparisons"]
    head = ["planted", "repeats", "metric", *(f"{n:,} requests" for n in sizes)]
    return (
        "## Power: planted effects that are found\n\n"
        "Half of the treatment's first tokens are delayed, which raises mean TTFT by the planted "
        "share. Found means that the 95 % interval excludes no change. "
        f"{comparisons} comparisons each, the same traffic for both configurations.\n\n"
        + _table(head, rows)
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

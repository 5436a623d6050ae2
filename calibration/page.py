"""The calibration page: tables from the JSON that the study wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_INTRODUCTION = """# How often a verdict is wrong

This page is written by `python -m calibration` in a clone, from
[calibration.json](calibration.json). It shows how the procedure of
[How a verdict is made](verdicts.md) does where the truth is known: on synthetic queues
(`calibration/queues.py`): bursts, correlated prompt lengths, several
workers, decodes that slow each other down, and a drifting machine. Their times to first token
are correlated over tens of requests, more than those of a real production trace in Dynamo's
replay. (The part "stress" has them over hundreds.) The same follows for
[Dynamo's own replay](#no-effect-on-dynamos-replay), where nothing is made up but the time of a
step, and for [real processes](#no-effect-on-this-machine).

The constants of the procedure were chosen on other seeds than those shown here.

A **false claim** is a 95 % interval that excludes "no change" when both sides are the same
configuration. **Covered** means that the interval contains the true change. Shares have exact
binomial 95 % intervals (Clopper–Pearson) in brackets. The **naive** method resamples single
requests of each run on its own, as if they were independent.

How to read it:

* Coverage is meant to be between 93 and 97 %. Where it is more, intervals are wider than they need
  to be, which costs power, not truth:
  * *Goodput* of two runs of the same traffic differs by a handful of requests. The fewer change
    sides, the more a difference widens its own interval, and below a dozen the rule of three
    does.
  * *A p99* of 1,000 requests is known from ten of them, and Student's t allows for that.
  * *Repeats*: what runs differ by is added to the noise within them unless that explains it, and
    two or three runs leave few degrees of freedom.
  * *Throughput of different traffic*: the time between requests due is resampled in blocks that are
    longer than its bursts.
* *Throughput in an open loop* that is not overloaded is what is offered. All that two runs of the
  same traffic differ by is when the last response came; its interval shows how much that varies
  along the run. The naive method is always wrong for requests per second, since each request
  counts exactly 1.
* *Short runs*, of 122 to 500 requests, cannot tell a drift of the machine from none. Their
  intervals have an allowance for it, are wider where there is no drift, and cover more than 97 % of
  changes in times to first token. A p99 of less than 500 requests is kept from being judged by a
  gate, and of less than 300 it has no interval at all.
* With the same traffic the naive method can look harmless for times to first token: by not pairing
  it takes the traffic for noise, which happens to hide that it takes correlated noise for
  independent. Where the traffic matters little, as for the time between tokens, nothing hides it.
* **Where it fails.** Under "stress" bursts make queues of hundreds of requests, and what one run
  does to such a queue the other does not. Blocks of 200 requests are too short for that: a single
  run of each claims a difference of the mean time to first token in 14 % of cases, and of its p99,
  which one or two bursts decide, in 28 %. Nothing within one run shows that. Repeats do: see
  "stress, 3 repeats".
* Of 4,000 requests the p90 of the time between tokens is claimed to differ in 7 % of cases, which
  may be chance (4.9 to 10.2 %), or blocks of 200 requests that are a little short.
* One run of each configuration cannot know that runs differ. Where they do by 2 %, a single run of
  each claims a difference of inter-token latency far too often, and three runs of each do not:
  compare "1 repeat" with "3 repeats". Use repeats on a machine that is not quiet.
"""

_REPLAY = """## No effect, on Dynamo's replay

One configuration of Qwen3-32B on 16 H200, twice on a window of the conversation trace,
simulated by Dynamo's replay with KV routing. Each comparison has two seeds of its own: they decide
how the router breaks ties, and with the first that falls otherwise queues and caches part ways.

* With the *same traffic* the seeds are all that is random, so that comparisons are independent
  given the traffic although windows overlap. Most metrics are called different still less often
  than on the synthetic queues. Throughput of the split is where the rule for the end of a run
  was mended on seeing these runs: a few long requests decide when they end. Before, it was
  claimed to differ in 10.5 % of cases.
* *Neighbouring windows* differ by their traffic, which changes over the hour, and nothing is
  paired. Windows overlap from one comparison to the next, so that there are far fewer independent
  cases than comparisons (twelve pairs of windows share no request), and the true binomial intervals
  are wider than those shown. The hour's load changes, so that "no change" is not quite true.
* On the same traffic the naive method looks harmless for most latencies, since it takes the traffic
  for noise. Where the traffic matters little, as for the time between tokens of a split, it does
  not; on neighbouring windows nothing hides what it does.
"""

_LOCAL = """## No effect, on this machine

Dynamo's real frontend, router and mockers with eight aggregated workers and KV routing, on two
shared cores that did nothing else; 35 seconds of the conversation trace, 122 requests. Every
run has a deployment of its own with cold caches. Runs that follow each other are independent
comparisons, but few; in the second table every run is compared with every other, so that a run that
is unlike the rest counts many times, and the true binomial intervals are wider than those shown.
"""

_ATTRIBUTION = """## Coverage of an attribution's intervals

Which feature brings what (`python -m pytest_dynamo_bench attribution`), where the answer is known:
two features on the synthetic queues, of which one makes prefills 5 % faster and the other takes
away a delay of half of the first tokens. The true change is that of all comparisons pooled. With
several runs of each combination intervals are wider than they need to be. With one run of each
those of goodput are too narrow, covered in 87 to 95 % of cases. Give `--seeds` more than one.
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
        f"## How long it took\n\nAll {len(found)} parts took {seconds / 60:.0f} minutes on one "
        "core that others used as well. A part is run alone by its name, and `--scale 0.1` makes "
        "a tenth of the comparisons:\n\n```\npython -m calibration\n"
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
        return "\nNo validity gate would have closed in any of them.\n"
    return (
        "\nA validity gate would have closed in some, which are judged here all the same: "
        f"{'; '.join(closed)}.\n"
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
        "Half of the treatment's first tokens come later, so that the mean time to first token is "
        "higher by the share planted; found means that the 95 % interval excludes no change. "
        f"{comparisons} comparisons each, the same traffic for both configurations.\n\n"
        + _table(head, rows)
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"

"""How often each shipped claim holds on `local`, and how often it can be expected to.

    python performance/claims_on_local.py measure --rounds 10 benchmarks/*.py
    python performance/claims_on_local.py table benchmarks/*.py > docs/claims.md

`measure` runs ``pytest MODULE`` with the default settings, module after module, round after round,
and adds a line for each to `performance/claims_on_local.jsonl`: when, how long, and the change of
every claim's metric with its uncertainty. Run it on an otherwise idle machine. `table` judges the
claims, as the modules state them, on those lines, and prints a Markdown page. A line of traffic or
configurations that the module no longer has is not used.

The estimated power is the chance that a claim holds in one more run of the same kind. In every
run the end of the interval that faces the limit is some way beyond it: the slack. Slack that is
normal with the mean m and the standard deviation s of n runs is positive in the next run with the
probability ``T(m / (s sqrt(1 + 1/n)))``, T being Student's distribution with n - 1 degrees of
freedom (a prediction interval: Hahn and Meeker, "Statistical Intervals", 1991, section 4.7).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy import stats

from pytest_dynamo_bench.benchmark import Benchmark, Bound, Claim, traffic_for
from pytest_dynamo_bench.cli.common import load_benchmark
from pytest_dynamo_bench.errors import DynamoBenchError
from pytest_dynamo_bench.metric_definitions import metric_of
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.store import StoredResults
from pytest_dynamo_bench.targets.local.target import LocalTarget
from pytest_dynamo_bench.verdicts import (
    Effect,
    GateResult,
    Verdict,
    check_pair,
    check_run,
    control_false_discoveries,
    estimate_effect,
    judge,
)

_TARGET = "local"
_LINES = Path(__file__).with_suffix(".jsonl")
_NO_MATTER = ("role", "published", "note")


def measure(modules: Sequence[Path], rounds: int) -> None:
    """Run the benchmarks round after round; a line for each."""
    for number in range(1, rounds + 1):
        for module in modules:
            benchmark = load_benchmark(module)
            with tempfile.TemporaryDirectory(prefix="dynamo-bench-claims-") as results:
                started = time.time()
                process = subprocess.run(
                    [
                        *(sys.executable, "-m", "pytest", "-q", str(module)),
                        f"--dynamo-reports={results}",
                    ],
                    capture_output=True,
                    text=True,
                    check=False,
                )
                line = {
                    "module": module.stem,
                    "sent": sent(benchmark),
                    "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
                    "seconds": round(time.time() - started, 1),
                    "exit_code": process.returncode,
                    "outcome": process.stdout.strip().rpartition("\n")[2],
                    "claims": changes(benchmark, Path(results)),
                }
            print(f"round {number}: {line}", file=sys.stderr, flush=True)
            with _LINES.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")


def sent(benchmark: Benchmark) -> str:
    """A fingerprint of what `local` sends, and through what.

    Fields at their default have no part in it, so that a field that is added later leaves it as
    it is.
    """
    traffic = LocalTarget().traffic(benchmark)
    arms = [
        given(item)
        for item in benchmark.configurations
        if any(
            item.name in (claim.treatment, claim.baseline)
            for claim in benchmark.claims
            if claim.bound(_TARGET) is not None
        )
    ]
    lengths = [
        (request.request_id, request.input_tokens, request.output_tokens)
        for request in traffic.requests
    ]
    size = benchmark.size("standard")
    described = repr((arms, lengths, traffic.schedule, size.fast_forward, size.ramp_seconds))
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def given(value: Any) -> Any:
    """What data says beside its defaults, as plain values; not what only readers are told."""
    if dataclasses.is_dataclass(value):
        return [
            (item.name, given(own))
            for item in dataclasses.fields(value)
            if item.name not in _NO_MATTER
            and (own := getattr(value, item.name)) not in (item.default, _made_default(item))
        ]
    return [given(item) for item in value] if isinstance(value, list | tuple) else value


def _made_default(item: dataclasses.Field[Any]) -> Any:
    made = item.default_factory
    return made() if made is not dataclasses.MISSING else dataclasses.MISSING


def changes(benchmark: Benchmark, results: Path) -> dict[str, Any]:
    """Of every claim made here: the change of its metric, or the gates that did not pass."""
    stored = [StoredResults(path.parent) for path in results.glob("*/summary.json")]
    if not stored:
        return {}
    traffic = LocalTarget().traffic(benchmark)

    def runs(name: str) -> list[Metrics]:
        return [Metrics(run, benchmark.goodput) for run in stored[0].runs(benchmark.name, name)]

    def gates(claim: Claim, arms: Sequence[list[Metrics]]) -> Iterator[GateResult]:
        for metrics in (item for arm in arms for item in arm):
            asked = traffic_for(traffic, benchmark.configuration(metrics.run.configuration))
            yield from check_run(metrics.run, asked.schedule, claim.metric, traffic=asked)
        for treatment, baseline in zip(*arms, strict=True):
            yield from check_pair(treatment.run, baseline.run)

    found: dict[str, Any] = {}
    for claim in benchmark.claims:
        if claim.bound(_TARGET) is None:
            continue
        try:
            arms = [runs(claim.treatment), runs(claim.baseline)]
        except DynamoBenchError:
            continue
        effect = estimate_effect(*([item.sample(claim.metric) for item in arm] for arm in arms))
        failed = [gate.sentence for gate in gates(claim, arms) if not gate.passed]
        found[claim.name] = {
            "effect": {
                name: float(f"{value:.6g}") if isinstance(value, float) else value
                for name, value in dataclasses.asdict(effect).items()
            },
            "failed_gates": failed,
        }
    return found


def judged(benchmark: Benchmark, claims: dict[str, Any]) -> dict[str, Verdict]:
    """The claims as the module states them, judged together on one line's changes."""
    verdicts = []
    for claim in benchmark.claims:
        if claim.name not in claims or claim.bound(_TARGET) is None:
            continue
        measured = claims[claim.name]
        effect = Effect(**measured["effect"])
        if effect.metric != claim.metric:
            continue
        gates = [GateResult("validity", False, saw, "") for saw in measured["failed_gates"]]
        verdicts.append(judge(claim, _TARGET, effect, gates))
    return {verdict.claim.name: verdict for verdict in control_false_discoveries(verdicts)}


def slack(verdict: Verdict) -> float:
    """How far the interval stays within what is claimed, on the claim's scale."""
    effect, bound = verdict.effect, verdict.bound
    if effect is None:
        return -math.inf
    return min(
        effect.on_scale(effect.low) - effect.on_scale(bound.lowest),
        effect.on_scale(bound.highest) - effect.on_scale(effect.high),
    )


def power(slacks: Sequence[float]) -> float:
    """The probability that the next run's slack is positive; NaN for fewer than three runs."""
    if len(slacks) < 3:
        return math.nan
    if not all(map(math.isfinite, slacks)):
        return 0.0
    mean, deviation, runs = statistics.mean(slacks), statistics.stdev(slacks), len(slacks)
    if deviation == 0:
        return float(mean >= 0)
    return float(stats.t.cdf(mean / (deviation * math.sqrt(1 + 1 / runs)), runs - 1))


@dataclass(frozen=True)
class Held:
    """A claim over all its runs."""

    claim: Claim
    verdicts: tuple[Verdict, ...]

    def row(self) -> str:
        """A row of the table."""
        count = {
            outcome: sum(verdict.outcome == outcome for verdict in self.verdicts)
            for outcome in ("holds", "inconclusive", "fails", "invalid")
        }
        effects = [verdict.effect for verdict in self.verdicts if verdict.effect is not None]
        changed = [100 * effect.change for effect in effects]
        ends = [100 * _end_that_counts(effect, self.verdicts[0].bound) for effect in effects]
        unit = "points" if metric_of(self.claim.metric).is_share else "%"
        chance = power([slack(v) for v in self.verdicts if v.outcome != "invalid"])
        return (
            f"| {self.claim.name} | {self.claim.statement(_TARGET)} "
            f"| {_spread(changed)} {unit} | {_spread(ends)} {unit} "
            f"| {count['holds']} of {len(self.verdicts)} | {count['inconclusive']} "
            f"| {count['fails']} | {count['invalid']} "
            f"| {'too few runs' if math.isnan(chance) else f'{chance:.3f}'} |"
        )


def _end_that_counts(effect: Effect, bound: Bound) -> float:
    if bound.direction == "within":
        return max(effect.low, effect.high, key=abs)
    return effect.high if bound.direction == "at most" else effect.low


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):+.1f} ({min(values):+.1f} … {max(values):+.1f})"


def held(benchmark: Benchmark, lines: Sequence[dict[str, Any]]) -> list[Held]:
    """Every claim of a benchmark over the lines that measured it."""
    sessions = [judged(benchmark, line["claims"]) for line in lines]
    return [
        Held(claim, verdicts)
        for claim in benchmark.claims
        if (verdicts := tuple(s[claim.name] for s in sessions if claim.name in s))
    ]


def lines_of(module: Path) -> list[dict[str, Any]]:
    """The recorded runs of a benchmark with the traffic and configurations that it has."""
    fingerprint = sent(load_benchmark(module))
    recorded = [json.loads(line) for line in _LINES.read_text(encoding="utf-8").splitlines()]
    return [
        line for line in recorded if (line["module"], line["sent"]) == (module.stem, fingerprint)
    ]


def page(modules: Sequence[Path]) -> Iterator[str]:
    """The lines of the page."""
    yield "# How often the shipped claims hold on `local`\n"
    yield (
        "Each module was run with its default settings, at different times, on two cores. *Change* "
        "and *end that counts* (the end of the interval that faces the limit) are medians over the "
        "runs, with the smallest and the largest. *Power* is the estimated chance that the claim "
        "holds in one more such run: `performance/claims_on_local.py` says how, makes these runs, "
        "and made this page. CI does not repeat them: that takes hours."
    )
    for module in modules:
        benchmark = load_benchmark(module)
        lines = lines_of(module)
        rows = held(benchmark, lines)
        if not rows:
            continue
        seconds = [line["seconds"] for line in lines]
        green = sum(line["exit_code"] == 0 for line in lines)
        yield f"\n## {benchmark.name}\n"
        yield (
            f"Runs: {len(lines)}, of which {green} ended green. They took "
            f"{statistics.median(seconds):.0f} s ({min(seconds):.0f} … {max(seconds):.0f}).\n"
        )
        yield (
            "| claim | claimed | change | end that counts | held | inconclusive | failed "
            "| invalid | power |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for row in rows:
            yield row.row()
        measured = {row.claim for row in rows}
        for claim in benchmark.claims:
            if claim.bound(_TARGET) is not None and claim not in measured:
                yield f"\nNot measured, since it needs what is not installed: {claim.name}."


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("measure", "table"))
    parser.add_argument("modules", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.command == "measure":
        measure(arguments.modules, arguments.rounds)
    else:
        print("\n".join(page(arguments.modules)))


if __name__ == "__main__":
    main()

"""``attribution``: what each feature contributes, if two configurations differ in several."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.attribution import Estimate
from pytest_dynamo_bench.attribution_runs import AttributionStudy, run_attribution
from pytest_dynamo_bench.benchmark import Benchmark
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import in_words, metric_of
from pytest_dynamo_bench.reports import figures, stored_types
from pytest_dynamo_bench.reports.attribution import shares_table


def add_arguments(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "attribution",
        help="attribute the difference between two configurations to their features",
        description="Simulates every combination of the features in which two configurations "
        "differ (a full ablation) and divides the difference among them: what each feature "
        "contributes alone, on top of all others, and averaged over all orders (Shapley value). "
        "Intervals come from several seeds for the router's tie-breaking and from resampled blocks "
        "of the traffic.",
    )
    parser.add_argument("module", type=Path, metavar="MODULE.py", help="a benchmark")
    parser.add_argument(
        "--baseline", metavar="NAME", help="default: the configuration with the role baseline"
    )
    parser.add_argument(
        "--treatment", metavar="NAME", help="default: the configuration with the role promoted"
    )
    parser.add_argument(
        "--metric", default="goodput", metavar="METRIC",
        help="metric to attribute (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=common.positive, default=5, metavar="N",
        help="simulations of each combination with KV routing (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--together", action="append", default=[], metavar="A+B",
        help="treat these features as one; can be repeated",
    )  # fmt: skip
    common.add_running_options(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Simulate, divide, show, write.

    Raises:
        DynamoBenchError: as
            :func:`~pytest_dynamo_bench.attribution_runs.run_attribution`.
    """
    began = time.monotonic()
    benchmark = common.load_benchmark(options.module, options.dynamo_version)
    metric = common.check_metric(options.metric)
    baseline = _configuration(benchmark, options.baseline, "baseline")
    treatment = _configuration(benchmark, options.treatment, "promoted")
    cached = 0
    directory = common.output_directory(options, Path("reports") / f"{benchmark.name}-attribution")

    target = common.simulating_target(options)
    with common.progress("attribution") as tell:

        def on_run(done: int, total: int, configuration: str, seed: int, known: bool) -> None:
            nonlocal cached
            cached += known
            tell(done, total, f"{configuration}, seed {seed}" + (" (cached)" if known else ""))

        study = run_attribution(
            benchmark, baseline, treatment,
            metric=metric,
            seeds=range(options.seeds),
            together=[group.split("+") for group in options.together],
            target=target,
            on_run=on_run,
        )  # fmt: skip
    console = common.output_console()
    console.print(Text(f"{common.title(benchmark)}, {common.SIMULATED}", style="bold"))
    title = f"{metric} of {study.treatment} against {study.baseline}"
    console.print(Text(f"{title}, % of the baseline's, 95 % intervals"), soft_wrap=True)
    console.print(shares_table(study))
    console.print(_combinations(study))
    console.print(
        Text(
            f"{study.resamples} resamples of {options.seeds} seed{'s' * (options.seeds > 1)} and "
            f"of blocks of {study.block_requests} of {study.requests} requests, the same for all "
            "combinations"
        ),
        soft_wrap=True,
    )
    compared = benchmark.only((baseline, treatment))
    content = stored_types.attribution(study, common.limitations(target, compared))
    files = common.write_results(directory, "attribution", content, _csv_rows(study))
    files += common.draw(
        console, directory, "attribution", options.png,
        lambda path: figures.write_attribution(
            path, study.attribution.as_rows(),
            title=_title(study),
            subtitle=f"{common.title(benchmark)}: {title}; {options.seeds} seeds, 95 % intervals",
            metric=metric,
        ),
    )  # fmt: skip
    common.say_written(console, files)
    common.say_limitations(console, "attribution.json")
    runs = sum(len(one.seeds) for one in study.runs)
    console.print(
        f"{runs} simulations in {time.monotonic() - began:.1f} s, {cached} of them from the cache",
        soft_wrap=True,
    )


def _configuration(benchmark: Benchmark, name: str | None, role: str) -> str:
    known = [configuration.name for configuration in benchmark.configurations]
    if name is not None:
        return common.choose("configuration", name, known)
    of_role = [item.name for item in benchmark.configurations if item.role == role]
    if len(of_role) == 1:
        return of_role[0]
    option = "--baseline" if role == "baseline" else "--treatment"
    raise BenchmarkError(
        f"{option}: benchmark {benchmark.name!r} has {len(of_role)} configurations with the role "
        f"{role}; name one: {', '.join(known)}"
    )


def _title(study: AttributionStudy) -> str:
    """What each feature does on average, as far as the intervals say."""
    verbs = {1: "raises", -1: "lowers", 0: "may raise or lower"}
    effects = [
        f"{share.feature} {verbs[share.average.sign]} it" for share in study.attribution.features
    ]
    total = study.attribution.total
    whole = f"{100 * total.value:+.1f} %".replace("-", "−")
    words = in_words(study.metric).capitalize()
    return f"{words} {whole} in all: averaged over orders, {', '.join(effects)}"


def _combinations(study: AttributionStudy) -> Table:
    unit = metric_of(study.metric).unit
    table = common.plain_table(
        "taken from the treatment", "configuration", f"{study.metric}\n{unit}", "interval",
        "over seeds", left=2,
    )  # fmt: skip
    for run, (_, estimate) in zip(study.runs, study.attribution.combinations, strict=True):
        spread = f"{common.number(min(run.values), unit)} to {common.number(max(run.values), unit)}"
        table.add_row(
            ", ".join(run.features) or "nothing", run.configuration,
            common.number(estimate.value, unit),
            f"{common.number(estimate.low, unit)} to {common.number(estimate.high, unit)}",
            spread if len(run.values) > 1 else "one seed",
        )  # fmt: skip
    return table


def _csv_rows(study: AttributionStudy) -> list[dict[str, Any]]:
    rows = []
    for share in study.attribution.features:
        for part in ("alone", "on_top", "average"):
            estimate: Estimate = getattr(share, part)
            rows.append(_csv_row(share.feature, part, estimate))
    rows.append(_csv_row("total", "average", study.attribution.total))
    return rows


def _csv_row(feature: str, part: str, estimate: Estimate) -> dict[str, Any]:
    return {
        "feature": feature, "part": part, "value": estimate.value, "low": estimate.low,
        "high": estimate.high, "simulated": True,
    }  # fmt: skip

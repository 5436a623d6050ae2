"""The options that are no target's own, and what may be written for them.

Only argparse is known here; every value is checked while the command line is read.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pytest_dynamo_bench.targets.options import OptionGroup, count, number, option
from pytest_dynamo_bench.targets.registry import OURS

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_GATES = (
    "failed_share, rejected_share, token_mismatch_share, token_tolerance, schedule_delay_ms, "
    "schedule_delay_share, generator_cpu_share, generator_lag_ms, generator_coalesced_share, "
    "processor_share, fewest_requests, fewest_beyond_percentile, warm_cache_share, "
    "queue_growth, queue_growth_factor, queue_growth_p_value"
)


def _named_directory(text: str) -> tuple[str, Path]:
    name, separator, directory = text.partition("=")
    if not (name and separator and directory):
        raise argparse.ArgumentTypeError(
            f"must be CONFIGURATION=DIR, such as agg-kv-router=artifacts/kv; got {text!r}"
        )
    return name, Path(directory)


def named_dynamo(text: str) -> tuple[str, str]:
    """``1.6.1`` or ``CONFIGURATION=1.6.1`` as the configuration's name, or "", and a Dynamo."""
    name, separator, dynamo = text.partition("=")
    if not separator or "/" in name:
        name, dynamo = "", text
    if not dynamo.strip():
        raise argparse.ArgumentTypeError(
            f"must be a Dynamo such as 1.6.1, or CONFIGURATION=1.6.1; got {text!r}"
        )
    return name, dynamo


def _seconds(text: str) -> float:
    return number(text, lambda value: 1 <= value <= 86_400, "between 1 and 86400 seconds,")


def _share(text: str) -> float:
    return number(text, lambda value: 0 < value < 1, "between 0 and 1, such as 0.05;")


def _duration_seconds(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None or float(match.group(1)) <= 0:
        raise argparse.ArgumentTypeError(f"must be a duration such as 90s, 10m or 2h; got {text!r}")
    return float(match.group(1)) * {"s": 1, "m": 60, "h": 3600}[match.group(2) or "s"]


def _gate(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in _GATES.split(", "):
        raise argparse.ArgumentTypeError(f"{name!r} is not a threshold; there are {_GATES}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name}: must be a number, got {value!r}") from None


_RUNS = OptionGroup("runs", (
    option(
        "--dynamo-target", metavar="TARGET", default=None,
        help="where to measure: "
        + ", ".join(f"{target.name!r} is {target.summary}" for target in OURS)
        + " (default: the ini option dynamo_target, else 'local')",
    ),
    option(
        "--dynamo-version", metavar="[CONFIGURATION=]DYNAMO", type=named_dynamo,
        action="append", default=[],
        help="the Dynamo that runs where a configuration names none, for all of them or for one: "
        "a release or wheels that install-dynamo has installed, or the Python of an environment "
        "(default: that of the environment that tests run in); docs/dynamo-versions.md",
    ),
    option(
        "--dynamo-traffic", metavar="FILE", default=None,
        help="send the requests in this file instead of the benchmark's: a Mooncake trace, a "
        "Dynamo request trace or an AIPerf input file; the format is detected",
    ),
    option(
        "--dynamo-aiperf-results", metavar="CONFIGURATION=DIR", type=_named_directory,
        action="append", default=[],
        help="check claims on results of `aiperf profile`: the directory that it wrote for a "
        "configuration; repeat the option for more configurations or repeats. Nothing is started; "
        "--dynamo-target names the target that was measured (default here: endpoint)",
    ),
    option(
        "--dynamo-dry-run", action="store_true",
        help="check the benchmarks (kubernetes: let the API server validate the manifests), but "
        "start and measure nothing",
    ),
    option(
        "--dynamo-reports", metavar="DIR", default=None,
        help="where to create the results directory (default: reports)",
    ),
    option(
        "--dynamo-seconds", metavar="SECONDS", type=_seconds, default=None,
        help="how long to send each configuration's traffic, in real time (default: local, as the "
        "scale says; real deployments, all of it); longer runs give narrower intervals",
    ),
    option(
        "--dynamo-cut-seed", metavar="N", type=int, default=0,
        help="seed of the cut; all cuts are equally representative (default: %(default)s)",
    ),
    option(
        "--dynamo-load-processes", metavar="N", type=count, default=1,
        help="load generator processes (default: %(default)s); the command check-client measures "
        "what load one process can send",
    ),
    option(
        "--dynamo-repeats", metavar="N", type=count, default=1,
        help="runs of each configuration, interleaved; the intervals then include the differences "
        "between runs (default: %(default)s)",
    ),
    option(
        "--dynamo-budget", metavar="DURATION", type=_duration_seconds, default=None,
        help="repeat until every claim is decided, at most this long per benchmark, such as 90s, "
        "10m or 2h; replaces --dynamo-repeats",
    ),
))  # fmt: skip
_VERDICTS = OptionGroup("verdicts", (
    option(
        "--dynamo-gate", metavar="NAME=VALUE", type=_gate, action="append", default=[],
        help="threshold of a validity gate, such as failed_share=0.01; docs/verdicts.md lists "
        "them; can be repeated",
    ),
    option(
        "--dynamo-inconclusive", choices=("fail", "skip", "xfail"), default=None,
        help="test outcome of an inconclusive claim (default: fail; at --dynamo-scale=smoke skip)",
    ),
    option(
        "--dynamo-invalid", choices=("error", "skip", "xfail"), default="error",
        help="test outcome of an invalid run (default: %(default)s)",
    ),
    option(
        "--dynamo-false-discovery-rate", metavar="SHARE", type=_share, default=0.05,
        help="accepted share of wrong verdicts among a benchmark's decided claims "
        "(default: %(default)s)",
    ),
    option(
        "--dynamo-baseline", metavar="DIR", default=None,
        help="results of an earlier session; adds regression tests for every configuration, which "
        "fail if a metric got worse by more than the tolerance or cannot be compared",
    ),
    option(
        "--dynamo-tolerance", metavar="METRIC:SHARE", action="append", default=[],
        help="with --dynamo-baseline: how much worse a metric may get, such as ttft:5%% or "
        "itl.p99:0.1; separate several with commas (default: 5%% for median TTFT, median ITL and "
        "throughput)",
    ),
    option(
        "--dynamo-baseline-any", action="store_true",
        help="with --dynamo-baseline: compare even if environment, configuration or traffic differ",
    ),
    option(
        "--dynamo-allow-missing", action="store_true",
        help="with --dynamo-baseline: skip results that only one of the sessions has; the session "
        "still fails if nothing can be compared",
    ),
    option(
        "--dynamo-save-baseline", metavar="DIR", default=None,
        help="copy the results to this directory, for --dynamo-baseline in a later session",
    ),
))  # fmt: skip
OPTIONS = (_RUNS, _VERDICTS)

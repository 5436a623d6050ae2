"""The options that are no target's own, and what may be written for them.

Only argparse is known here; every value is checked while the command line is read.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pytest_dynamo_bench.targets.options import OptionGroup, count, option
from pytest_dynamo_bench.targets.registry import OURS

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_GATES = (
    "failed_share, rejected_share, token_mismatch_share, token_tolerance, schedule_delay_ms, "
    "schedule_delay_share, generator_cpu_share, generator_lag_ms, generator_coalesced_share, "
    "processor_share, fewest_requests, fewest_beyond_percentile, warm_cache_share, "
    "queue_growth, queue_growth_factor, queue_growth_p_value"
)


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"must be between 1 and 86400 seconds, got {text!r}")
    return seconds


def _named_directory(text: str) -> tuple[str, Path]:
    name, separator, directory = text.partition("=")
    if not (name and separator and directory):
        raise argparse.ArgumentTypeError(
            f"must be CONFIGURATION=DIR, such as agg-kv-router=artifacts/kv; got {text!r}"
        )
    return name, Path(directory)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, such as 0.05; got {text!r}")
    return share


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
        help="where configurations are brought up: "
        + ", ".join(f"{target.name!r} is {target.summary}" for target in OURS)
        + " (default: the ini option dynamo_target, else 'local')",
    ),
    option(
        "--dynamo-traffic", metavar="FILE", default=None,
        help="send the requests of this file instead of the benchmark's: a Mooncake trace, a "
        "request trace of Dynamo, or inputs of AIPerf; its content tells which",
    ),
    option(
        "--dynamo-aiperf-results", metavar="CONFIGURATION=DIR", type=_named_directory,
        action="append", default=[],
        help="check the claims on what `aiperf profile` measured: for each configuration the "
        "directory that it wrote; given again for a configuration it is another repeat. Nothing "
        "is brought up; --dynamo-target says on what it was measured (default here: endpoint)",
    ),
    option(
        "--dynamo-dry-run", action="store_true",
        help="look whether everything is there (kubernetes: let the API server check the "
        "manifests), but create and measure nothing",
    ),
    option(
        "--dynamo-reports", metavar="DIR", default=None,
        help="directory that a directory of results is made in (default: reports)",
    ),
    option(
        "--dynamo-seconds", metavar="SECONDS", type=_positive_seconds, default=None,
        help="another length of each configuration's traffic, by the clock: local, than that of "
        "the scale; a real deployment, than all of it; longer runs give narrower intervals",
    ),
    option(
        "--dynamo-cut-seed", metavar="N", type=int, default=0,
        help="choose another, equally representative cut (default: %(default)s)",
    ),
    option(
        "--dynamo-load-processes", metavar="N", type=count, default=1,
        help="processes of the load generator, for rates that one core cannot send "
        "(default: %(default)s); check-client says what one can do",
    ),
    option(
        "--dynamo-repeats", metavar="N", type=count, default=1,
        help="runs of each configuration, in interleaved order; their differences widen or "
        "narrow the intervals as they should (default: %(default)s)",
    ),
    option(
        "--dynamo-budget", metavar="DURATION", type=_duration_seconds, default=None,
        help="instead of a fixed number of repeats, add some until every claim is decided, for "
        "so long at most for each benchmark, such as 90s, 10m or 2h",
    ),
))  # fmt: skip
_VERDICTS = OptionGroup("verdicts", (
    option(
        "--dynamo-gate", metavar="NAME=VALUE", type=_gate, action="append", default=[],
        help="another threshold of a validity gate, such as failed_share=0.01; docs/verdicts.md "
        "lists them; can be given several times",
    ),
    option(
        "--dynamo-inconclusive", choices=("fail", "skip", "xfail"), default=None,
        help="outcome of a claim that the measurement neither confirms nor refutes "
        "(default: fail; at --dynamo-scale=smoke skip)",
    ),
    option(
        "--dynamo-invalid", choices=("error", "skip", "xfail"), default="error",
        help="outcome where a run is invalid, so that nothing can be concluded from it "
        "(default: %(default)s)",
    ),
    option(
        "--dynamo-false-discovery-rate", metavar="SHARE", type=_share, default=0.05,
        help="share of wrong verdicts among the decided claims of a benchmark "
        "(default: %(default)s)",
    ),
    option(
        "--dynamo-baseline", metavar="DIR", default=None,
        help="results of an earlier session; every configuration gets tests that fail when a "
        "metric got worse by more than is tolerated, or has nothing to be compared with",
    ),
    option(
        "--dynamo-tolerance", metavar="METRIC:SHARE", action="append", default=[],
        help="with --dynamo-baseline: how much worse a metric may be, such as ttft:5%% or "
        "itl.p99:0.1; several separated by commas (default: 5%% for the medians of TTFT and ITL, "
        "and for throughput)",
    ),
    option(
        "--dynamo-baseline-any", action="store_true",
        help="with --dynamo-baseline: compare although environment, configuration or traffic "
        "differ",
    ),
    option(
        "--dynamo-allow-missing", action="store_true",
        help="with --dynamo-baseline: skip what cannot be compared, since one side has no usable "
        "result of it; when that is everything, the session fails all the same",
    ),
    option(
        "--dynamo-save-baseline", metavar="DIR", default=None,
        help="copy the results to a directory that --dynamo-baseline can name later",
    ),
))  # fmt: skip
OPTIONS = (_RUNS, _VERDICTS)

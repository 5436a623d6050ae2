"""Arguments, errors and exit codes of the command line.

Exit codes: 0 success; 1 a simulation failed, a check found a regression, or some stored results
could not be used; 2 wrong usage or input; 130 Ctrl-C; 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from pytest_dynamo_bench import __version__
from pytest_dynamo_bench.cli import (
    attribution,
    check_client,
    cleanup,
    common,
    compare,
    install_dynamo,
    install_vllm,
    report,
    show,
    sweep,
    traffic,
)
from pytest_dynamo_bench.cli.modules import known_targets
from pytest_dynamo_bench.dynamo.releases import TRIED
from pytest_dynamo_bench.errors import (
    DeploymentError,
    DynamoBenchError,
    IncompleteError,
    LoadError,
    RegressionError,
)
from pytest_dynamo_bench.plain_text import did_you_mean
from pytest_dynamo_bench.targets.registry import TargetRegistry

_SCRIPT = "dynamo-bench"
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143

_DESCRIPTION = """\
Analyze a benchmark: sweep its configurations over load, KV capacity or
prefill/decode workers, attribute a gain to features, describe its traffic, and
show what would be deployed. Work with stored results: write reports again,
compare sessions, and show metrics over time. sweep and attribution simulate
with Dynamo's replay. No command needs a GPU."""
_EPILOG = """\
examples:
  python -m pytest_dynamo_bench sweep benchmarks/qwen3_32b_kv_routing.py
  python -m pytest_dynamo_bench sweep benchmarks/qwen3_32b_kv_routing.py \\
      --speedup 1,1.5 --split 7+1,6+2,5+3,4+4
  python -m pytest_dynamo_bench attribution benchmarks/qwen3_32b_kv_routing.py \\
      --baseline agg-round-robin --treatment disagg-kv-router
  python -m pytest_dynamo_bench traffic my-trace.jsonl --write-cut short.jsonl
  python -m pytest_dynamo_bench show benchmarks/qwen3_32b_kv_routing.py --target kubernetes
  python -m pytest_dynamo_bench report reports/2026-11-24T21-06-10Z-local
  python -m pytest_dynamo_bench compare reports/new reports/old --tolerance ttft:10%
  python -m pytest_dynamo_bench history reports/*-local --output history.html
  python -m pytest_dynamo_bench check-client

COMMAND --help lists the options of a command. Claims are tests; run them with
pytest MODULE.py --dynamo-target=replay"""
_COMMANDS = (
    "sweep", "attribution", "traffic", "show", "report", "schema", "compare", "history",
    "cleanup", "check-client", "install-dynamo", "install-vllm",
)  # fmt: skip


def parser(targets: TargetRegistry) -> argparse.ArgumentParser:
    """All commands with their options.

    Args:
        targets: that ``show`` can show.
    """
    top = argparse.ArgumentParser(
        prog=_SCRIPT if Path(sys.argv[0]).name == _SCRIPT else "python -m pytest_dynamo_bench",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=_versions())
    top.add_argument(
        "--metrics", type=Path, metavar="FILE.py",
        help="the conftest.py that registers your own metrics, if results or benchmarks use them; "
        "comes before COMMAND",
    )  # fmt: skip
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sweep.add_arguments(commands)
    attribution.add_arguments(commands)
    traffic.add_arguments(commands)
    show.add_arguments(commands, targets)
    cleanup.add_arguments(commands)
    report.add_arguments(commands)
    compare.add_arguments(commands)
    check_client.add_arguments(commands)
    install_dynamo.add_arguments(commands)
    install_vllm.add_arguments(commands)
    return top


def _versions() -> str:
    """This package's version, and that of the installed Dynamo."""
    try:
        dynamo = f"ai-dynamo {metadata.version('ai-dynamo')}"
    except metadata.PackageNotFoundError:
        dynamo = f"ai-dynamo is not installed (tried: {', '.join(TRIED)})"
    return f"pytest-dynamo-bench {__version__}, {dynamo}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; those of this process by default.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    errors = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    try:
        top = parser(known_targets(Path(text) for text in given if text.endswith(".py")))
    except DynamoBenchError as error:
        errors.print(Text(f"error: {error}"))
        return EXIT_USAGE
    if given and not given[0].startswith("-") and given[0] not in _COMMANDS:
        meant = did_you_mean(given[0], _COMMANDS, after=" ")
        top.error(f"there is no command {given[0]!r}; {meant}commands: {', '.join(_COMMANDS)}")
    options = top.parse_args(given)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with common.own_metrics(options.metrics):
            options.run(options)
    except (DeploymentError, IncompleteError, LoadError, RegressionError) as error:
        errors.print(Text(f"error: {error}"))
        return EXIT_FAILED
    except DynamoBenchError as error:
        errors.print(Text(f"error: {error}"))
        return EXIT_USAGE
    except OSError as error:
        named = f"{error.filename}: " if error.filename else ""
        errors.print(Text(f"error: {named}{error.strerror or error}"))
        return EXIT_USAGE
    except KeyboardInterrupt:
        kept = "" if getattr(options, "no_cache", True) else "; finished simulations are cached"
        errors.print(Text(f"interrupted{kept}"))
        return EXIT_INTERRUPTED
    return 0


def _terminate(*_: object) -> NoReturn:
    """End through all clean-up, as Ctrl-C does."""
    sys.exit(EXIT_TERMINATED)

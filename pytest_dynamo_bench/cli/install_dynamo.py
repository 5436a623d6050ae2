"""``install-dynamo``: make, list and remove the environments that a Dynamo runs in."""

from __future__ import annotations

import argparse
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.cli.common import choose, output_console
from pytest_dynamo_bench.dynamo.kept import KeptEnvironment, all_kept
from pytest_dynamo_bench.errors import BenchmarkError


def add_arguments(commands: Any) -> None:
    """Add the command and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "install-dynamo",
        help="install a Dynamo for --dynamo-version",
        description="Installs a Dynamo for --dynamo-version and Configuration(dynamo=…) into its "
        "own environment in the user's cache directory (0.5 GB). pytest's environment does not "
        "change. Uses uv if available, otherwise pip, and the package index that pip is "
        "configured for. The installation is complete or leaves nothing behind. Dynamo's "
        "requirements that cannot be downloaded and are not needed here are left out.",
    )
    parser.add_argument(
        "dynamo", nargs="*", metavar="DYNAMO",
        help="a release, such as 1.6.1, or wheels of ai-dynamo and ai-dynamo-runtime, or a "
        "directory that has them",
    )  # fmt: skip
    parser.add_argument("--list", action="store_true", help="what is installed, and what it takes")
    parser.add_argument(
        "--remove", action="append", default=[], metavar="NAME",
        help="remove one, by its name in --list or by its release; may be given more than once",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    """Install, list or remove.

    Raises:
        DynamoBenchError: what is named is not there, or cannot be installed.
    """
    from pytest_dynamo_bench.dynamo.install import install

    console = output_console()

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    if not (options.dynamo or options.list or options.remove):
        raise BenchmarkError("install-dynamo: name a release such as 1.6.1, or wheels; or --list")
    for name in options.remove:
        kept = {item.directory.name: item for item in all_kept()}
        full = name if name in kept else f"dynamo-{name}"
        kept[choose("environment", full, list(kept))].remove()
        say(f"removed {full}")
    if options.dynamo:
        made = install(options.dynamo, say)
        word = ",".join(options.dynamo)
        say(f"ready; use it with: pytest benchmarks/ --dynamo-version={word}")
        say(f"its Python: {made.python}")
    if options.list:
        for item in all_kept():
            whole = "" if item.complete else "; not to the end: install it again, or remove it"
            say(f"{item.directory.name}: {_megabytes(item):,} MB in {item.directory}{whole}")


def _megabytes(item: KeptEnvironment) -> int:
    places = (item.directory, item.unfinished)
    files = (path for place in places for path in place.rglob("*") if path.is_file())
    return sum(path.lstat().st_size for path in files) // 10**6

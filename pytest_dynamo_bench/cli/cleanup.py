"""``cleanup``: delete what killed runs left in a cluster."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pytest_dynamo_bench.cli.common import output_console
from pytest_dynamo_bench.errors import BenchmarkError, DeploymentError

_WAIT_SECONDS = 300.0
_POLL_SECONDS = 0.5


def add_arguments(commands: Any) -> None:
    """Add the command and its options."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "cleanup",
        help="delete what killed runs left in a cluster",
        description="Lists the objects that runs of this plugin created in the cluster's "
        "namespace, and deletes those of one run or of all runs. Active and killed runs look the "
        "same, so nothing is deleted without --run or --all.",
    )
    parser.add_argument(
        "--dynamo-cluster", type=Path, metavar="FILE", required=True,
        help="the cluster's settings",
    )  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", dest="run_id", metavar="ID", help="delete the objects of this run")
    which.add_argument("--all", action="store_true", help="delete the objects of all runs")
    parser.add_argument(
        "--wait", type=float, metavar="SECONDS", default=_WAIT_SECONDS,
        help="how long to wait for deletion (default: %(default)g)",
    )  # fmt: skip
    # 'run' is what every command is called by, so that the id is kept under another name.
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    clean_up(options.dynamo_cluster, options.run_id, options.all, options.wait, output_console())


def clean_up(
    settings_file: Path, run_id: str | None, everything: bool, wait_seconds: float, console: Console
) -> None:
    """List or delete leftovers.

    Raises:
        TargetError: the settings are wrong, or there is no cluster.
        BenchmarkError: there is nothing of that run.
        DeploymentError: something is still there after the wait.
    """
    from pytest_dynamo_bench.targets.kubernetes.api import Cluster, connector
    from pytest_dynamo_bench.targets.kubernetes.graph import PLURAL
    from pytest_dynamo_bench.targets.kubernetes.manifest import RUN_LABEL
    from pytest_dynamo_bench.targets.kubernetes.settings import read_settings
    from pytest_dynamo_bench.targets.kubernetes.target import leftovers

    settings = read_settings(settings_file)
    cluster = Cluster(connector(settings.context), settings.namespace)
    found = leftovers(cluster, run_id)
    if not found:
        if run_id:
            raise BenchmarkError(f"namespace {settings.namespace} has nothing of run {run_id!r}")
        console.print(Text(f"namespace {settings.namespace}: nothing is left"))
        return
    delete = everything or run_id is not None
    for resource, item in found:
        metadata = item["metadata"]
        run = metadata.get("labels", {}).get(RUN_LABEL, "?")
        console.print(
            Text(
                f"{'deleting ' if delete else ''}{resource} {metadata['name']} of run {run}, "
                f"created {metadata.get('creationTimestamp', '?')}"
            ),
            soft_wrap=True,
        )
    if not delete:
        console.print(Text("nothing was deleted; use --run ID or --all"))
        return
    for resource, item in found:
        cluster.delete(resource, str(item["metadata"]["name"]))
    deadline = time.monotonic() + wait_seconds
    while left := leftovers(cluster, run_id):
        if time.monotonic() > deadline:
            names = ", ".join(f"{r} {i['metadata']['name']}" for r, i in left)
            hint = (
                "; look at the operator's log" if any(r.startswith(PLURAL) for r, _ in left) else ""
            )
            raise DeploymentError(f"still there after {wait_seconds:g} s: {names}{hint}")
        time.sleep(min(_POLL_SECONDS, wait_seconds / 10))
    console.print(Text("all of it is gone"))

"""The endpoint target: running servers, by URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import OptionGroup, OptionValue, option, seconds
from pytest_dynamo_bench.targets.service.options import ACCESS_OPTIONS, given_access

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

_OPTIONS = OptionGroup("endpoint", (
    option(
        "--dynamo-endpoint", metavar="NAME=URL", action="append", default=[],
        help="URL of a configuration's server; repeat for each configuration; NAME may be "
        "BENCHMARK/CONFIGURATION; a URL without a name is for all others and needs "
        "--dynamo-switch-command",
    ),
    option(
        "--dynamo-endpoint-model", metavar="NAME", default=None,
        help="the server's name for the benchmark's model (default: the model's id, which must be "
        "in /v1/models)",
    ),
    option(
        "--dynamo-switch-command", metavar="COMMAND", default=None,
        help="command that switches the server to a configuration, run before each one without a "
        "shell; {configuration} and {benchmark} are replaced",
    ),
    option(
        "--dynamo-switch-seconds", metavar="SECONDS", type=seconds, default=1800.0,
        help="time limit of the switch command (default: %(default)g)",
    ),
    option(
        "--dynamo-ready-seconds", metavar="SECONDS", type=seconds, default=None,
        help="how long to wait until the server lists the model (default: 60, or 1800 after a "
        "switch command)",
    ),
    option(
        "--dynamo-same-prompts", action="store_true",
        help="send the same prompts in every run (default: different words in each run, because "
        "caches are not emptied in between)",
    ),
))  # fmt: skip


def _make(option: OptionValue) -> Target:
    from pytest_dynamo_bench.targets.endpoint.switch import split_command
    from pytest_dynamo_bench.targets.endpoint.target import (
        EndpointOptions,
        EndpointTarget,
        parse_urls,
    )

    command = option("dynamo_switch_command")
    return EndpointTarget(
        EndpointOptions(
            urls=parse_urls(option("dynamo_endpoint")),
            access=given_access(option),
            model=option("dynamo_endpoint_model"),
            switch_command=split_command(command) if command is not None else None,
            switch_seconds=option("dynamo_switch_seconds"),
            ready_seconds=option("dynamo_ready_seconds") or (60.0 if command is None else 1800.0),
            seconds=option("dynamo_seconds"),
            seed=option("dynamo_cut_seed"),
            load_processes=option("dynamo_load_processes"),
            same_prompts=option("dynamo_same_prompts"),
        )
    )


ENDPOINT = TargetDefinition(
    name="endpoint",
    summary="servers that are already running",
    make=_make,
    options=[_OPTIONS, ACCESS_OPTIONS],
    # Both are real deployments.
    like="kubernetes",
)

"""Options of the targets that measure servers elsewhere, and the targets made from them.

It is imported in every pytest session, so that what measures is imported only when asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target
    from pytest_dynamo_bench.targets.service.address import Access

Option = Callable[[str], Any]
# Values of these may be secrets and are left out of what reports say of the command line.
_SECRET_OPTIONS = ("--dynamo-header",)


def add_server_options(add: Callable[..., object]) -> None:
    """Add the options of targets elsewhere, by a function like argparse's ``add_argument``."""
    add(
        "--dynamo-endpoint", metavar="NAME=URL", action="append", default=[],
        help="endpoint: address of a configuration's server, once for each of them; NAME may be "
        "BENCHMARK/CONFIGURATION; a URL alone is that of all others, with "
        "--dynamo-switch-command",
    )  # fmt: skip
    add(
        "--dynamo-endpoint-model", metavar="NAME", default=None,
        help="endpoint: what the server calls the benchmark's model (default: the model's id, "
        "which has to be in /v1/models)",
    )  # fmt: skip
    add(
        "--dynamo-switch-command", metavar="COMMAND", default=None,
        help="endpoint: run before each configuration, to put it behind the URL; "
        "{configuration} and {benchmark} in it are replaced; without a shell",
    )  # fmt: skip
    add(
        "--dynamo-switch-seconds", metavar="SECONDS", type=_seconds, default=1800.0,
        help="endpoint: how long the command may take (default: %(default)g)",
    )  # fmt: skip
    add(
        "--dynamo-ready-seconds", metavar="SECONDS", type=_seconds, default=None,
        help="endpoint: how long a server may take to list the model (default: 60, 1800 after a "
        "switch command)",
    )  # fmt: skip
    add(
        "--dynamo-same-prompts", action="store_true",
        help="endpoint: send the same words in every run; by default each run has words of its "
        "own, since nobody empties the caches in between",
    )  # fmt: skip
    add(
        "--dynamo-api-key-env", metavar="VARIABLE", default=None,
        help="environment variable with the API key, sent as a bearer token",
    )  # fmt: skip
    add(
        "--dynamo-api-key-file", metavar="FILE", type=Path, default=None,
        help="file with the API key",
    )  # fmt: skip
    add(
        "--dynamo-header", metavar="'NAME: VALUE'", action="append", default=[],
        help="sent with every request; a value env:VARIABLE is taken from the environment; can "
        "be given several times",
    )  # fmt: skip
    add(
        "--dynamo-tls-ca", metavar="FILE", type=Path, default=None,
        help="certificates to trust for https (default: the system's)",
    )  # fmt: skip
    add(
        "--dynamo-tls-certificate", metavar="FILE", type=Path, default=None,
        help="own certificate, where the server asks for one",
    )  # fmt: skip
    add(
        "--dynamo-tls-key", metavar="FILE", type=Path, default=None,
        help="its private key, where it is in a file of its own",
    )  # fmt: skip
    add("--dynamo-tls-insecure", action="store_true", help="accept any certificate for https")
    add(
        "--dynamo-cluster", metavar="FILE", type=Path, default=None,
        help="kubernetes: settings of the cluster, YAML: namespace, image tag, volumes, …; "
        "docs/run-on-a-cluster.md lists them",
    )  # fmt: skip
    add(
        "--dynamo-manifest", metavar="NAME=FILE", action="append", default=[],
        help="kubernetes: a manifest of your own for a configuration, instead of the rendered one; "
        "NAME may be BENCHMARK/CONFIGURATION; can be given several times",
    )  # fmt: skip
    add(
        "--dynamo-dry-run", action="store_true",
        help="kubernetes: look at the cluster and let the API server check the manifests, but "
        "create and measure nothing",
    )  # fmt: skip


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"must be between 0 and 86400 seconds, got {text!r}")
    return seconds


def _access(option: Option) -> Access:
    """Keys, headers and TLS.

    Raises:
        TargetError: something named is not there.
    """
    from pytest_dynamo_bench.targets.service.address import Tls, read_access

    return read_access(
        api_key_env=option("dynamo_api_key_env"),
        api_key_file=option("dynamo_api_key_file"),
        headers=option("dynamo_header"),
        tls=Tls(
            ca_file=option("dynamo_tls_ca"),
            certificate_file=option("dynamo_tls_certificate"),
            key_file=option("dynamo_tls_key"),
            verify=not option("dynamo_tls_insecure"),
        ),
    )


def kubernetes_target(option: Option) -> Target:
    """The Kubernetes target as the options describe it.

    Raises:
        TargetError: an option or the settings file is wrong; the message names it.
    """
    from pytest_dynamo_bench.errors import TargetError
    from pytest_dynamo_bench.targets.kubernetes.settings import read_settings
    from pytest_dynamo_bench.targets.kubernetes.target import KubernetesOptions, KubernetesTarget

    path = option("dynamo_cluster")
    if path is None:
        raise TargetError(
            "target 'kubernetes' needs --dynamo-cluster FILE, a file with at least 'namespace: "
            "my-namespace'; docs/run-on-a-cluster.md lists what else it may say"
        )
    manifests = {}
    for text in option("dynamo_manifest"):
        name, equals, file = text.partition("=")
        if not equals or not name or not Path(file).is_file():
            raise TargetError(
                f"--dynamo-manifest: {text!r}: must be CONFIGURATION=FILE with a file that exists"
            )
        manifests[name] = Path(file)
    return KubernetesTarget(
        KubernetesOptions(
            settings=read_settings(path),
            manifests=manifests,
            dry_run=option("dynamo_dry_run"),
            access=_access(option),
            seconds=option("dynamo_seconds"),
            seed=option("dynamo_cut_seed"),
            load_processes=option("dynamo_load_processes"),
        )
    )


def endpoint_target(option: Option) -> Target:
    """The endpoint target as the options describe it.

    Args:
        option: gives the value of an option by its name.

    Raises:
        TargetError: an option is wrong; the message names it.
    """
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
            access=_access(option),
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


def without_secrets(arguments: list[str]) -> list[str]:
    """A command line as reports may show it: without the values of headers."""
    shown: list[str] = []
    secret_next = False
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if secret_next:
            shown.append(_header_name(argument))
        elif equals and option in _SECRET_OPTIONS:
            shown.append(f"{option}={_header_name(value)}")
        else:
            shown.append(argument)
        secret_next = argument in _SECRET_OPTIONS
    return shown


def _header_name(header: str) -> str:
    name, colon, value = header.partition(":")
    return f"{name}:{value}" if value.strip().startswith("env:") else f"{name}{colon} ***"

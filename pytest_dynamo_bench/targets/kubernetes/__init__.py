"""The Kubernetes target: a configuration as a DynamoGraphDeployment on a cluster."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import OptionGroup, OptionValue, option
from pytest_dynamo_bench.targets.service.options import ACCESS_OPTIONS, given_access

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

_OPTIONS = OptionGroup("kubernetes", (
    option(
        "--dynamo-cluster", metavar="FILE", type=Path, default=None,
        help="settings of the cluster, YAML: namespace, image tag, volumes, …; "
        "docs/run-on-a-cluster.md lists them",
    ),
    option(
        "--dynamo-manifest", metavar="NAME=FILE", action="append", default=[],
        help="a manifest of your own for a configuration, instead of the rendered one; NAME may be "
        "BENCHMARK/CONFIGURATION; can be given several times",
    ),
))  # fmt: skip
_SHOW_OPTIONS = (
    option(
        "--dynamo-cluster", type=Path, metavar="FILE",
        help="kubernetes: settings of the cluster (default: none, with namespace 'default')",
    ),
    option(
        "--with-claims", action="store_true",
        help="kubernetes: also print the PersistentVolumeClaims that have to exist",
    ),
)  # fmt: skip
_RUN = "show"


def _make(option: OptionValue) -> Target:
    path = option("dynamo_cluster")
    if path is None:
        raise TargetError(
            "target 'kubernetes' needs --dynamo-cluster FILE, a file with at least 'namespace: "
            "my-namespace'; docs/run-on-a-cluster.md lists what else it may say"
        )
    from pytest_dynamo_bench.targets.kubernetes.settings import read_settings
    from pytest_dynamo_bench.targets.kubernetes.target import KubernetesOptions, KubernetesTarget

    return KubernetesTarget(
        KubernetesOptions(
            settings=read_settings(path),
            manifests=dict(map(_manifest, option("dynamo_manifest"))),
            dry_run=option("dynamo_dry_run"),
            access=given_access(option),
            seconds=option("dynamo_seconds"),
            seed=option("dynamo_cut_seed"),
            load_processes=option("dynamo_load_processes"),
        )
    )


def _manifest(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not name or not Path(file).is_file():
        raise TargetError(
            f"--dynamo-manifest: {text!r}: must be CONFIGURATION=FILE with a file that exists"
        )
    return name, Path(file)


def _show(
    benchmark: Benchmark, configurations: Sequence[Configuration], options: argparse.Namespace
) -> Iterator[str]:
    """The manifests as one YAML stream."""
    from pytest_dynamo_bench.targets.kubernetes.manifest import claims, render
    from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, read_settings
    from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump_all

    file = options.dynamo_cluster
    settings = read_settings(file) if file else ClusterSettings("default")
    parts = []
    if options.with_claims:
        found = claims(settings)
        if not found:
            raise TargetError("--with-claims: the settings name no model_cache")
        parts.append("# volumes that have to exist\n" + dump_all(found))
    for configuration in configurations:
        documents = render(benchmark, configuration, settings, _RUN)
        parts.append(f"# {benchmark.name}: {configuration.name}\n" + dump_all(documents))
    yield "---\n".join(parts).removesuffix("\n")


KUBERNETES = TargetDefinition(
    name="kubernetes",
    summary="a cluster with Dynamo's operator",
    make=_make,
    options=[_OPTIONS, ACCESS_OPTIONS],
    show=_show,
    show_options=_SHOW_OPTIONS,
)

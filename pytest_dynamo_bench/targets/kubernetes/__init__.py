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

_IMAGE = option(
    "--dynamo-image", metavar="[NAME=]IMAGE", action="append", default=[],
    help="kubernetes: an image of the engine's runtime, with NAME for one configuration only; "
    "NAME may be BENCHMARK/CONFIGURATION; can be given several times",
)  # fmt: skip
_VERSIONS = ("v1beta1", "v1alpha1")
_OPTIONS = OptionGroup("kubernetes", (
    option(
        "--dynamo-cluster", metavar="FILE", type=Path, default=None,
        help="YAML file with the cluster's settings: namespace, image tag, volumes and others; see "
        "docs/run-on-a-cluster.md",
    ),
    option(
        "--dynamo-manifest", metavar="NAME=FILE", action="append", default=[],
        help="use your own manifest for a configuration; NAME may be BENCHMARK/CONFIGURATION; can "
        "be repeated",
    ),
    _IMAGE,
))  # fmt: skip
_SHOW_OPTIONS = (
    _IMAGE,
    option(
        "--dynamo-cluster", type=Path, metavar="FILE",
        help="kubernetes: the cluster's settings (default: none, in namespace 'default')",
    ),
    option(
        "--api-version", choices=_VERSIONS, default=None,
        help="kubernetes: of the operator's API (default: that of the Dynamo that is deployed; "
        "a run asks the cluster)",
    ),
    option(
        "--with-claims", action="store_true",
        help="kubernetes: also print the PersistentVolumeClaims that must exist",
    ),
)  # fmt: skip
_RUN = "show"


def _make(option: OptionValue) -> Target:
    path = option("dynamo_cluster")
    if path is None:
        raise TargetError(
            "target 'kubernetes' needs --dynamo-cluster FILE, a file with at least 'namespace: "
            "my-namespace'; docs/run-on-a-cluster.md lists all settings"
        )
    from pytest_dynamo_bench.targets.kubernetes.settings import read_settings
    from pytest_dynamo_bench.targets.kubernetes.target import KubernetesOptions, KubernetesTarget

    return KubernetesTarget(
        KubernetesOptions(
            settings=read_settings(path),
            manifests=dict(map(_manifest, option("dynamo_manifest"))),
            images=dict(map(_image, option("dynamo_image"))),
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
            f"--dynamo-manifest: {text!r}: must be CONFIGURATION=FILE, and the file must exist"
        )
    return name, Path(file)


def _image(text: str) -> tuple[str, str]:
    name, equals, image = text.rpartition("=")
    if not image or any(character.isspace() for character in image) or (equals and not name):
        raise TargetError(
            f"--dynamo-image: {text!r}: must be IMAGE or CONFIGURATION=IMAGE, such as "
            "registry/vllm-runtime:1.6.1"
        )
    return name, image


def _show(
    benchmark: Benchmark, configurations: Sequence[Configuration], options: argparse.Namespace
) -> Iterator[str]:
    """The manifests as one YAML stream."""
    from pytest_dynamo_bench.targets.kubernetes.graph import NEW_OPERATOR, OLD_OPERATOR
    from pytest_dynamo_bench.targets.kubernetes.manifest import (
        claims,
        operator_of,
        render,
        with_image,
    )
    from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, read_settings
    from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump_all

    file = options.dynamo_cluster
    settings = read_settings(file) if file else ClusterSettings("default")
    images = dict(map(_image, options.dynamo_image))
    for name in filter(None, images):
        benchmark.configuration(name.removeprefix(f"{benchmark.name}/"))
    operators = {operator.version: operator for operator in (NEW_OPERATOR, OLD_OPERATOR)}
    parts = []
    if options.with_claims:
        found = claims(settings)
        if not found:
            raise TargetError("--with-claims: the settings name no model_cache")
        parts.append("# volumes that must exist\n" + dump_all(found))
    for configuration in configurations:
        own = with_image(settings, images, benchmark, configuration)
        operator = operators.get(options.api_version) or operator_of(benchmark, configuration, own)
        documents = render(benchmark, configuration, own, _RUN, operator)
        named = f"# {benchmark.name}: {configuration.name} ({operator.api_version})\n"
        parts.append(named + dump_all(documents))
    yield "---\n".join(parts).removesuffix("\n")


KUBERNETES = TargetDefinition(
    name="kubernetes",
    summary="a cluster with Dynamo's operator",
    make=_make,
    options=[_OPTIONS, ACCESS_OPTIONS],
    show=_show,
    show_options=_SHOW_OPTIONS,
)

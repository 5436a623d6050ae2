"""Everything that can be found wrong before something is created, all of it in one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_dynamo_bench.benchmark import Configuration
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.kubernetes.api import ApiError, Cluster
from pytest_dynamo_bench.targets.kubernetes.graph import (
    FORMS,
    GROUP,
    KIND,
    PLURAL,
    Operator,
)
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings

# verb, group, resource, subresource: what a run does; the shipped role is made of the same.
PERMISSIONS: tuple[tuple[str, str, str, str], ...] = (
    *((verb, GROUP, PLURAL, "") for verb in ("create", "get", "list", "watch", "delete")),
    *((verb, "", "pods", "") for verb in ("get", "list")),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
    *((verb, "", "configmaps", "") for verb in ("create", "get", "list", "delete")),
)
LOAD_PERMISSIONS: tuple[tuple[str, str, str, str], ...] = (
    *((verb, "batch", "jobs", "") for verb in ("create", "get", "list", "delete")),
    *((verb, "", "pods", "proxy") for verb in ("get", "create")),
)
PROXY_PERMISSIONS = tuple((verb, "", "services", "proxy") for verb in ("get", "create"))


# What the chart labels the NATS that it brings; others that follow Helm's conventions do too.
_NATS = "app.kubernetes.io/name=nats"
_RUNTIME_VERSION = "runtimeVersionOverride"


@dataclass(frozen=True)
class Found:
    """What a preflight found out.

    Attributes:
        operator: how deployments are written for it.
        served: the versions of its API, as objects say them.
        unknown: what could not be found out, for reports.
    """

    operator: Operator
    served: Sequence[str]
    unknown: Sequence[str]


def permissions(settings: ClusterSettings) -> tuple[tuple[str, str, str, str], ...]:
    """What a run with these settings has to be allowed to do."""
    more = {"cluster": LOAD_PERMISSIONS, "api-server": PROXY_PERMISSIONS}
    return (*PERMISSIONS, *more.get(settings.load.source, ()))


def preflight(
    cluster: Cluster,
    settings: ClusterSettings,
    configurations: Sequence[Configuration],
    asking_for_nats: Mapping[str, str],
) -> Found:
    """Look at the cluster.

    Args:
        asking_for_nats: what asks for NATS, by the name of the configuration.

    Raises:
        TargetError: something is missing; the message lists all of it.
    """
    problems: list[str] = []
    unknown: list[str] = []
    try:
        cluster.server_version()
    except ApiError as error:
        raise TargetError(f"the cluster is not usable: {error}") from None
    _namespace(cluster, problems, unknown)
    operator = None
    try:
        operator = operator_in(cluster, unknown)
    except TargetError as error:
        problems.append(str(error))
    except ApiError as error:
        problems.append(f"cannot see whether the Dynamo operator is installed: {error}")
    _rights(cluster, settings, problems, unknown)
    _objects(cluster, settings, problems, unknown)
    _nats(cluster, asking_for_nats, problems, unknown)
    _gpus(cluster, settings, configurations, problems, unknown)
    if problems or operator is None:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise TargetError(f"the cluster is not ready; nothing was created:\n{listed}")
    served = [f"{GROUP}/{version}" for version in cluster.versions(GROUP) or ()]
    return Found(operator, served, unknown)


def operator_in(cluster: Cluster, unknown: list[str]) -> Operator:
    """How the operator of a cluster is told of a deployment: what the API server serves decides.

    Operators before Dynamo 1.5.0 serve v1beta1 too, but store v1alpha1, and have no
    ``runtimeVersionOverride``: that field tells them apart.

    Raises:
        TargetError: there is no operator, or it serves no version that is known here.
        ApiError: the API server cannot be asked.
    """
    served = cluster.versions(GROUP)
    if not served:
        raise TargetError(
            f"the Dynamo operator is not installed: the API server has no group {GROUP}; see "
            "https://docs.nvidia.com/dynamo for installing the Kubernetes platform"
        )
    versions = [version for version in FORMS if version in served]
    if not versions:
        raise TargetError(
            f"the Dynamo operator serves {GROUP}/{', '.join(served)}, not {' or '.join(FORMS)}, "
            "which manifests are rendered for; use an operator that serves one of them as well"
        )
    try:
        asking = [v for v in versions if _has_field(cluster.schema(GROUP, v, KIND))]
    except ApiError as error:
        unknown.append(f"whether the operator knows {_RUNTIME_VERSION} ({error.status.reason})")
        asking = versions[:1] if versions[0] == next(iter(FORMS)) else []
    if asking:
        return Operator(asking[0], asks_runtime_version=True)
    return Operator(versions[-1], asks_runtime_version=False)


def _has_field(schema: Any) -> bool:
    """Whether components have ``runtimeVersionOverride``, as services or in a list."""
    spec = schema.get("properties", {}).get("spec", {}).get("properties", {})
    component = spec.get("components", {}).get("items", {})
    service = spec.get("services", {}).get("additionalProperties", {})
    return any(_RUNTIME_VERSION in item.get("properties", {}) for item in (component, service))


def _namespace(cluster: Cluster, problems: list[str], unknown: list[str]) -> None:
    try:
        found = cluster.find("namespaces", cluster.namespace)
    except ApiError as error:
        unknown.append(f"whether namespace {cluster.namespace} exists ({error.status.reason})")
        return
    if found is None:
        problems.append(
            f"there is no namespace {cluster.namespace!r}; create it, or set another one in the "
            "cluster's settings"
        )
    elif found.get("status", {}).get("phase") == "Terminating":
        problems.append(f"namespace {cluster.namespace!r} is being deleted")


def _nats(
    cluster: Cluster, asking: Mapping[str, str], problems: list[str], unknown: list[str]
) -> None:
    if not asking:
        return
    asked = "; ".join(f"{name}: {what}" for name, what in asking.items())
    try:
        found = cluster.anywhere("services", _NATS)
    except ApiError as error:
        unknown.append(
            f"whether there is a NATS, which is asked for ({asked}; {error.status.reason})"
        )
        return
    if not found:
        problems.append(
            f"no NATS is in the cluster, and it is asked for ({asked}). Since 1.4.0 Dynamo's chart "
            "brings none by itself: install it with --set global.nats.install=true, name your own "
            "as env: {NATS_SERVER: nats://HOST:4222} in the cluster's settings, or do not ask for "
            "it: without these Dynamo uses TCP and ZMQ"
        )


def _rights(
    cluster: Cluster, settings: ClusterSettings, problems: list[str], unknown: list[str]
) -> None:
    denied, unsaid = [], []
    for verb, group, resource, subresource in permissions(settings):
        named = f"{verb} {resource}{'/' + subresource if subresource else ''}"
        named += f".{group}" if group else ""
        try:
            allowed = cluster.may(verb, group, resource, subresource)
        except ApiError as error:
            problems.append(f"cannot check permissions: {error}")
            return
        if allowed is None:
            unsaid.append(named)
        elif not allowed:
            denied.append(named)
    if denied:
        problems.append(
            f"not allowed in namespace {cluster.namespace!r}: {', '.join(denied)}; "
            "docs/run-on-a-cluster.md has the required role"
        )
    if unsaid:
        unknown.append(f"permission to {', '.join(unsaid)}")


def _objects(
    cluster: Cluster, settings: ClusterSettings, problems: list[str], unknown: list[str]
) -> None:
    volumes = [v for v in (settings.model_cache, settings.compilation_cache) if v is not None]
    wanted = [("persistentvolumeclaims", volume.claim, "a volume") for volume in volumes]
    for secret in (settings.token_secret, settings.image_pull_secret):
        if secret:
            wanted.append(("secrets", secret, "a secret"))
    if settings.compute_domain:
        wanted.append(("resourceclaimtemplates", settings.compute_domain, "a compute domain"))
    for resource, name, kind in wanted:
        try:
            found = cluster.find(resource, name)
        except ApiError as error:
            unknown.append(f"whether {kind} {name!r} exists ({error.status.reason or error.code})")
            continue
        if found is None:
            problems.append(
                f"there is no {resource.removesuffix('s')} {name!r} in namespace "
                f"{cluster.namespace!r}, which the cluster's settings name"
            )
        elif resource == "persistentvolumeclaims":
            phase = found.get("status", {}).get("phase", "Bound")
            if phase == "Lost":
                problems.append(f"the volume of claim {name!r} is lost")


def _gpus(
    cluster: Cluster,
    settings: ClusterSettings,
    configurations: Sequence[Configuration],
    problems: list[str],
    unknown: list[str],
) -> None:
    needed = max((configuration.gpus for configuration in configurations), default=0)
    try:
        nodes = cluster.all("nodes")
    except ApiError as error:
        unknown.append(f"whether there are {needed} GPUs ({error.status.reason or error.code})")
        return
    usable = [node for node in nodes if _usable(node, settings)]
    found = sum(_gpus_of(node) for node in usable)
    largest = max((_gpus_of(node) for node in usable), default=0)
    most = max(
        (w.gpus_per_replica // w.nodes for c in configurations for w in c.workers), default=0
    )
    where = f" with labels {dict(settings.node_selector)}" if settings.node_selector else ""
    if found < needed:
        problems.append(
            f"{needed} GPUs are needed, but only {found} are allocatable on {len(usable)} "
            f"nodes{where}"
        )
    elif largest < most:
        problems.append(
            f"a worker needs {most} GPUs on one node, but the largest node{where} has {largest}"
        )


def _usable(node: dict[str, Any], settings: ClusterSettings) -> bool:
    own = node.get("metadata", {}).get("labels", {})
    if node.get("spec", {}).get("unschedulable"):
        return False
    return all(own.get(key) == value for key, value in settings.node_selector.items())


def _gpus_of(node: dict[str, Any]) -> int:
    amount = str(node.get("status", {}).get("allocatable", {}).get("nvidia.com/gpu", "0"))
    return int(amount) if amount.isdecimal() else 0

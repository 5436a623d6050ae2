"""A deployment as Dynamo's operator is told of it: one description, a form for each API version.

The operator stores ``v1beta1`` from Dynamo 1.5.0 on and ``v1alpha1`` before. What differs between
the two is here and nowhere else. Sources: ``deploy/operator/api`` and the admission rules in
``deploy/operator/internal/webhook`` of ``ai-dynamo/dynamo`` (Apache-2.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from pytest_dynamo_bench.dynamo.releases import V1BETA1_SINCE
from pytest_dynamo_bench.outside import admitted
from pytest_dynamo_bench.targets.kubernetes.settings import Volume

GROUP, PLURAL, KIND = "nvidia.com", "dynamographdeployments", "DynamoGraphDeployment"
GRAPH_LABEL = "nvidia.com/dynamo-graph-deployment-name"
COMPONENT_LABEL = "nvidia.com/dynamo-component"
TYPE_LABEL = "nvidia.com/dynamo-component-type"
# Of a split, v1alpha1 labels pods worker until the operator of 1.5.0, which labels by role.
WORKER_TYPES = ("worker", "prefill", "decode")
GPU = "nvidia.com/gpu"
_MAIN = "main"
_PLANES = ("request", "event")
# As the operator reads a tag (internal/runtimeversion): a leading v, then a semantic version.
_RELEASE = re.compile(
    r"[vV]?((?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*))"
    r"(?:-(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)


@dataclass(frozen=True)
class Operator:
    """How a cluster's operator is told of a deployment.

    Attributes:
        version: of its API that deployments are written for.
        asks_runtime_version: it has ``runtimeVersionOverride``, and demands it where an image's
            tag does not say which Dynamo is in it.
    """

    version: str
    asks_runtime_version: bool

    @property
    def api_version(self) -> str:
        """As objects say it."""
        return f"{GROUP}/{self.version}"


@dataclass(frozen=True)
class Component:
    """A part of a deployment: pods that are alike.

    Attributes:
        name: its own in the deployment.
        role: ``frontend``, ``aggregated``, ``prefill`` or ``decode``.
        container: the main container in Kubernetes' fields, without what is said here apart.
        pod: further fields of the pod.
        requests, limits: amounts by the names of Kubernetes, such as ``nvidia.com/gpu``.
        claims: names of resource claims.
        secret: whose keys are variables of the container.
        model_cache, compilation_cache: claims that are mounted.
        runtime_version: the Dynamo in the image; empty where its tag says that.
    """

    name: str
    role: str
    replicas: int
    container: Mapping[str, Any]
    pod: Mapping[str, Any]
    nodes: int = 1
    requests: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, str] = field(default_factory=dict)
    claims: Sequence[str] = ()
    secret: str = ""
    shared_memory: str = ""
    model_cache: Volume | None = None
    compilation_cache: Volume | None = None
    runtime_version: str = ""


@dataclass(frozen=True)
class Graph:
    """A deployment: what all of its parts share, and its parts."""

    framework: str
    env: Sequence[Mapping[str, str]]
    components: Sequence[Component]


def _v1beta1(graph: Graph) -> dict[str, Any]:
    return {
        "backendFramework": graph.framework,
        **given(env=list(graph.env)),
        "components": [_v1beta1_component(component) for component in graph.components],
    }


def _v1beta1_component(component: Component) -> dict[str, Any]:
    cache, compiled = component.model_cache, component.compilation_cache
    container, pod = dict(component.container), dict(component.pod)
    if cache is not None:
        mount = {"name": cache.claim, "mountPath": cache.path}
        container["volumeMounts"] = [mount, *container.get("volumeMounts", ())]
        volume = {"name": cache.claim, "persistentVolumeClaim": {"claimName": cache.claim}}
        pod["volumes"] = [volume, *pod.get("volumes", ())]
    resources = given(
        requests=dict(component.requests),
        limits=dict(component.limits),
        claims=[{"name": name} for name in component.claims],
    )
    secret = [{"secretRef": {"name": component.secret}}] if component.secret else []
    main = {"name": _MAIN, **container, **given(envFrom=secret, resources=resources)}
    return {
        "name": component.name,
        "type": "worker" if component.role == "aggregated" else component.role,
        "replicas": component.replicas,
        **given(
            multinode=_multinode(component),
            runtimeVersionOverride=component.runtime_version,
            sharedMemorySize=component.shared_memory,
            compilationCache=compiled and {"pvcName": compiled.claim, "mountPath": compiled.path},
        ),
        "podTemplate": {"spec": {**pod, "containers": [main]}},
    }


def _v1alpha1(graph: Graph) -> dict[str, Any]:
    volumes = {
        volume.claim: volume
        for component in graph.components
        for volume in (component.model_cache, component.compilation_cache)
        if volume is not None
    }
    return {
        "backendFramework": graph.framework,
        **given(
            envs=list(graph.env),
            # Never created here: a claim that the deployment owns is deleted along with it.
            pvcs=[{"create": False, "name": claim} for claim in volumes],
        ),
        "services": {c.name: _v1alpha1_service(c) for c in graph.components},
    }


def _v1alpha1_service(component: Component) -> dict[str, Any]:
    role, cache, compiled = component.role, component.model_cache, component.compilation_cache
    mounts: list[dict[str, Any]] = []
    if cache is not None:
        mounts.append({"name": cache.claim, "mountPoint": cache.path})
    if compiled is not None:
        mounts.append(
            {"name": compiled.claim, "mountPoint": compiled.path, "useAsCompilationCache": True}
        )
    resources = given(
        requests=_v1alpha1_amounts(component.requests),
        limits=_v1alpha1_amounts(component.limits),
        claims=[{"name": name} for name in component.claims],
    )
    return {
        "componentType": "frontend" if role == "frontend" else "worker",
        **given(subComponentType=role if role in ("prefill", "decode") else ""),
        "replicas": component.replicas,
        **given(
            multinode=_multinode(component),
            runtimeVersionOverride=component.runtime_version,
            resources=resources,
            envFromSecret=component.secret,
            sharedMemory=component.shared_memory and {"size": component.shared_memory},
            volumeMounts=mounts,
        ),
        "extraPodSpec": {**component.pod, "mainContainer": dict(component.container)},
    }


def _v1alpha1_amounts(amounts: Mapping[str, str]) -> dict[str, Any]:
    own = {GPU: "gpu", "cpu": "cpu", "memory": "memory"}
    found: dict[str, Any] = {own[name]: v for name, v in amounts.items() if name in own}
    return found | given(custom={name: v for name, v in amounts.items() if name not in own})


def _multinode(component: Component) -> dict[str, int]:
    return {"nodeCount": component.nodes} if component.nodes > 1 else {}


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not empty."""
    return {name: value for name, value in fields.items() if value}


def placement(
    node_selector: Mapping[str, str], tolerations: Sequence[Mapping[str, Any]], pull_secret: str
) -> dict[str, Any]:
    """What a pod's specification says of where it may run, and what its images are pulled with."""
    return given(
        nodeSelector=dict(node_selector),
        tolerations=[dict(item) for item in tolerations],
        imagePullSecrets=[{"name": pull_secret}] if pull_secret else [],
    )


# The newest first: an operator that has a choice is told in the first that it stores.
FORMS: Mapping[str, Callable[[Graph], dict[str, Any]]] = {
    "v1beta1": _v1beta1,
    "v1alpha1": _v1alpha1,
}
OLD_OPERATOR = Operator("v1alpha1", asks_runtime_version=False)
NEW_OPERATOR = Operator("v1beta1", asks_runtime_version=True)


def operator_of_release(release: str) -> Operator:
    """The operator that came with a release of Dynamo; the newest where it is not known."""
    found = version_of(release)
    old = found and tuple(map(int, found.split("."))) < V1BETA1_SINCE
    return OLD_OPERATOR if old else NEW_OPERATOR


def version_of(tag: str) -> str:
    """The release that a tag says, as the operator reads it; empty where it says none."""
    found = _RELEASE.fullmatch(tag)
    return found[1] if found else ""


def tag_of(image: str) -> str:
    """The tag of an image; empty where it has none."""
    last = image.partition("@")[0].rpartition("/")[2]
    return last.partition(":")[2]


def resource_of(document: Mapping[str, Any]) -> str:
    """What an object is asked for by: its plural, for deployments with version and group."""
    kind = document["kind"]
    if kind == KIND:
        return graphs_in(str(document["apiVersion"]).partition("/")[2])
    return {"ConfigMap": "configmaps", "Job": "jobs"}[kind]


def graphs_in(version: str) -> str:
    """What deployments are asked for by in a version of the API, as kubectl writes it."""
    return f"{PLURAL}.{version}.{GROUP}"


# -- reading either form ---------------------------------------------------------------------------


class _Said(msgspec.Struct, rename="camel"):
    """What is read of a deployment; what is of another type is as if it were not there."""


class _Variable(_Said):
    name: str = ""
    value: str = ""


class _Container(_Said):
    name: str = ""
    args: list[str] = []
    env: list[_Variable] = []


class _PodSpec(_Said):
    main_container: _Container | None = None
    containers: list[_Container] = []


class _PodTemplate(_Said):
    spec: _PodSpec | None = None


class _Multinode(_Said):
    node_count: int = 1


class _Component(_Said):
    name: str = ""
    type: str = ""
    component_type: str = ""
    replicas: int | None = None
    multinode: _Multinode | None = None
    envs: list[_Variable] = []
    extra_pod_spec: _PodSpec | None = None
    pod_template: _PodTemplate | None = None


class _Spec(_Said):
    services: dict[str, _Component] = {}
    components: list[_Component] = []
    envs: list[_Variable] = []
    env: list[_Variable] = []


class _Graph(_Said):
    spec: _Spec | None = None


@dataclass(frozen=True)
class Part:
    """What a deployment of either version says of a component.

    Attributes:
        pods: how many belong to it: those of each replica on several nodes all count.
        args: of its main container.
        env: of its main container, with the deployment's under it.
    """

    name: str
    is_worker: bool
    is_frontend: bool
    pods: int
    args: Sequence[str]
    env: Mapping[str, str]


def parts(graph: Mapping[str, Any]) -> list[Part]:
    """The components of a DynamoGraphDeployment, whichever its version."""
    spec = admitted(_Graph, graph, {}).spec or _Spec()
    named = [*spec.services.items(), *((item.name, item) for item in spec.components)]
    shared = {item.name: item.value for item in (*spec.envs, *spec.env)}
    return [_part(name, item, shared) for name, item in named]


def _part(name: str, item: _Component, shared: Mapping[str, str]) -> Part:
    kind = item.type or item.component_type
    template = (item.pod_template.spec if item.pod_template else None) or _PodSpec()
    containers = [c for c in template.containers if c.name == _MAIN]
    if item.extra_pod_spec is not None and item.extra_pod_spec.main_container is not None:
        containers.append(item.extra_pod_spec.main_container)
    variables = [*item.envs, *(variable for c in containers for variable in c.env)]
    return Part(
        name=name,
        is_worker=kind in WORKER_TYPES,
        is_frontend=kind == "frontend",
        pods=(1 if item.replicas is None else item.replicas)
        * (item.multinode.node_count if item.multinode else 1),
        args=[argument for c in containers for argument in c.args],
        env={**shared, **{variable.name: variable.value for variable in variables}},
    )


def asks_for_nats(graph: Mapping[str, Any]) -> str:
    """What of a deployment needs NATS; empty where nothing does, or where it names its own NATS."""
    for part in parts(graph):
        if part.env.get("NATS_SERVER"):
            continue
        for plane in _PLANES:
            flag, variable = f"--{plane}-plane", f"DYN_{plane.upper()}_PLANE"
            given = [value for name, value in zip(part.args, part.args[1:], strict=False)
                     if name == flag]  # fmt: skip
            given += [a.partition("=")[2] for a in part.args if a.startswith(f"{flag}=")]
            if given[-1:] == ["nats"]:
                return f"{part.name}: {flag} nats"
            if not given and part.env.get(variable) == "nats":
                return f"{part.name}: {variable}=nats"
    return ""

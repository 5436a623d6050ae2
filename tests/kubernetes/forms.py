"""Deployments of both versions of the API in one form, read without the product's code."""

from __future__ import annotations

from typing import Any

from pytest_dynamo_bench.targets.kubernetes.graph import NEW_OPERATOR, OLD_OPERATOR

OPERATORS = [OLD_OPERATOR, NEW_OPERATOR]
_NATIVE = {"gpu": "nvidia.com/gpu"}


def components(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is said of each component, by its name, with the names of v1beta1 and of Kubernetes."""
    spec = graph["spec"]
    if graph["apiVersion"] == "nvidia.com/v1alpha1":
        return {name: _of_service(service) for name, service in spec["services"].items()}
    return {item["name"]: _of_component(item) for item in spec["components"]}


def shared_env(graph: dict[str, Any]) -> list[dict[str, str]]:
    """The variables that all components have."""
    spec = graph["spec"]
    found: list[dict[str, str]] = spec.get("envs", []) + spec.get("env", [])
    return found


def _of_service(service: dict[str, Any]) -> dict[str, Any]:
    pod = dict(service["extraPodSpec"])
    container = pod.pop("mainContainer")
    resources = service.get("resources", {})
    mounts = service.get("volumeMounts", ())
    return {
        "type": service.get("subComponentType", service["componentType"]),
        "replicas": service["replicas"],
        "nodes": service.get("multinode", {}).get("nodeCount", 1),
        "runtime": service.get("runtimeVersionOverride"),
        "requests": _native(resources.get("requests", {})),
        "limits": _native(resources.get("limits", {})),
        "claims": resources.get("claims", []),
        "secret": service.get("envFromSecret"),
        "shared_memory": service.get("sharedMemory", {}).get("size"),
        "mounts": {m["name"]: m["mountPoint"] for m in mounts},
        "compiled": [m["name"] for m in mounts if m.get("useAsCompilationCache")],
        "container": container,
        "pod": pod,
    }


def _native(amounts: dict[str, Any]) -> dict[str, str]:
    custom = amounts.get("custom", {})
    return {_NATIVE.get(k, k): v for k, v in amounts.items() if k != "custom"} | custom


def _of_component(item: dict[str, Any]) -> dict[str, Any]:
    pod = dict(item["podTemplate"]["spec"])
    (container,) = pod.pop("containers")
    container = dict(container)
    assert container.pop("name") == "main"
    claimed = {v["name"]: v["persistentVolumeClaim"]["claimName"]
               for v in pod.get("volumes", ()) if "persistentVolumeClaim" in v}  # fmt: skip
    mounts = {claimed[m["name"]]: m["mountPath"] for m in container.get("volumeMounts", ())
              if m["name"] in claimed}  # fmt: skip
    cache = item.get("compilationCache")
    resources = container.pop("resources", {})
    (secret,) = container.pop("envFrom", [None])
    return {
        "type": item["type"],
        "replicas": item["replicas"],
        "nodes": item.get("multinode", {}).get("nodeCount", 1),
        "runtime": item.get("runtimeVersionOverride"),
        "requests": resources.get("requests", {}),
        "limits": resources.get("limits", {}),
        "claims": resources.get("claims", []),
        "secret": secret and secret["secretRef"]["name"],
        "shared_memory": item.get("sharedMemorySize"),
        "mounts": mounts | ({cache["pvcName"]: cache["mountPath"]} if cache else {}),
        "compiled": [cache["pvcName"]] if cache else [],
        "container": container,
        "pod": pod,
    }

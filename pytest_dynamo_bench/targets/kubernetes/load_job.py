"""The load generator as an Indexed Job beside the service: Kubernetes is the distributed engine."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import Progress
from pytest_dynamo_bench.targets.kubernetes.api import Cluster
from pytest_dynamo_bench.targets.kubernetes.deployment import Deployment
from pytest_dynamo_bench.targets.kubernetes.diagnosis import PodState, pod_state
from pytest_dynamo_bench.targets.kubernetes.graph import GRAPH_LABEL, placement
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.targets.service.coordinate import run_shards
from pytest_dynamo_bench.targets.service.probe import Service
from pytest_dynamo_bench.targets.service.shards import Merged, pack_order, split
from pytest_dynamo_bench.traffic import Traffic

PORT = 8080
INDEX = "batch.kubernetes.io/job-completion-index"
_OLD_JOB_LABEL = "job-name"
# A ConfigMap may hold 1 MiB, and its bytes grow by a third on the way.
_PIECE_BYTES = 600_000
_PREPARE_SECONDS = 1200
_CHECK_SECONDS = 5.0
_LOG_LINES = 20
_POLL_SECONDS = 1.0
_ORDER_PATH = "/order"
_PACKAGES_PATH = "/packages"
_WARM_UP_REQUESTS = 4
_LONGEST_SECONDS = 24 * 3600


class PodConnection:
    """The way to a shard in a pod: HTTP through the API server."""

    def __init__(self, cluster: Cluster, pod: str, token: str) -> None:
        self._cluster, self._pod, self._token = cluster, pod, token

    def get(self, path: str) -> bytes:
        return self._cluster.proxy(self._pod, PORT, f"{self._token}/{path}")

    def post(self, path: str, body: bytes) -> bytes:
        content = json.loads(body) if body else {}
        return self._cluster.proxy(self._pod, PORT, f"{self._token}/{path}", content)


def send_from_cluster(
    deployment: Deployment,
    settings: ClusterSettings,
    service: Service,
    traffic: Traffic,
    labels: dict[str, str],
    progress: Progress,
    after: Aftermath,
) -> Merged:
    """Send the traffic from pods of a Job, and bring back what they measured.

    Args:
        after: has the records written, and keeps the problems.

    Raises:
        DeploymentError: a pod of the load or of the deployment failed.
        TargetError: the traffic cannot be dealt out to so many pods.
    """
    token = secrets.token_urlsafe(16)
    orders = [
        pack_order(
            service,
            part,
            {
                "token": token,
                "ask": True,
                "answer_seconds": settings.limits.answer,
                "request_timeout_seconds": 1200,
                "warm_up_requests": _WARM_UP_REQUESTS,
            },
        )
        for part in split(traffic, settings.load.shards)
    ]
    maps = order_maps(deployment.name, orders, labels, settings.namespace)
    for document in maps:
        deployment.add(document)
    names = [document["metadata"]["name"] for document in maps]
    job = job_manifest(deployment.name, settings, names, labels)
    deployment.add(job)
    pods = _wait_for_pods(deployment, settings, str(job["metadata"]["name"]), progress)
    before = deployment.restarts()
    watch = _Watch(deployment, str(job["metadata"]["name"]))
    connections = [PodConnection(deployment.cluster, pod, token) for pod in pods]
    merged = run_shards(
        connections, traffic, progress, prepare_seconds=_PREPARE_SECONDS, still_there=watch
    )
    after.keep(merged.records)
    after.problems += merged.problems
    after.note(merged.notes)
    with after.step("checking for restarts"):
        after.problems += restart_problems(before, deployment.restarts())
    return merged


def restart_problems(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """What of a deployment was restarted or replaced during a run."""
    return [
        f"pod {name.partition('/')[0]} was restarted during the run"
        for name, count in after.items()
        if count > before.get(name, count)
    ] + [
        f"pod {name.partition('/')[0]} disappeared during the run"
        for name in before
        if name not in after
    ]


class _Watch:
    """Looks at the pods every few seconds, however often it is asked."""

    def __init__(self, deployment: Deployment, job: str) -> None:
        self._deployment, self._job = deployment, job
        self._next = 0.0

    def __call__(self) -> None:
        if time.monotonic() < self._next:
            return
        self._deployment.check_alive()
        pods = self._deployment.cluster.all("pods", f"{_OLD_JOB_LABEL}={self._job}")
        for pod in pods:
            state = pod_state(pod, (), self._deployment.limits)
            if state.reason:
                text = f"load generator pod {state.name}: {state.reason}"
                raise _with_log(self._deployment, text, state)
        self._next = time.monotonic() + _CHECK_SECONDS


def _with_log(deployment: Deployment, text: str, state: PodState | None) -> DeploymentError:
    """An error with the end of the log of a pod of the load, if it is about one."""
    if state is not None:
        container = state.container or "load"
        log = deployment.cluster.log(state.name, container, lines=_LOG_LINES)
        text = f"{text}\n{log}".rstrip()
    return DeploymentError(deployment.redact(text))


def _wait_for_pods(
    deployment: Deployment, settings: ClusterSettings, job: str, progress: Progress
) -> list[str]:
    """The names of the load's pods by their index, when all of them run."""
    limits, began = settings.limits, time.monotonic()
    shown = f"starting load: 0 of {settings.load.shards} pods run"
    progress.stage(shown)
    while True:
        pods = deployment.cluster.all("pods", f"{_OLD_JOB_LABEL}={job}")
        events = deployment.cluster.all("events", limit=500) if pods else []
        states = [pod_state(pod, events, limits) for pod in pods]
        running = {
            _index(pod): str(pod["metadata"]["name"])
            for pod, state in zip(pods, states, strict=True)
            if pod.get("status", {}).get("phase") == "Running" and not state.reason
        }
        if len(running) == settings.load.shards:
            return [running[index] for index in sorted(running)]
        why = next((f"{s.name}: {s.reason}" for s in states if s.reason), "")
        text = f"starting load: {len(running)} of {settings.load.shards} pods are running"
        text += f" ({why[:160]})" if why else ""
        if text != shown:
            shown = text
            progress.stage(text)
        bad = next((s for s in states if s.unrecoverable), None)
        waited = time.monotonic() - began
        if bad is None and waited > limits.grace:
            bad = next((s for s in states if s.suspicious), None)
        if bad is not None or waited > limits.schedule + limits.pull:
            text = f"the load generator did not start in {waited:.0f} s: {why or 'no pod started'}"
            raise _with_log(deployment, text, bad)
        time.sleep(min(_POLL_SECONDS, limits.schedule / 20))


def _index(pod: dict[str, Any]) -> int:
    metadata = pod.get("metadata", {})
    found = metadata.get("annotations", {}).get(INDEX) or metadata.get("labels", {}).get(INDEX)
    return int(found or 0)


def order_maps(
    name: str, orders: Sequence[bytes], labels: dict[str, str], namespace: str
) -> list[dict[str, Any]]:
    """ConfigMaps with the orders of all shards, in pieces that fit."""
    documents = []
    for index, order in enumerate(orders):
        for number, start in enumerate(range(0, len(order), _PIECE_BYTES)):
            piece = order[start : start + _PIECE_BYTES]
            documents.append(
                {
                    "apiVersion": "v1",
                    "kind": "ConfigMap",
                    "metadata": {
                        "name": f"{name}-order-{index}-{number}",
                        "namespace": namespace,
                        "labels": labels,
                    },
                    "binaryData": {f"order-{index}-{number:03d}": base64.b64encode(piece).decode()},
                }
            )
    return documents


def job_manifest(
    name: str, settings: ClusterSettings, order_names: Sequence[str], labels: dict[str, str]
) -> dict[str, Any]:
    """The Job of the load: a pod for each shard, away from the workers."""
    load = settings.load
    amounts = {"cpu": load.cpu, "memory": load.memory}
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container: dict[str, Any] = {
        "name": "load",
        "image": load.image,
        "command": [
            "python3", "-m", "pytest_dynamo_bench.targets.service.shard_server", _ORDER_PATH,
            "--port", str(PORT),
        ],
        "ports": [{"containerPort": PORT}],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": security,
        "volumeMounts": [{"name": "order", "mountPath": _ORDER_PATH, "readOnly": True}],
    }  # fmt: skip
    volumes: list[dict[str, Any]] = [
        {
            "name": "order",
            "projected": {"sources": [{"configMap": {"name": item}} for item in order_names]},
        }
    ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "labelSelector": {"matchLabels": {GRAPH_LABEL: name}},
                            "topologyKey": "kubernetes.io/hostname",
                        },
                    }
                ]
            }
        },
    }
    if load.pip:
        volumes.append({"name": "packages", "emptyDir": {}})
        mount = {"name": "packages", "mountPath": _PACKAGES_PATH}
        pod["initContainers"] = [
            {
                "name": "install",
                "image": load.image,
                "command": [
                    "python3", "-m", "pip", "install", "--no-cache-dir", "--quiet",
                    "--target", _PACKAGES_PATH, load.pip,
                ],
                "securityContext": security,
                "volumeMounts": [mount],
            }
        ]  # fmt: skip
        container["volumeMounts"].append(mount)
        container["env"] = [{"name": "PYTHONPATH", "value": _PACKAGES_PATH}]
    pod |= placement(load.node_selector, load.tolerations, settings.image_pull_secret)
    pod |= {"containers": [container], "volumes": volumes}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-load", "namespace": settings.namespace, "labels": labels},
        "spec": {
            "completions": load.shards,
            "parallelism": load.shards,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "activeDeadlineSeconds": _LONGEST_SECONDS,
            "ttlSecondsAfterFinished": 600,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }

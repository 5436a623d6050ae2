"""A deployment from nothing to ready and back to nothing."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.plain_text import SECRET_NAME, Secrets
from pytest_dynamo_bench.targets.base import Progress
from pytest_dynamo_bench.targets.kubernetes.api import (
    ApiError,
    Cluster,
    Object,
    WatchExpiredError,
)
from pytest_dynamo_bench.targets.kubernetes.diagnosis import (
    GraphState,
    PodState,
    graph_state,
    missing_services,
    pod_state,
    progress_text,
)
from pytest_dynamo_bench.targets.kubernetes.graph import GRAPH_LABEL, parts, resource_of
from pytest_dynamo_bench.targets.kubernetes.manifest import RUN_LABEL
from pytest_dynamo_bench.targets.kubernetes.settings import Limits
from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump

_WATCH_SECONDS: float = 3
_POLL_SECONDS = 1.0
_LOG_LINES = 25
# What looks like a credential in a log or a status.
_SECRET = re.compile(
    r"hf_[A-Za-z0-9]{16,}|(?<=Bearer )[A-Za-z0-9._~+/=-]{8,}|"
    r"(?<=[?&]token=)[^&\s\"]+|eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"
)


class Deployment:
    """A DynamoGraphDeployment with what belongs to it, as a context.

    While it is open everything is there; however it closes, everything is gone, or the error
    says what is not and how to remove it.

    Args:
        documents: what is created, the deployment last.
        run_id: which run it belongs to: an object of the same name and run is taken for ours.
        evidence: directory for states, events and logs when something goes wrong.
    """

    def __init__(
        self,
        cluster: Cluster,
        documents: Sequence[Object],
        run_id: str,
        limits: Limits,
        evidence: Path,
        progress: Progress,
    ) -> None:
        self.cluster, self.limits, self.run_id = cluster, limits, run_id
        self._documents = documents
        self._evidence, self._progress = evidence, progress
        self._graph = documents[-1]
        self._secrets = cluster.secrets
        self._created: list[tuple[str, str]] = []
        self._watch_seconds = min(_WATCH_SECONDS, limits.ready / 10)
        self.name = str(self._graph["metadata"]["name"])
        self.parts = parts(self._graph)
        self._graphs = resource_of(self._graph)
        self.selector = f"{GRAPH_LABEL}={self.name}"

    @contextmanager
    def open(self) -> Iterator[Deployment]:
        """Create, wait until it is ready, give it up to the caller, delete.

        Raises:
            DeploymentError: it cannot be created, does not get ready, or does not go away.
        """
        try:
            self._progress.stage("creating")
            for document in self._documents:
                self.add(document)
            self._until_ready()
            yield self
        except BaseException as error:
            self._progress.stage("stopping")
            # It must not hide the failure.
            with contextlib.suppress(DeploymentError, OSError):
                self.save_evidence(f"{type(error).__name__}: {error}")
            try:
                self.delete()
            except DeploymentError as left:
                if isinstance(error, DeploymentError):
                    raise DeploymentError(f"{error}\nAlso: {left}") from None
                self._progress.stage(str(left))
            raise
        else:
            self._progress.stage("stopping")
            self.delete()

    # -- creating -------------------------------------------------------------------------------

    def add(self, document: Object) -> None:
        """Create something that goes when the deployment goes."""
        resource = resource_of(document)
        name = str(document["metadata"]["name"])
        deadline = time.monotonic() + self.limits.delete
        # Noted before: it may have been created although the response was lost.
        self._created.append((resource, name))
        while True:
            try:
                self.cluster.create(resource, document)
            except ApiError as error:
                if error.code != HTTPStatus.CONFLICT:
                    self._created.remove((resource, name))
                    raise
                if self._is_ours_or_going(resource, name, deadline):
                    return
            else:
                return

    def _is_ours_or_going(self, resource: str, name: str, deadline: float) -> bool:
        """True when it is ours already; False when it has gone and can be tried again.

        Raises:
            DeploymentError: it is not ours, or is not deleted.
        """
        found = self.cluster.find(resource, name)
        if found is None:
            return False
        metadata = found.get("metadata", {})
        if metadata.get("deletionTimestamp"):
            self._progress.stage(f"waiting for the deletion of an earlier {name}")
            while self.cluster.find(resource, name) is not None:
                if time.monotonic() > deadline:
                    self._created.remove((resource, name))
                    raise DeploymentError(
                        f"{resource} {name} of an earlier run is still being deleted after "
                        f"{self.limits.delete:g} s; {_finalizers(found)}"
                    )
                time.sleep(_POLL_SECONDS)
            return False
        if metadata.get("labels", {}).get(RUN_LABEL) == self.run_id:
            return True
        self._created.remove((resource, name))
        owner = metadata.get("labels", {}).get(RUN_LABEL)
        whose = f"belongs to run {owner}" if owner else "does not belong to this plugin"
        raise DeploymentError(
            f"{resource} {name} already exists in namespace {self.cluster.namespace} and {whose}. "
            "Delete it, or rename yours"
        )

    # -- getting ready --------------------------------------------------------------------------

    def _until_ready(self) -> None:
        """Watch the deployment, and look at its pods and events in between.

        Raises:
            DeploymentError: it cannot get ready any more, or takes too long.
        """
        waiting, shown = _Waiting(self.limits), ""
        graph, version = self._fresh()
        while True:
            states = self.states()
            text = progress_text(graph, states)
            if text != shown:
                shown = text
                self._progress.stage(f"starting: {text}")
            found = graph_state(graph)
            missing = missing_services(self._graph, found.services)
            if found.ready and not missing and _all_ready(states):
                return
            problem = waiting.problem(found, states)
            if problem:
                raise DeploymentError(self._with_logs(problem, states))
            graph, version = self._changed(graph, version)

    def _fresh(self) -> tuple[Object, str]:
        """The deployment, listed again, and the version to watch from.

        Raises:
            DeploymentError: it was deleted.
        """
        items, version = self.cluster.all_with_version(self._graphs, f"{RUN_LABEL}={self.run_id}")
        for item in items:
            if item["metadata"]["name"] == self.name:
                return item, version
        raise DeploymentError(
            f"{self.name} was deleted by another client during startup, or the API server lost it"
        )

    def _changed(self, graph: Object, version: str) -> tuple[Object, str]:
        """The deployment after its next change, or as it is after a few seconds."""
        try:
            for kind, item in self.cluster.watch(
                self._graphs, f"{RUN_LABEL}={self.run_id}", version, self._watch_seconds
            ):
                version = str(item.get("metadata", {}).get("resourceVersion") or version)
                if kind == "BOOKMARK" or item.get("metadata", {}).get("name") != self.name:
                    continue
                if kind == "DELETED":
                    return self._fresh()
                return item, version
        except WatchExpiredError:
            return self._fresh()
        # Quiet, or cut off: the list is the truth, whatever a watch may have missed.
        time.sleep(min(_POLL_SECONDS, self.limits.ready / 20))
        return self._fresh()

    def states(self) -> list[PodState]:
        """The deployment's pods."""
        pods = self.cluster.all("pods", self.selector)
        events = self._events() if any(not _is_ready(pod) for pod in pods) else []
        return [pod_state(pod, events, self.limits) for pod in pods]

    def check_alive(self) -> None:
        """See whether all pods still run.

        Raises:
            DeploymentError: one does not; with its log's end.
        """
        states = self.states()
        broken = [s for s in states if s.phase != "ready" and (s.reason or s.phase == "ended")]
        if broken:
            raise DeploymentError(
                self._with_logs(
                    f"{broken[0].name} ({broken[0].service}): {broken[0].reason}", states
                )
            )

    def restarts(self) -> dict[str, int]:
        """How often containers of each pod have been restarted, by the pod's identity."""
        return {
            f"{pod['metadata']['name']}/{pod['metadata'].get('uid', '')}": sum(
                int(item.get("restartCount") or 0)
                for item in pod.get("status", {}).get("containerStatuses") or ()
            )
            for pod in self.cluster.all("pods", self.selector)
        }

    def _events(self) -> list[Object]:
        try:
            return self.cluster.all("events", limit=500)
        except ApiError:
            return []

    def _with_logs(self, problem: str, states: Sequence[PodState]) -> str:
        lines = [f"{self.name} in namespace {self.cluster.namespace}: {problem}"]
        for state in [s for s in states if s.reason and s.phase in ("starting", "ended")][:2]:
            container = state.container or "main"
            previous = "crash loop" in state.reason or "restarted" in state.reason
            log = self.cluster.log(state.name, container, previous=previous, lines=_LOG_LINES)
            kept = [line for line in log.splitlines() if line.strip()][-_LOG_LINES:]
            if kept:
                lines.append(f"end of the log of {state.name}, container {container}:")
                lines += [f"  {self.redact(line)[:300]}" for line in kept]
        lines.append(f"states, events and logs: {self._evidence}")
        return self.redact("\n".join(lines))

    # -- evidence -------------------------------------------------------------------------------

    def redact(self, text: str) -> str:
        """Without our credentials, and without anything that looks like one."""
        return _SECRET.sub("***", self._secrets.redact(text))

    def add_secrets(self, secrets: Secrets) -> None:
        """More values that must not be written anywhere."""
        self._secrets = Secrets(self._secrets.values | secrets.values)

    def save_evidence(self, why: str = "") -> None:
        """Write states, events and all logs of the deployment.

        Raises:
            ApiError: they cannot be read.
        """
        self._evidence.mkdir(parents=True, exist_ok=True)
        self._write("reason.txt", why + "\n")
        self._write("manifest.yaml", "---\n".join(dump(_shown(d)) for d in self._documents))
        graph = self.cluster.find(self._graphs, self.name)
        if graph is not None:
            self._write("deployment.yaml", dump(_shown(graph)))
        pods = self.cluster.all("pods", self.selector)
        self._write("pods.json", json.dumps([_shown(pod) for pod in pods], indent=1))
        names = {pod["metadata"]["name"] for pod in pods} | {self.name}
        events = [
            event
            for event in self._events()
            if event.get("involvedObject", {}).get("name") in names
        ]
        lines = [
            f"{e.get('lastTimestamp') or e.get('eventTime') or '-'} {e.get('type', '')} "
            f"{e.get('involvedObject', {}).get('name', '')} {e.get('reason', '')}: "
            f"{e.get('message', '')}"
            for e in events
        ]
        self._write("events.txt", "\n".join(lines) + "\n")
        for pod in pods:
            for item in pod.get("spec", {}).get("containers") or ({"name": "main"},):
                name, container = str(pod["metadata"]["name"]), str(item["name"])
                for previous, ending in ((False, ""), (True, ".previous")):
                    log = self.cluster.log(name, container, previous=previous)
                    if log:
                        self._write(f"logs/{name}-{container}{ending}.log", log)

    def _write(self, name: str, text: str) -> None:
        path = self._evidence / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.redact(text), encoding="utf-8")

    # -- deleting -------------------------------------------------------------------------------

    def delete(self) -> None:
        """Delete in the foreground, and wait until everything, the pods too, is gone.

        Raises:
            DeploymentError: something is still there after a while; says what, and what to do.
        """
        for resource, name in reversed(self._created):
            self.cluster.delete(resource, name)
        deadline = time.monotonic() + self.limits.delete
        while True:
            left = [
                f"{resource} {name}"
                for resource, name in self._created
                if self.cluster.find(resource, name) is not None
            ]
            pods = self.cluster.all("pods", self.selector) if self._created else []
            left += [f"pod {pod['metadata']['name']}" for pod in pods]
            if not left:
                self._created.clear()
                return
            if time.monotonic() > deadline:
                raise DeploymentError(
                    f"not deleted after {self.limits.delete:g} s: {', '.join(left)}. The operator "
                    "must remove their finalizers; see its log. Then run: python -m "
                    f"pytest_dynamo_bench cleanup --run {self.run_id}"
                )
            time.sleep(min(_POLL_SECONDS, self.limits.delete / 20))


class _Waiting:
    """How long what has been waited for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._began = time.monotonic()
        self._since: dict[tuple[str, str], float] = {}

    def problem(self, graph: GraphState, states: Sequence[PodState]) -> str:
        """Why there is nothing left to wait for; empty as long as there is."""
        now, limits = time.monotonic(), self._limits
        if graph.invalid:
            return f"the operator rejects it: {graph.message}"
        for state in states:
            if state.unrecoverable:
                return f"{state.name} ({state.service}): {state.reason}"
        allowed = {
            "scheduling": limits.schedule, "pulling": limits.pull, "suspicious": limits.grace,
        }  # fmt: skip
        current: dict[tuple[str, str], str] = {}
        for state in states:
            kind = "suspicious" if state.suspicious else str(state.phase)
            if kind in allowed:
                current[state.name, kind] = (
                    f"{state.name} ({state.service}) has been {state.phase} for {{0:.0f}} s: "
                    f"{_braces(state.reason) or 'nothing says why'}"
                )
        # An operator that failed once tries again, and may yet succeed.
        if graph.state == "failed":
            why = _braces(graph.message) or "no reason given"
            text = f"the operator has reported failure for {{0:.0f}} s: {why}"
            current["", "suspicious"] = text
        self._since = {key: self._since.get(key, now) for key in current}
        for key, began in self._since.items():
            if now - began > allowed[key[1]]:
                return current[key].format(now - began)
        if now - self._began > limits.ready:
            behind = [s for s in states if s.phase != "ready"]
            why = "; ".join(f"{s.name} is {s.phase} {s.reason}".strip() for s in behind[:3])
            return (
                f"not ready after {limits.ready:g} s (its state is {graph.state!r}"
                f"{': ' + graph.message if graph.message else ''}): {why or 'no pod is behind'}"
            )
        return ""


def _braces(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def _all_ready(states: Sequence[PodState]) -> bool:
    return all(state.phase == "ready" for state in states)


def _finalizers(found: Object) -> str:
    names = ", ".join(found.get("metadata", {}).get("finalizers") or ()) or "none"
    return f"its operator must remove the finalizers {names}"


def _shown(content: Any) -> Any:
    """An object for a report: values of variables that are named like secrets are left out."""
    if isinstance(content, Mapping):
        name = content.get("name")
        hides = isinstance(name, str) and SECRET_NAME.search(name) and "value" in content
        return {
            key: "***" if hides and key == "value" else _shown(value)
            for key, value in content.items()
            if key != "managedFields"
        }
    if isinstance(content, list | tuple):
        return [_shown(item) for item in content]
    return content

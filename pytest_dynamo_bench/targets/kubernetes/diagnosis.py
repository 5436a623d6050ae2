"""What pods and events say about a starting deployment: progress and problems.

Pure functions on the API's JSON, so that every case can be tried without a cluster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pytest_dynamo_bench.outside import admitted
from pytest_dynamo_bench.targets.kubernetes.graph import COMPONENT_LABEL, parts
from pytest_dynamo_bench.targets.kubernetes.manifest import FRONTEND
from pytest_dynamo_bench.targets.kubernetes.settings import Limits

Phase = Literal["scheduling", "pulling", "starting", "ready", "ended"]
Object = Mapping[str, Any]
_PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
_CONFIG_REASONS = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)


class _Said(msgspec.Struct, omit_defaults=True, rename="camel"):
    """What is read of the API's JSON; what is of another type is as if it were not there."""


class _Waiting(_Said):
    reason: str = ""
    message: str = ""


class _Terminated(_Said):
    reason: str = ""
    exit_code: int | None = None
    message: str = ""


class _State(_Said):
    running: dict[str, Any] | None = None
    waiting: _Waiting | None = None
    terminated: _Terminated | None = None


class _Container(_Said):
    name: str = ""
    image: str = ""
    restart_count: int = 0
    state: _State | None = None
    last_state: _State | None = None


class _Condition(_Said):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class _Metadata(_Said):
    name: str = ""
    labels: dict[str, str] = {}
    generation: int = 0


class _PodStatus(_Said):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[_Condition] = []
    init_container_statuses: list[_Container] = []
    container_statuses: list[_Container] = []


class _Pod(_Said):
    metadata: _Metadata | None = None
    status: _PodStatus | None = None


class _Involved(_Said):
    name: str = ""


class _Event(_Said):
    reason: str = ""
    message: str = ""
    last_timestamp: str = ""
    event_time: str = ""
    involved_object: _Involved | None = None


class _GraphStatus(_Said):
    state: str = ""
    observed_generation: int | None = None
    conditions: list[_Condition] = []
    services: dict[str, Any] | list[str] = {}
    components: dict[str, Any] = {}


class _Graph(_Said):
    metadata: _Metadata | None = None
    status: _GraphStatus | None = None


def _typed(kind: type[_Said], said: object) -> Object:
    found: Object = msgspec.to_builtins(admitted(kind, said, {}))
    return found


@dataclass(frozen=True)
class PodState:
    """A pod in short.

    Attributes:
        name: of the pod.
        service: the service of the deployment that it belongs to.
        phase: how far it is.
        reason: why it is no further; empty when nothing is wrong.
        unrecoverable: True when waiting does not help.
        suspicious: True when waiting usually does not help, so that it gets a little time.
        container: the one that is wrong.
    """

    name: str
    service: str
    phase: Phase
    reason: str = ""
    unrecoverable: bool = False
    suspicious: bool = False
    container: str = ""


def pod_state(pod: Object, events: Iterable[Object], limits: Limits) -> PodState:
    """A pod, with what events say where its own status says too little."""
    pod, events = _typed(_Pod, pod), [_typed(_Event, event) for event in events]
    metadata, status = pod.get("metadata", {}), pod.get("status", {})
    name = str(metadata.get("name", "?"))
    service = str(metadata.get("labels", {}).get(COMPONENT_LABEL, name))
    own = [event for event in events if event.get("involvedObject", {}).get("name") == name]
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    statuses = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        why = scheduled.get("message") or scheduled.get("reason") or "no node yet"
        return PodState(name, service, "scheduling", f"unschedulable: {why}")
    if status.get("phase") == "Failed":
        why = status.get("message") or status.get("reason") or _ended(statuses) or "it failed"
        return PodState(name, service, "ended", str(why), unrecoverable=True)
    for item in statuses:
        found = _container(item, own, limits)
        if found is not None:
            reason, phase, unrecoverable, suspicious = found
            return PodState(
                name, service, phase, reason, unrecoverable, suspicious, str(item.get("name", ""))
            )
    mount = _event(own, "FailedMount", "FailedAttachVolume")
    if mount and not statuses_running(statuses):
        return PodState(name, service, "starting", f"volume not mounted: {mount}")
    if conditions.get("Ready", {}).get("status") == "True":
        return PodState(name, service, "ready")
    if status.get("phase") == "Succeeded":
        return PodState(name, service, "ended")
    if statuses_running(statuses):
        unhealthy = _event(own, "Unhealthy")
        return PodState(name, service, "starting", f"not ready: {unhealthy}" if unhealthy else "")
    if status.get("phase") == "Pending" and not scheduled:
        return PodState(name, service, "scheduling")
    return PodState(name, service, "pulling")


def statuses_running(statuses: Sequence[Object]) -> bool:
    """Whether any container runs."""
    return any("running" in (item.get("state") or {}) for item in statuses)


def _container(
    item: Object, events: Sequence[Object], limits: Limits
) -> tuple[str, Phase, bool, bool] | None:
    """Reason, phase, whether that is unrecoverable, whether that is suspicious."""
    state, last = item.get("state") or {}, item.get("lastState") or {}
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    reason, restarts = str(waiting.get("reason", "")), int(item.get("restartCount") or 0)
    if reason in _PULL_REASONS:
        why = waiting.get("message") or _event(events, "Failed", "BackOff") or item.get("image", "")
        return f"{reason}: {why}", "pulling", reason == "InvalidImageName", True
    if reason in _CONFIG_REASONS:
        return f"{reason}: {waiting.get('message', '')}", "starting", False, True
    before = last.get("terminated") or ended
    if restarts >= limits.restarts or (ended and ended.get("exitCode") and restarts >= 1):
        how = _how(before)
        unrecoverable = restarts >= limits.restarts
        return f"crash loop: {restarts} restarts, {how}", "starting", unrecoverable, False
    if restarts and reason == "CrashLoopBackOff":
        return f"restarted {restarts} times, {_how(before)}", "starting", False, False
    return None


def _how(ended: Object) -> str:
    if not ended:
        return "unknown reason"
    reason = str(ended.get("reason", "Error"))
    text = f"last ended with {reason}"
    if ended.get("exitCode") is not None:
        text += f", exit status {ended['exitCode']}"
    if reason == "OOMKilled":
        text += " (out of memory: raise the limit, or use a smaller batch)"
    return text + (f": {ended['message']}" if ended.get("message") else "")


def _ended(statuses: Sequence[Object]) -> str:
    for item in statuses:
        ended = (item.get("state") or {}).get("terminated")
        if ended:
            return _how(ended)
    return ""


def _event(events: Sequence[Object], *reasons: str) -> str:
    """The newest message of a kind of event."""
    found = [event for event in events if event.get("reason") in reasons]
    if not found:
        return ""
    newest = max(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""))
    return " ".join(str(newest.get("message", "")).split())[:400]


@dataclass(frozen=True)
class GraphState:
    """What a DynamoGraphDeployment says of itself.

    Attributes:
        state: its own word.
        ready: it says that it is, about its newest generation.
        message: of a condition that is not met.
        invalid: its specification was rejected; waiting does not help.
        services: those that it knows of; empty where an operator does not say.
    """

    state: str
    ready: bool
    message: str
    invalid: bool
    services: frozenset[str]


def graph_state(graph: Object) -> GraphState:
    """Read a deployment's status; an older operator leaves some of it out."""
    graph = _typed(_Graph, graph)
    status, metadata = graph.get("status") or {}, graph.get("metadata", {})
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    observed = status.get("observedGeneration")
    current = observed is None or int(observed) >= int(metadata.get("generation") or 0)
    state = str(status.get("state") or "pending")
    unmet = (c for c in conditions.values() if c.get("status") == "False" and c.get("message"))
    bad: Object = next(unmet, {})
    return GraphState(
        state=state,
        ready=state == "successful" and ready.get("status") == "True" and current,
        message=" ".join(str(bad.get("message", "")).split())[:400],
        invalid="ValidationFailed" in {c.get("reason") for c in conditions.values()},
        services=frozenset([*(status.get("services") or ()), *(status.get("components") or ())]),
    )


def progress_text(graph: Object, states: Sequence[PodState]) -> str:
    """One line: ready pods of each service, and the first reason why one is not."""
    shown = []
    for part in parts(graph):
        own = [s for s in states if s.service.lower() == part.name.lower()]
        ready = sum(state.phase == "ready" for state in own)
        text = f"{part.name} {ready}/{part.pods}"
        slowest = next((s for s in own if s.phase != "ready"), None)
        if slowest is not None:
            text += f" {slowest.phase}"
        shown.append(text)
    why = next((state for state in states if state.reason), None)
    text = ", ".join(shown) or "no pods yet"
    return f"{text} ({why.name}: {why.reason[:160]})" if why else text


def missing_services(asked: Object, known: frozenset[str]) -> list[str]:
    """The services of a deployment that its status does not know of yet.

    A status has them by their own names or by those of the objects made for them; one that has
    none at all is of an operator that does not say.
    """
    if not known:
        return []
    names = [name.lower() for name in known]
    wanted = [part.name for part in parts(asked)] or [FRONTEND]
    return [
        service
        for service in wanted
        if not any(n == service.lower() or n.endswith(f"-{service.lower()}") for n in names)
    ]

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


class _Said(msgspec.Struct, frozen=True, rename="camel"):
    """What is read of the API's JSON; what is of another type is as if it were not there."""


class _Waiting(_Said, frozen=True):
    reason: str = ""
    message: str = ""


class _Terminated(_Said, frozen=True):
    reason: str = ""
    exit_code: int | None = None
    message: str = ""


_NOT_ENDED = _Terminated()


class _State(_Said, frozen=True):
    running: dict[str, Any] | None = None
    waiting: _Waiting = _Waiting()
    terminated: _Terminated = _NOT_ENDED


class _Container(_Said, frozen=True):
    name: str = ""
    image: str = ""
    restart_count: int = 0
    state: _State = _State()
    last_state: _State = _State()


class _Condition(_Said, frozen=True):
    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""


class _Metadata(_Said, frozen=True):
    name: str = ""
    labels: dict[str, str] = {}
    generation: int = 0


class _PodStatus(_Said, frozen=True):
    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[_Condition] = []
    init_container_statuses: list[_Container] = []
    container_statuses: list[_Container] = []


class _Pod(_Said, frozen=True):
    metadata: _Metadata = _Metadata()
    status: _PodStatus = _PodStatus()


class _Involved(_Said, frozen=True):
    name: str = ""


class _Event(_Said, frozen=True):
    reason: str = ""
    message: str = ""
    last_timestamp: str = ""
    event_time: str = ""
    involved_object: _Involved = _Involved()


class _GraphStatus(_Said, frozen=True):
    state: str = ""
    observed_generation: int | None = None
    conditions: list[_Condition] = []
    services: dict[str, Any] | list[str] = {}
    components: dict[str, Any] = {}


class _Graph(_Said, frozen=True):
    metadata: _Metadata = _Metadata()
    status: _GraphStatus = _GraphStatus()


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
    said = admitted(_Pod, pod, {})
    status, name = said.status, said.metadata.name or "?"
    service = said.metadata.labels.get(COMPONENT_LABEL, name)
    all_events = [admitted(_Event, event, {}) for event in events]
    own = [event for event in all_events if event.involved_object.name == name]
    conditions = {item.type: item for item in status.conditions}
    statuses = [*status.init_container_statuses, *status.container_statuses]
    scheduled = conditions.get("PodScheduled", _Condition())
    if scheduled.status == "False":
        why = scheduled.message or scheduled.reason or "no node yet"
        return PodState(name, service, "scheduling", f"unschedulable: {why}")
    if status.phase == "Failed":
        ended = (item.state.terminated for item in statuses)
        how = next((_how(item) for item in ended if item != _NOT_ENDED), "it failed")
        why = status.message or status.reason or how
        return PodState(name, service, "ended", why, unrecoverable=True)
    for item in statuses:
        found = _container(item, own, limits)
        if found is not None:
            reason, phase, unrecoverable, suspicious = found
            return PodState(name, service, phase, reason, unrecoverable, suspicious, item.name)
    running = any(item.state.running is not None for item in statuses)
    mount = _event(own, "FailedMount", "FailedAttachVolume")
    if mount and not running:
        return PodState(name, service, "starting", f"volume not mounted: {mount}")
    if conditions.get("Ready", _Condition()).status == "True":
        return PodState(name, service, "ready")
    if status.phase == "Succeeded":
        return PodState(name, service, "ended")
    if running:
        unhealthy = _event(own, "Unhealthy")
        return PodState(name, service, "starting", f"not ready: {unhealthy}" if unhealthy else "")
    if status.phase == "Pending" and "PodScheduled" not in conditions:
        return PodState(name, service, "scheduling")
    return PodState(name, service, "pulling")


def _container(
    item: _Container, events: Sequence[_Event], limits: Limits
) -> tuple[str, Phase, bool, bool] | None:
    """Reason, phase, whether that is unrecoverable, whether that is suspicious."""
    waiting, ended, restarts = item.state.waiting, item.state.terminated, item.restart_count
    reason, before = waiting.reason, item.last_state.terminated
    if reason in _PULL_REASONS:
        why = waiting.message or _event(events, "Failed", "BackOff") or item.image
        return f"{reason}: {why}", "pulling", reason == "InvalidImageName", True
    if reason in _CONFIG_REASONS:
        return f"{reason}: {waiting.message}", "starting", False, True
    how = _how(ended if before == _NOT_ENDED else before)
    if restarts >= limits.restarts or (ended.exit_code and restarts >= 1):
        unrecoverable = restarts >= limits.restarts
        return f"crash loop: {restarts} restarts, {how}", "starting", unrecoverable, False
    if restarts and reason == "CrashLoopBackOff":
        return f"restarted {restarts} times, {how}", "starting", False, False
    return None


def _how(ended: _Terminated) -> str:
    if ended == _NOT_ENDED:
        return "unknown reason"
    reason = ended.reason or "Error"
    text = f"last ended with {reason}"
    if ended.exit_code is not None:
        text += f", exit status {ended.exit_code}"
    if reason == "OOMKilled":
        text += " (out of memory: raise the limit, or use a smaller batch)"
    return text + (f": {ended.message}" if ended.message else "")


def _event(events: Sequence[_Event], *reasons: str) -> str:
    """The newest message of a kind of event."""
    found = [event for event in events if event.reason in reasons]
    newest = max(found, key=lambda e: e.last_timestamp or e.event_time, default=_Event())
    return " ".join(newest.message.split())[:400]


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
    said = admitted(_Graph, graph, {})
    status = said.status
    conditions = {item.type: item for item in status.conditions}
    observed = status.observed_generation
    current = observed is None or observed >= said.metadata.generation
    ready = conditions.get("Ready", _Condition()).status == "True"
    unmet = (c for c in conditions.values() if c.status == "False" and c.message)
    state = status.state or "pending"
    return GraphState(
        state=state,
        ready=state == "successful" and ready and current,
        message=" ".join(next(unmet, _Condition()).message.split())[:400],
        invalid="ValidationFailed" in {c.reason for c in conditions.values()},
        services=frozenset([*status.services, *status.components]),
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

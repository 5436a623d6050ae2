"""A deployment on the double: it comes up, or the reason why not is told; and it goes away."""

from __future__ import annotations

import re
import threading
import time

import pytest

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.targets.kubernetes.api import Cluster, connector
from pytest_dynamo_bench.targets.kubernetes.deployment import Deployment
from pytest_dynamo_bench.targets.kubernetes.graph import NEW_OPERATOR
from pytest_dynamo_bench.targets.kubernetes.manifest import labels, render
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, Limits
from tests.kubernetes.fake_cluster import (
    DGD,
    NAMESPACE,
    TOKEN,
    Fault,
    crashing,
    pulling,
    running,
    unschedulable,
    waiting,
)
from tests.kubernetes.forms import components
from tests.kubernetes.test_manifests import SPLIT, bench

LIMITS = Limits(schedule=0.5, pull=0.5, ready=1.2, answer=2, grace=0.4, delete=3, restarts=3)
RUN = "run-1"


class Stages:
    def __init__(self):
        self.stages = []

    def stage(self, name):
        self.stages.append(name)

    def requests(self, done, failed, total):
        pass


def deployment(api, tmp_path, *, run=RUN, engine="trtllm", limits=LIMITS, progress=None):
    documents = render(bench(engine, SPLIT), SPLIT, ClusterSettings(NAMESPACE), run, NEW_OPERATOR)
    return Deployment(api, documents, run, limits, tmp_path / "cluster", progress or Stages())


def nothing_left(fake):
    return not (fake.named(DGD) or fake.named("pods") or fake.named("configmaps"))


def fails(fake, api, tmp_path, **more) -> str:
    """The message of a deployment that does not come up; whatever happens, nothing is left."""
    progress = Stages()
    found = deployment(api, tmp_path, progress=progress, **more)
    with pytest.raises(DeploymentError) as caught, found.open():
        raise AssertionError("it came up")
    assert progress.stages[-1] == "stopping"
    assert nothing_left(fake)
    return str(caught.value)


def evidence(tmp_path) -> dict[str, str]:
    root = tmp_path / "cluster"
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


def test_it_comes_up_and_goes_away(fake, api, tmp_path):
    progress = Stages()
    found = deployment(api, tmp_path, progress=progress)
    with found.open():
        assert set(fake.named("configmaps")) == {f"{found.name}-config"}
        assert len(fake.named("pods")) == 4
        for kind in (DGD, "configmaps"):
            (item,) = fake.named(kind).values()
            assert item["metadata"]["labels"] == labels(SPLIT, RUN)
        assert {state.phase for state in found.states()} == {"ready"}
    assert nothing_left(fake)
    assert progress.stages[0] == "creating"
    assert progress.stages[-1] == "stopping"
    assert any("prefill 0/2 " in stage for stage in progress.stages)
    assert "starting: Frontend 1/1, prefill 2/2, decode 1/1" in progress.stages
    assert not (tmp_path / "cluster").exists()


def test_what_is_measured_meanwhile_may_fail_and_nothing_is_left(fake, api, tmp_path):
    found = deployment(api, tmp_path)
    with pytest.raises(RuntimeError, match="boom"), found.open():
        raise RuntimeError("boom")
    assert nothing_left(fake)
    assert evidence(tmp_path)["reason.txt"] == "RuntimeError: boom\n"


def test_ctrl_c_leaves_nothing(fake, api, tmp_path):
    with pytest.raises(KeyboardInterrupt), deployment(api, tmp_path).open():
        raise KeyboardInterrupt
    assert nothing_left(fake)


@pytest.mark.parametrize(
    ("service", "steps", "message"),
    [
        ("prefill", ((0, unschedulable()),), r"-prefill-0 \(prefill\) has been scheduling for \d+ "
         r"s: unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu"),
        ("decode", ((0, waiting("ImagePullBackOff", "not found: vllm:my-tag")),), r"\(decode\) has "
         r"been pulling for \d+ s: ImagePullBackOff: not found: vllm:my-tag"),
        ("decode", ((0, waiting("InvalidImageName", "bad")),), r"InvalidImageName: bad"),
        ("decode", ((0, waiting("CreateContainerConfigError", 'secret "hf" not found')),),
         r'CreateContainerConfigError: secret "hf" not found'),
        ("Frontend", ((0, pulling()),), r"\(Frontend\) has been pulling for \d+ s: nothing says"),
        ("prefill", ((0, crashing(3, "OOMKilled", 137)),), r"crash loop: 3 restarts, last ended "
         r"with OOMKilled, exit status 137 \(out of memory"),
        ("prefill", ((0, {"phase": "Failed", "reason": "Evicted", "message": "disk is full"}),),
         r"-prefill-0 \(prefill\): disk is full"),
        ("decode", ((0, running(False)),), r"not ready after 1.2 s \(its state is 'pending': some "
         r"resources are not ready\): \S+-decode-0 is starting"),
    ],
)  # fmt: skip
def test_what_keeps_it_from_coming_up_is_told(fake, api, tmp_path, service, steps, message):
    fake.script[service] = steps
    told = fails(fake, api, tmp_path)
    assert re.search(message, told), told
    assert "states, events and logs: " in told


def test_a_crash_loop_is_told_at_once_with_the_previous_log(fake, api, tmp_path):
    fake.script["decode"] = ((0, crashing(1)), (0.5, crashing(3)))
    original = fake.named

    def name_logs():
        for pod in original("pods"):
            if "-decode-0" in pod:
                fake.logs[pod, True] = f"loading\nToken hf_abcdefghijklmnopqrst\n{TOKEN}\nno GPU!\n"

    timer = threading.Timer(0.3, name_logs)
    timer.start()
    told = fails(fake, api, tmp_path)
    assert "  no GPU!" in told
    files = evidence(tmp_path)
    (previous,) = [name for name in files if name.endswith(".previous.log")]
    assert files[previous] == "loading\nToken ***\n***\nno GPU!\n"
    assert "hf_planted" not in "".join(files.values()) + told
    assert "crash loop" in files["reason.txt"]
    assert {"reason.txt", "manifest.yaml", "deployment.yaml", "pods.json", "events.txt"} <= set(
        files
    )


def test_a_probe_that_fails_is_quoted_from_the_events(fake, api, tmp_path):
    fake.script["decode"] = ((0, running(False)),)
    found = deployment(api, tmp_path)
    fake.event(f"{found.name}-decode-0", "Unhealthy", "Startup probe failed: HTTP 503")
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    assert "not ready: Startup probe failed: HTTP 503" in str(caught.value)
    assert "Startup probe failed" in evidence(tmp_path)["events.txt"]


def test_what_passes_is_waited_for(fake, api, tmp_path):
    fake.script["decode"] = (
        (0, unschedulable()), (0.3, waiting("ErrImagePull", "slow")), (0.2, crashing(1)),
        (0.3, running()),
    )  # fmt: skip
    fake.graph_state = {"state": "failed", "conditions": []}
    threading.Timer(0.3, setattr, (fake, "graph_state", None)).start()
    progress = Stages()
    with deployment(api, tmp_path, progress=progress, limits=Limits(ready=9)).open():
        pass
    told = "\n".join(progress.stages)
    assert "unschedulable" in told or "ErrImagePull" in told or "restarted 1 times" in told
    assert nothing_left(fake)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        ({"state": "failed", "conditions": [
            {"type": "Ready", "status": "False", "reason": "SomeError", "message": "no quota"}]},
         r"the operator has reported failure for \d+ s: no quota"),
        ({"state": "failed", "conditions": [
            {"type": "Ready", "status": "False", "reason": "ValidationFailed",
             "message": "replicas {x}"}]},
         r"the operator rejects it: replicas \{x\}"),
        # It says that it is ready, but of an older generation, or without all services.
        ({"state": "successful", "observedGeneration": 0,
          "conditions": [{"type": "Ready", "status": "True"}]}, r"not ready after 1.2 s"),
        ({"state": "successful", "services": {"Frontend": {}},
          "conditions": [{"type": "Ready", "status": "True"}]}, r"not ready after 1.2 s"),
    ],
)  # fmt: skip
def test_what_the_operator_says_is_read_with_care(fake, api, tmp_path, status, message):
    fake.graph_state = status
    told = fails(fake, api, tmp_path)
    assert re.search(message, told), told


# -- the API server and others interfere -------------------------------------------------------


def test_a_name_that_somebody_else_has_is_left_alone(fake, api, tmp_path):
    found = deployment(api, tmp_path, engine="vllm")
    other = {"metadata": {"name": found.name, "labels": {}}, "spec": {}}
    fake.add(DGD, other)
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    assert "already exists in namespace bench and does not belong to this plugin" in str(
        caught.value
    )
    assert set(fake.named(DGD)) == {found.name}


def test_a_name_of_another_run_is_left_alone_too(fake, api, tmp_path):
    found = deployment(api, tmp_path, engine="vllm")
    metadata = {"name": found.name, "labels": labels(SPLIT, "run-0")}
    fake.add(DGD, {"metadata": metadata, "spec": {}})
    with pytest.raises(DeploymentError, match="belongs to run run-0"), found.open():
        pass


def test_an_earlier_one_that_is_going_is_waited_for(fake, api, tmp_path):
    found = deployment(api, tmp_path, engine="vllm")
    fake.stuck = True
    metadata = {"name": found.name, "labels": {}, "deletionTimestamp": "2026-01-01T00:00:00Z"}
    fake.add(DGD, {"metadata": metadata, "spec": {}})
    threading.Timer(0.5, setattr, (fake, "stuck", False)).start()
    with found.open():
        pass
    assert nothing_left(fake)


def test_an_answer_to_create_that_is_lost(fake, api, tmp_path):
    """The object is there, the answer is not: asking again gives 409, and it is ours."""
    fake.faults.append(Fault(lambda m, p: m == "POST" and p.endswith(DGD), 0, after=True))
    with deployment(api, tmp_path).open():
        assert len(fake.named(DGD)) == 1
    assert nothing_left(fake)


def test_a_field_that_does_not_exist_is_refused_by_the_api_server(fake, api, tmp_path):
    documents = render(bench("vllm", SPLIT), SPLIT, ClusterSettings(NAMESPACE), RUN, NEW_OPERATOR)
    documents[-1]["spec"]["components"][2]["replicsa"] = 3
    found = Deployment(api, documents, RUN, LIMITS, tmp_path / "cluster", Stages())
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    assert 'unknown field "spec.components[2].replicsa"' in str(caught.value)
    assert nothing_left(fake)


def test_a_value_of_a_wrong_type_is_refused_by_the_api_server(fake, api, tmp_path):
    documents = render(bench("vllm", SPLIT), SPLIT, ClusterSettings(NAMESPACE), RUN, NEW_OPERATOR)
    documents[-1]["spec"]["components"][2]["replicas"] = "three"
    found = Deployment(api, documents, RUN, LIMITS, tmp_path / "cluster", Stages())
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    told = "spec.components[2].replicas: 'three' is not of type 'integer'"
    assert told in str(caught.value)
    assert nothing_left(fake)


@pytest.mark.parametrize("service", ["Frontend", "decode"])
def test_a_program_that_refuses_its_arguments_ends_again_and_again(fake, api, tmp_path, service):
    pytest.importorskip("dynamo.frontend", reason="needs ai-dynamo")
    documents = render(bench("vllm", SPLIT), SPLIT, ClusterSettings(NAMESPACE), RUN, NEW_OPERATOR)
    args = components(documents[-1])[service]["container"]["args"]
    args.append("--router-reset-states")
    found = Deployment(api, documents, RUN, LIMITS, tmp_path / "cluster", Stages())
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    assert f"-{service.lower()}-0" in str(caught.value)
    assert "--router-reset-states" in str(caught.value)
    assert nothing_left(fake)


def test_the_api_server_is_away_busy_and_forgetful_while_it_comes_up(fake, api, tmp_path):
    fake.script["decode"] = ((0.8, pulling()), (1.2, running()))
    fake.faults += [
        Fault(lambda m, p: p.endswith("pods"), 429, times=2, headers={"Retry-After": "0"}),
        Fault(lambda m, p: p.endswith("pods"), 503, times=2),
        Fault(lambda m, p: p.endswith(DGD) and m == "GET", 410, times=1, reason="Expired"),
    ]
    threading.Timer(0.3, fake.expire_watches).start()
    threading.Timer(0.8, fake.restart, [0.4]).start()
    api = Cluster(connector(""), NAMESPACE, outage_seconds=10)
    with deployment(api, tmp_path, limits=Limits(ready=20, delete=5)).open():
        assert len(fake.named(DGD)) == 1
    assert nothing_left(fake)


def test_who_may_not_list_pods_is_told_so(fake, api, tmp_path):
    found = deployment(api, tmp_path, engine="vllm")
    fake.denied.add(("list", "pods"))
    with pytest.raises(DeploymentError) as caught, found.open():
        pass
    assert "not allowed to list pods (namespace bench)" in str(caught.value)
    # Deletion is asked for; whether pods are gone cannot be seen.
    assert not fake.named(DGD) or fake.named(DGD)[found.name]["metadata"]["deletionTimestamp"]


def test_somebody_deletes_it_while_it_comes_up(fake, api, tmp_path):
    fake.script["decode"] = ((0, pulling()),)
    found = deployment(api, tmp_path)
    threading.Timer(0.4, fake.remove, (DGD, found.name)).start()
    with pytest.raises(DeploymentError, match="was deleted by another client"), found.open():
        pass


def test_what_does_not_go_away_is_named_with_the_command_that_removes_it(fake, api, tmp_path):
    found = deployment(api, tmp_path, limits=Limits(delete=0.6, ready=5))
    with pytest.raises(DeploymentError) as caught, found.open():
        fake.stuck = True
    told = str(caught.value)
    assert re.search(rf"not deleted after 0.6 s: {DGD}\S* {found.name}, pod {found.name}-", told)
    assert told.endswith(f"python -m pytest_dynamo_bench cleanup --run {RUN}")
    fake.stuck = False


def test_a_pod_that_dies_later_is_noticed(fake, api, tmp_path):
    found = deployment(api, tmp_path)
    with found.open():
        found.check_alive()
        before = found.restarts()
        fake.script["decode"] = ((0, crashing(1, "OOMKilled", 137)),)
        deadline = time.monotonic() + 3
        while found.restarts() == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        message = r"-decode-0 \(decode\): restarted 1 times, last ended with OOMKilled"
        with pytest.raises(DeploymentError, match=message):
            found.check_alive()
    assert nothing_left(fake)

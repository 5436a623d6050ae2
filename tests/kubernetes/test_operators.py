"""Operators that serve the old form of a deployment, the new one or both: each told in its own."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.kubernetes.api import ApiError, Cluster, connector
from pytest_dynamo_bench.targets.kubernetes.graph import (
    NEW_OPERATOR,
    OLD_OPERATOR,
    Operator,
    asks_for_nats,
    parts,
)
from pytest_dynamo_bench.targets.kubernetes.manifest import render
from pytest_dynamo_bench.targets.kubernetes.preflight import operator_in
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, Frontend, Load
from tests.endpoint.test_shards import Silent, traffic
from tests.kubernetes.fake_cluster import DGD, NAMESPACE, FakeCluster, Fault
from tests.kubernetes.forms import OPERATORS, components
from tests.kubernetes.test_manifests import AGG, SPLIT, bench
from tests.kubernetes.test_target import NOT_DYNAMO, nothing_left, settings, target
from tests.servers import FAST, serving

# Release of the operator, what it serves, and how it is told.
SERVED = [
    ("1.3", ("v1beta1", "v1alpha1"), OLD_OPERATOR),
    ("1.4", ("v1beta1", "v1alpha1"), OLD_OPERATOR),
    ("1.4", ("v1alpha1",), OLD_OPERATOR),
    ("1.4", ("v1beta1",), Operator("v1beta1", asks_runtime_version=False)),
    ("1.5", ("v1beta1", "v1alpha1"), NEW_OPERATOR),
    ("1.5", ("v1alpha1", "v1beta1"), NEW_OPERATOR),
    ("1.5", ("v1beta1",), NEW_OPERATOR),
    ("1.5", ("v1alpha1",), Operator("v1alpha1", asks_runtime_version=True)),
]
LOAD = Load(source="api-server")


@pytest.fixture
def cluster_of(tmp_path, monkeypatch):
    """A double of a release, which the kubeconfig leads to."""
    made = []

    def make(release, serves):
        made.append(FakeCluster(release, serves))
        monkeypatch.setenv("KUBECONFIG", str(made[-1].kubeconfig(tmp_path)))
        return made[-1]

    yield make
    for found in made:
        found.close()


@pytest.mark.parametrize(("release", "serves", "operator"), SERVED)
def test_what_is_served_decides_what_is_made_measured_and_deleted(
    cluster_of, tmp_path, release, serves, operator
):
    fake, applied = cluster_of(release, serves), []
    own = {"": "me/vllm-runtime:wip", "example/other": "nobody:1.0.0"}
    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        found = target(settings(load=LOAD, runtime_version="1.6.1"), images=own, dry_run=True)
        found.check(bench("vllm", SPLIT))
        assert nothing_left(fake)
        seen = Applied(fake, applied)
        planned = PlannedRun(bench("vllm", SPLIT), SPLIT, traffic(4), tmp_path)
        run = found.measure(planned, seen)
    (graph,) = {item["metadata"]["name"]: item for item in applied}.values()
    assert graph["apiVersion"] == operator.api_version
    said = {part["runtime"] for part in components(graph).values()}
    assert said == ({"1.6.1"} if operator.asks_runtime_version else {None})
    assert nothing_left(fake)
    assert [record.error for record in run.records] == [None] * 4
    assert run.deployed["image"] == "me/vllm-runtime:wip"
    assert run.observed["workers"] == run.deployed["workers"] == 3
    assert any(stage.startswith("starting: Frontend 1/1, prefill 2/2, decode 1/1")
               for stage in seen.stages)  # fmt: skip
    assert any(f"/{DGD}" in path and f"/{operator.version}/" in path for _, path in fake.requests)
    (written,) = tmp_path.glob("manifest.yaml")
    assert yaml.safe_load(written.read_text())["apiVersion"] == operator.api_version


class Applied(Silent):
    """Notes what is on the cluster at each stage."""

    def __init__(self, fake, applied):
        self.fake, self.applied, self.stages = fake, applied, []

    def stage(self, name):
        self.stages.append(name)
        self.applied += self.fake.named(DGD).values()


@pytest.mark.parametrize(("release", "serves", "operator"), SERVED)
def test_leftovers_of_either_form_are_removed(cluster_of, tmp_path, release, serves, operator):
    fake = cluster_of(release, serves)
    cluster = Cluster(connector(""), NAMESPACE)
    assert operator_in(cluster, []) == operator
    for version in serves:
        form = dataclasses.replace(operator, version=version)
        run = f"run-{version}"
        (graph,) = render(bench("vllm", AGG), AGG, ClusterSettings(NAMESPACE), run, form)
        cluster.create(f"{DGD}.{version}.nvidia.com", graph)
    path = tmp_path / "cluster.yaml"
    path.write_text(f"namespace: {NAMESPACE}\n")
    assert main(["cleanup", "--dynamo-cluster", str(path), "--all", "--wait", "5"]) == 0
    assert nothing_left(fake)


def test_an_operator_that_asks_which_dynamo_is_in_an_image_is_told_or_nothing_is_made(cluster_of):
    fake = cluster_of("1.5", ("v1beta1", "v1alpha1"))
    found = target(settings(load=LOAD), images={"agg": "me/vllm-runtime@sha256:12"})
    with pytest.raises(TargetError, match=r"'agg': the tag of image me/vllm.* runtime_version"):
        found.check(bench("vllm", AGG))
    assert not [path for method, path in fake.requests if method == "POST" and DGD in path]
    # One that does not ask is not told, and takes the same image.
    cluster_of("1.4", ("v1beta1", "v1alpha1"))
    target(settings(load=LOAD), images={"agg": "me/vllm-runtime:wip"}).check(bench("vllm", AGG))


def test_an_own_manifest_without_the_release_is_refused_by_the_admission(cluster_of, tmp_path):
    cluster_of("1.5", ("v1beta1", "v1alpha1"))
    own = tmp_path / "own.yaml"
    own.write_text(
        "apiVersion: nvidia.com/v1beta1\nkind: DynamoGraphDeployment\nmetadata: {name: mine}\n"
        "spec: {components: [{name: Gateway, type: frontend, podTemplate: {spec: {containers: "
        "[{name: main, image: 'me:wip'}]}}}]}\n"
    )
    told = r"agg: .*denied the request: spec.components\[0\].runtimeVersionOverride: Required value"
    with pytest.raises(TargetError, match=told):
        target(settings(), dry_run=True, manifests={"agg": own}).check(bench("vllm", AGG))


def test_an_own_manifest_for_a_version_that_is_not_served(cluster_of, tmp_path):
    cluster_of("1.4", ("v1alpha1",))
    own = tmp_path / "own.yaml"
    own.write_text("apiVersion: nvidia.com/v1beta1\nkind: DynamoGraphDeployment\n"
                   "metadata: {name: mine}\nspec: {components: []}\n")  # fmt: skip
    told = "'agg' is for nvidia.com/v1beta1, and the operator serves nvidia.com/v1alpha1"
    with pytest.raises(TargetError, match=told):
        target(settings(), manifests={"agg": own}).check(bench("vllm", AGG))


@pytest.mark.parametrize(
    ("serves", "operator"),
    [(("v1beta1", "v1alpha1"), NEW_OPERATOR), (("v1alpha1",), OLD_OPERATOR)],
)
def test_a_schema_that_may_not_be_read_is_guessed_and_in_the_report(cluster_of, serves, operator):
    fake = cluster_of("1.5", serves)
    fake.faults.append(Fault(lambda m, p: "openapi" in p, 403, times=99, reason="Forbidden"))
    unknown = []
    assert operator_in(Cluster(connector(""), NAMESPACE), unknown) == operator
    assert unknown == ["whether the operator knows runtimeVersionOverride (Forbidden)"]


def test_a_frontend_of_either_form_is_found_by_its_service(cluster_of, tmp_path):
    fake = cluster_of("1.5", ("v1beta1",))
    own = tmp_path / "own.yaml"
    own.write_text(
        "apiVersion: nvidia.com/v1beta1\nkind: DynamoGraphDeployment\nmetadata: {name: mine}\n"
        "spec:\n  components:\n"
        "  - {name: Gateway, type: frontend, podTemplate: {spec: {containers: "
        "[{name: main, image: 'a:1.6.1'}]}}}\n"
        "  - {name: agg, type: worker, replicas: 2, podTemplate: {spec: {containers: "
        "[{name: main, image: 'a:1.6.1'}]}}}\n"
    )
    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        found = target(settings(load=LOAD), manifests={"example/agg": own})
        run = found.measure(PlannedRun(bench("vllm", AGG), AGG, traffic(4), tmp_path), Silent())
    assert any("/services/mine-gateway:8000/proxy/" in path for _, path in fake.requests)
    assert len(run.records) == 4 and run.observed["workers"] == 2


# -- NATS ------------------------------------------------------------------------------------------

NATS = {"DYN_REQUEST_PLANE": "nats"}
ITS_OWN = {**NATS, "NATS_SERVER": "nats://elsewhere:4222"}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    ("changes", "cluster", "asks"),
    [
        ({}, {}, ""),
        ({}, {"env": NATS}, "Frontend: DYN_REQUEST_PLANE=nats"),
        ({}, {"env": ITS_OWN}, ""),
        ({"env": {"DYN_EVENT_PLANE": "nats"}}, {}, "Frontend: DYN_EVENT_PLANE=nats"),
        ({"env": {"DYN_EVENT_PLANE": "zmq"}}, {}, ""),
        ({"frontend_args": {"request-plane": "nats"}}, {}, "Frontend: --request-plane nats"),
        ({"frontend_args": {"request-plane": "tcp"}}, {"frontend": Frontend(env=NATS)}, ""),
        ({}, {"frontend": Frontend(env=NATS)}, "Frontend: DYN_REQUEST_PLANE=nats"),
        ({"workers": [dataclasses.replace(AGG.workers[0], engine_args={"event-plane": "nats"})]},
         {}, "agg: --event-plane nats"),
    ],
)  # fmt: skip
def test_what_asks_for_nats(operator, changes, cluster, asks):
    configuration = AGG.but(**changes)
    found = ClusterSettings("ns", **cluster)
    (graph,) = render(bench("vllm", configuration), configuration, found, "r", operator)
    assert asks_for_nats(graph) == asks


def test_a_cluster_without_nats_is_told_when_it_is_asked_for(fake):
    with pytest.raises(TargetError) as caught:
        target(settings(env=NATS)).check(bench("vllm", AGG))
    (line,) = str(caught.value).splitlines()[1:]
    told = "no NATS is in the cluster, and it is asked for (agg: Frontend: DYN_REQUEST_PLANE=nats)"
    assert told in line and "--set global.nats.install=true" in line
    target(settings(env=ITS_OWN)).check(bench("vllm", AGG))
    target(settings()).check(bench("vllm", AGG))
    labels = {"app.kubernetes.io/name": "nats"}
    metadata = {"name": "dynamo-platform-nats", "namespace": "dynamo-system", "labels": labels}
    fake.add("services", {"metadata": metadata})
    target(settings(env=NATS)).check(bench("vllm", AGG))


def test_whether_there_is_nats_may_not_be_found_out(fake):
    fake.denied = {("list", "services")}
    found = target(settings(env=NATS))
    found.check(bench("vllm", AGG))
    (limit,) = found.limitations(bench("vllm", AGG), AGG)
    assert "whether there is a NATS, which is asked for (agg: Frontend: DYN_REQUEST_PLANE" in limit


# -- the schema ------------------------------------------------------------------------------------


def test_a_kind_that_is_not_there_has_no_schema(fake):
    cluster = Cluster(connector(""), NAMESPACE)
    assert cluster.schema("nvidia.com", "v1beta1", "Nothing") == {}
    with pytest.raises(ApiError, match="the schema of Nothing"):
        cluster.schema("nvidia.com", "v9", "Nothing")


def test_the_parts_of_both_forms_are_read_alike():
    benchmark, found = bench("vllm", SPLIT), ClusterSettings("ns", env={"A": "1"})
    old, new = (parts(render(benchmark, SPLIT, found, "r", item)[-1]) for item in OPERATORS)
    assert old == new
    assert [(part.name, part.is_worker, part.pods) for part in new] == [
        ("Frontend", False, 1), ("prefill", True, 2), ("decode", True, 1)
    ]  # fmt: skip
    assert all(part.env["A"] == "1" and part.args for part in new)

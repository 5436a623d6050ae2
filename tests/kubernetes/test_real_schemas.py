"""All that is made on a cluster, against the schemas of the real operator and of Kubernetes."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.errors import DynamoBenchError
from pytest_dynamo_bench.targets.kubernetes.graph import (
    FORMS,
    NEW_OPERATOR,
    OLD_OPERATOR,
    Operator,
)
from pytest_dynamo_bench.targets.kubernetes.manifest import claims, render
from pytest_dynamo_bench.targets.kubernetes.settings import (
    ClusterSettings,
    EngineSettings,
    Frontend,
    Volume,
    read_settings,
)
from tests.any_configuration import ENGINES, benchmark_with, configurations
from tests.kubernetes.real_schemas import (
    RELEASES,
    admission_problems,
    graph_problems,
    problems,
)
from tests.kubernetes.test_manifests import CLUSTERS, benchmark_of

PROJECT = Path(__file__).parent.parent.parent
BENCHMARKS = {p.stem: benchmark_of(p.stem) for p in sorted((PROJECT / "benchmarks").glob("*.py"))}
SHIPPED = [(name, c.name) for name, b in BENCHMARKS.items() for c in b.configurations]
EVERYTHING = ClusterSettings(
    "ns", registry="mirror/ai", image_tag="1.4.2", images={"vllm": "own/vllm:1.4.2"},
    image_pull_secret="pull-me", model_cache=Volume("model-cache", "/models", "1Ti"),
    compilation_cache=Volume("compilation-cache", "/compiled"), storage_class="fast",
    token_secret="hf-token-secret", env={"NCCL_DEBUG": "WARN"},
    node_selector={"kubernetes.io/arch": "arm64"},
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
                 {"key": "spot", "operator": "Equal", "value": "true", "tolerationSeconds": 60}],
    compute_domain="domain", custom_resources={"rdma/ib": "2"}, run_as_root=True,
    startup_seconds=3600, frontend=Frontend("500m", "16Gi", {"DYN_LOG": "info"}),
    runtime_version="1.4.2",
    engines={"all": EngineSettings(args={"--seed": 3, "--enforce-eager": None},
                                   env={"A": "b"}, shared_memory="80Gi")},
)  # fmt: skip


NO_OVERRIDE = Operator("v1beta1", asks_runtime_version=False)


def graph(
    name="qwen3_32b_kv_routing", arm="disagg-kv-router", cluster=EVERYTHING, operator=OLD_OPERATOR
):
    benchmark = BENCHMARKS[name]
    return render(benchmark, benchmark.configuration(arm), cluster, "run", operator)[-1]


def refused(document, release):
    found = problems(document, release)
    if not found:
        found = admission_problems(document, release)
    return [str(problem) for problem in found]


def operators(release):
    """Those that can be told apart in a cluster of the release."""
    return [OLD_OPERATOR, NEW_OPERATOR] if release == "1.5" else [OLD_OPERATOR, NO_OVERRIDE]


def test_there_are_schemas_of_the_releases_that_are_supported():
    assert RELEASES == ["1.3", "1.4", "1.5"]


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("page", "arm"), SHIPPED)
def test_the_operator_takes_every_shipped_manifest(page, arm, release):
    benchmark, configuration = BENCHMARKS[page], BENCHMARKS[page].configuration(arm)
    for cluster in (ClusterSettings("ns"), CLUSTERS[page], EVERYTHING):
        for operator in operators(release):
            for document in render(benchmark, configuration, cluster, "run", operator):
                assert refused(document, release) == []


@pytest.mark.parametrize(("page", "arm"), SHIPPED)
def test_the_operator_takes_every_shipped_manifest_with_an_own_image(page, arm):
    benchmark, configuration = BENCHMARKS[page], BENCHMARKS[page].configuration(arm)
    own = replace(EVERYTHING, images={benchmark.engine: "me/runtime:wip"}, runtime_version="1.6.1")
    for version in FORMS:
        operator = Operator(version, asks_runtime_version=True)
        (*_, document) = render(benchmark, configuration, own, "run", operator)
        assert refused(document, "1.5") == []
        text = json.dumps(document)
        assert text.count('"runtimeVersionOverride": "1.6.1", ') == 1 + len(configuration.workers)
        without = json.loads(text.replace('"runtimeVersionOverride": "1.6.1", ', ""))
        told = refused(without, "1.5")
        assert len(told) == 1 + len(configuration.workers)
        assert all("runtimeVersionOverride: Required value" in problem for problem in told)


@pytest.mark.parametrize("release", RELEASES)
def test_the_operator_takes_the_settings_that_the_documentation_shows(tmp_path, release):
    text = (PROJECT / "docs" / "run-on-a-cluster.md").read_text("utf-8")
    (tmp_path / "cluster.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    cluster = read_settings(tmp_path / "cluster.yaml")
    assert cluster.tolerations
    for operator in operators(release):
        assert refused(graph(cluster=cluster, operator=operator), release) == []


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("spec", "services", "decode", "replicsa"), 2,
         'unknown field "spec.services.decode.replicsa"'),
        (("spec", "backendframework"), "vllm", 'unknown field "spec.backendframework"'),
        (("spec", "services", "decode", "extraPodSpec", "mainContainer", "arguments"), [],
         'unknown field "spec.services.decode.extraPodSpec.mainContainer.arguments"'),
        (("spec", "services", "decode", "extraPodSpec", "mainContainer", "startupProbe",
          "every"), 9,
         'unknown field "spec.services.decode.extraPodSpec.mainContainer.startupProbe.every"'),
        (("metadata", "label"), {}, 'unknown field "metadata.label"'),
        (("spec", "services", "decode", "replicas"), "2",
         "spec.services.decode.replicas: '2' is not of type 'integer'"),
        (("spec", "services", "decode", "replicas"), -1,
         "spec.services.decode.replicas: -1 is less than the minimum of 0"),
        (("spec", "services", "decode", "multinode"), {"nodeCount": 1},
         "spec.services.decode.multinode.nodeCount: 1 is less than the minimum of 2"),
        (("spec", "services", "decode", "multinode"), {},
         "spec.services.decode.multinode: 'nodeCount' is a required property"),
        (("spec", "services", "decode", "resources", "limits", "gpu"), 2,
         "spec.services.decode.resources.limits.gpu: 2 is not of type 'string'"),
        (("spec", "services", "decode", "sharedMemory"), {"size": "a lot"},
         "spec.services.decode.sharedMemory.size: 'a lot' does not match"),
        (("spec", "backendFramework"), "mlx",
         "spec.backendFramework: 'mlx' is not one of ['sglang', 'vllm', 'trtllm']"),
        (("spec", "pvcs"), [{"create": False}], "spec.pvcs[0]: 'name' is a required property"),
        (("spec", "services", "decode", "volumeMounts"), [{"mountPoint": "/a"}],
         "spec.services.decode.volumeMounts[0]: 'name' is a required property"),
        (("spec", "envs"), [{"value": "b"}], "spec.envs[0]: 'name' is a required property"),
        (("spec", "services", "decode", "extraPodSpec", "mainContainer", "env"),
         [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}],
         "spec.services.decode.extraPodSpec.mainContainer.env: Duplicate value: ('A',)"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_is_refused_and_says_where(release, path, value, says):
    document = copy.deepcopy(graph())
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(text.startswith(says) for text in refused(document, release)), refused(
        document, release
    )


COMPONENT = ("spec", "components", 2)
MAIN = (*COMPONENT, "podTemplate", "spec", "containers", 0)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ((*COMPONENT, "replicsa"), 2, 'unknown field "spec.components[2].replicsa"'),
        (("spec", "services"), {}, 'unknown field "spec.services"'),
        (("spec", "pvcs"), [], 'unknown field "spec.pvcs"'),
        ((*COMPONENT, "envFromSecret"), "a", 'unknown field "spec.components[2].envFromSecret"'),
        ((*MAIN, "arguments"), [],
         'unknown field "spec.components[2].podTemplate.spec.containers[0].arguments"'),
        ((*COMPONENT, "type"), "aggregated",
         "spec.components[2].type: 'aggregated' is not one of ['frontend', 'worker', 'prefill'"),
        ((*COMPONENT, "name"), "a_b", "spec.components[2].name: 'a_b' does not match"),
        ((*COMPONENT, "name"), "Prefill", "spec.components: names must be unique case-insens"),
        ((*COMPONENT, "name"), "prefill", "spec.components: Duplicate value: ('prefill',)"),
        ((*COMPONENT, "multinode"), {"nodeCount": 1},
         "spec.components[2].multinode.nodeCount: 1 is less than the minimum of 2"),
        ((*COMPONENT, "sharedMemorySize"), "a lot",
         "spec.components[2].sharedMemorySize: 'a lot' does not match"),
        ((*COMPONENT, "compilationCache"), {"mountPath": "/a"},
         "spec.components[2].compilationCache: 'pvcName' is a required property"),
        ((*COMPONENT, "minAvailable"), 9, "spec.components[2]: minAvailable must be less than"),
        ((*MAIN, "resources", "limits", "cpu"), "two",
         "spec.components[2].podTemplate.spec.containers[0].resources.limits.cpu: 'two' does not"),
        (("spec", "restart"), {"id": "1"}, "spec: spec.restart must be unset on create"),
        (("spec", "env"), [{"value": "b"}], "spec.env[0]: 'name' is a required property"),
    ],
)  # fmt: skip
def test_a_wrong_manifest_of_the_new_form_is_refused_and_says_where(release, path, value, says):
    document = copy.deepcopy(graph(operator=NO_OVERRIDE))
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert any(text.startswith(says) for text in refused(document, release)), refused(
        document, release
    )


@settings(deadline=None, max_examples=60)
@given(configuration=configurations(), engine=st.sampled_from(ENGINES))
def test_whatever_can_be_configured_is_refused_by_us_or_taken_by_the_operator(
    configuration, engine
):
    benchmark = benchmark_with(configuration, engine)
    for release in RELEASES:
        for operator in operators(release):
            try:
                documents = render(benchmark, configuration, EVERYTHING, "run", operator)
            except DynamoBenchError:
                assume(False)
            for document in documents:
                assert refused(document, release) == []


def test_a_field_that_came_with_a_release_is_refused_by_those_before_it():
    document = copy.deepcopy(graph())
    document["spec"]["services"]["decode"]["runtimeVersionOverride"] = "1.5.0"
    said = {release: bool(graph_problems(document, release)) for release in RELEASES}
    assert said == {"1.3": True, "1.4": True, "1.5": False}


def test_claims_and_the_role_are_taken():
    documents = claims(EVERYTHING)
    assert [document["kind"] for document in documents] == ["PersistentVolumeClaim"] * 2
    documents += yaml.safe_load_all((PROJECT / "docs" / "rbac.yaml").read_text("utf-8"))
    for document in documents:
        assert refused(document, "1.4") == []


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"kind": "ConfigMap", "metadata": {"name": "a"}, "dat": {}}, 'unknown field "dat"'),
        ({"kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"a": 3}},
         "data.a: 3 is not of type str"),
        ({"kind": "Job", "metadata": {"name": "a"}, "spec": {"completions": 1}},
         "spec: Invalid value for `template`, must not be `None`"),
        ({"kind": "Job", "spec": {"template": {"spec": {"containers": [
            {"name": "load", "imagePullPolicyy": "Always"}]}}}},
         'unknown field "spec.template.spec.containers[0].imagePullPolicyy"'),
        ({"kind": "Job", "spec": {"completions": "3", "template": {}}},
         "spec.completions: '3' is not of type int"),
    ],
)  # fmt: skip
def test_kubernetes_own_objects_with_a_mistake_are_refused(document, says):
    assert says in refused(document, "1.4")

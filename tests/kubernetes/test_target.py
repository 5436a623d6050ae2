"""The target on the double: preflight, a whole run with load from the cluster, and what is kept.

The frontend is a reference server; ``test_whole_run.py`` has a real Dynamo there.
"""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
import yaml

from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.kubernetes.api import Cluster, connector
from pytest_dynamo_bench.targets.kubernetes.graph import NEW_OPERATOR, resource_of
from pytest_dynamo_bench.targets.kubernetes.load_job import job_manifest, order_maps
from pytest_dynamo_bench.targets.kubernetes.preflight import PERMISSIONS, permissions
from pytest_dynamo_bench.targets.kubernetes.settings import (
    ClusterSettings,
    Limits,
    Load,
    Volume,
)
from pytest_dynamo_bench.targets.kubernetes.target import KubernetesOptions, KubernetesTarget
from pytest_dynamo_bench.targets.service import coordinate
from pytest_dynamo_bench.traffic import FixedSchedule
from pytest_dynamo_bench.verdicts import check_run
from tests.endpoint.test_endpoint import trace_file
from tests.endpoint.test_shards import Silent, traffic
from tests.kubernetes.fake_cluster import (
    DGD,
    NAMESPACE,
    TOKEN,
    Fault,
    crashing,
    unschedulable,
    waiting,
)
from tests.kubernetes.test_manifests import AGG, SPLIT, bench
from tests.reference_server import Character, Script
from tests.servers import FAST, serving

PROJECT = Path(__file__).parent.parent.parent
LIMITS = Limits(schedule=2, pull=2, ready=5, answer=5, grace=0.4, delete=5)
NOT_DYNAMO = Character(model="org/model")
OTHER_TOKENIZER = Character(model="org/model", english=True, template_tokens=7)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(coordinate, "_LEAD_SECONDS", 0.5)
    monkeypatch.setattr(coordinate, "_POLL_SECONDS", 0.1)


def settings(**more):
    load = more.pop("load", Load(pip=""))
    return ClusterSettings(NAMESPACE, limits=LIMITS, load=load, **more)


def target(found=None, **more):
    options = KubernetesOptions(found or settings(), **more)
    cluster = Cluster(connector(""), NAMESPACE, outage_seconds=3)
    return KubernetesTarget(options, cluster, run_id="run-1")


def nothing_left(fake):
    return not any(fake.named(kind) for kind in (DGD, "pods", "configmaps", "jobs"))


# -- preflight ---------------------------------------------------------------------------------


def test_a_cluster_that_has_everything(fake):
    fake.add("persistentvolumeclaims", {"metadata": {"name": "weights"}})
    fake.add("secrets", {"metadata": {"name": "hf"}})
    found = settings(model_cache=Volume("weights", "/w"), token_secret="hf")
    target(found).check(bench("vllm", AGG))
    assert not [
        method for method, path in fake.requests if method != "GET" and "review" not in path
    ]


def test_all_that_is_missing_is_told_at_once(fake):
    del fake.groups["nvidia.com"]
    fake.denied = {("create", DGD), ("get", "pods/log")}
    for node in fake.named("nodes"):
        fake.remove("nodes", node)
    fake.add("nodes", {"metadata": {"name": "n", "labels": {}}, "spec": {},
                       "status": {"allocatable": {"nvidia.com/gpu": "2"}}})  # fmt: skip
    found = settings(
        model_cache=Volume("weights", "/w"), token_secret="hf", image_pull_secret="pull",
        compute_domain="domain",
    )  # fmt: skip
    with pytest.raises(TargetError) as caught:
        target(found).check(bench("vllm", AGG))
    lines = str(caught.value).splitlines()
    assert lines[0] == "the cluster is not ready; nothing was created:"
    for part in (
        "the Dynamo operator is not installed: the API server has no group nvidia.com",
        "not allowed in namespace 'bench': create dynamographdeployments.nvidia.com, get pods/log;",
        "there is no persistentvolumeclaim 'weights' in namespace 'bench'",
        "there is no secret 'hf'", "there is no secret 'pull'",
        "there is no resourceclaimtemplate 'domain'",
        "4 GPUs are needed, but only 2 are allocatable on 1 nodes",
    ):  # fmt: skip
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fake: fake.remove("namespaces", NAMESPACE), "there is no namespace 'bench'"),
        (lambda fake: fake.set_status("namespaces", NAMESPACE, {"phase": "Terminating"}),
         "namespace 'bench' is being deleted"),
        (lambda fake: fake.groups.update({"nvidia.com": {"v1": ()}}),
         "the Dynamo operator serves nvidia.com/v1, not v1beta1 or v1alpha1"),
        (lambda fake: fake.stop(), "the cluster is not usable: the API server cannot be reached"),
        (lambda fake: fake.tokens.clear(), "the cluster is not usable: the API server does not"),
        (lambda fake: [fake.named("nodes")[n]["spec"].update(unschedulable=True)
                       for n in fake.named("nodes")], "only 0 are allocatable on 0 nodes"),
    ],
    ids=["no namespace", "namespace going", "other version", "not there", "token", "cordoned"],
)  # fmt: skip
def test_what_is_wrong_is_told(fake, change, message):
    change(fake)
    try:
        with pytest.raises(TargetError, match=re.escape(message)):
            target().check(bench("vllm", AGG))
    finally:
        if "reached" in message:
            fake.start()


def test_what_cannot_be_found_out_is_no_obstacle_and_is_in_the_report(fake):
    fake.denied = {("get", "namespaces"), ("list", "nodes"), ("get", "secrets")}
    found = target(settings(token_secret="hf"))
    found.check(bench("vllm", AGG))
    text = " ".join(found.limitations(bench("vllm", AGG), AGG))
    for part in ("whether namespace bench exists", "whether there are 4 GPUs", "a secret 'hf'"):
        assert part in text


def test_a_dry_run_lets_the_api_server_check(fake):
    target(dry_run=True).check(bench("trtllm", SPLIT))
    assert nothing_left(fake)


def test_a_dry_run_says_what_the_api_server_refuses(fake, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "apiVersion: nvidia.com/v1alpha1\nkind: DynamoGraphDeployment\nmetadata: {name: mine}\n"
        "spec: {services: {Frontend: {componentType: frontend, replicsa: 2}}}\n"
    )
    found = target(dry_run=True, manifests={"agg": own})
    with pytest.raises(
        TargetError, match=r'agg: .*unknown field "spec.services.Frontend.replicsa"'
    ):
        found.check(bench("vllm", AGG))


def test_the_shipped_role_allows_what_is_needed_and_no_more():
    role, binding, viewer = list(
        yaml.safe_load_all((PROJECT / "docs" / "rbac.yaml").read_text("utf-8"))
    )[:3]
    allowed = {
        (verb, group, *(f"{resource}/".split("/")[:2]))
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    every = {p for source in ("cluster", "api-server") for p in permissions(
        ClusterSettings("x", load=Load(source=source)))}  # fmt: skip
    looked_at = {("get", "", "persistentvolumeclaims", "")}
    assert allowed == every | looked_at
    assert set(PERMISSIONS) <= allowed
    assert (role["kind"], binding["kind"], viewer["kind"]) == ("Role", "RoleBinding", "ClusterRole")
    verbs = {verb for rule in viewer["rules"] for verb in rule["verbs"]}
    assert verbs == {"get", "list"}


# -- a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
def test_a_run_with_load_from_the_cluster(fake, tmp_path, shards):
    progress = Stages()
    whole = traffic(12, turns=2)
    with serving(FAST, OTHER_TOKENIZER if shards == 1 else NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        found = target(settings(load=Load(pip="", shards=shards)))
        run = found.measure(PlannedRun(bench("vllm", SPLIT), SPLIT, whole, tmp_path), progress)
    assert nothing_left(fake)
    assert run.problems == []
    assert [record.error for record in run.records] == [None] * 24
    assert {record.request_id for record in run.records} == {r.request_id for r in whole.requests}
    assert {record.prompt_tokens for record in run.records} == {100}
    assert (run.target, run.gpus, run.deployed["workers"]) == ("kubernetes", 6, 3)
    assert run.observed["model"] == run.deployed["model"] == "org/model"
    assert run.observed["workers"] == 3
    assert [entry["shard"] for entry in run.observed["shards"]] == list(range(shards))
    assert all("clock_offset_ms" in entry for entry in run.observed["shards"])
    gates = check_run(run, FixedSchedule(), "time_to_first_token.mean", traffic=whole)
    failed = {gate.name for gate in gates if not gate.passed}
    assert failed <= {"enough requests", "load generator on schedule"}
    assert (tmp_path / "manifest.yaml").read_text().count("kind: DynamoGraphDeployment") == 1
    told = progress.stages
    for part in ("creating", "starting: ", f"starting load: 0 of {shards}", "preparing load",
                 "measuring", "stopping"):  # fmt: skip
        assert any(stage.startswith(part) for stage in told), (part, told)
    assert progress.last == (24, 0, 24)


class Stages(Silent):
    def __init__(self):
        self.stages, self.last = [], None

    def stage(self, name):
        self.stages.append(name)

    def requests(self, done, failed, total):
        self.last = done, failed, total


@pytest.mark.parametrize("source", ["url", "api-server"])
def test_a_run_with_load_from_here(fake, tmp_path, source):
    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        load = Load(source=source, url=server.base_url if source == "url" else "")
        found = target(settings(load=load))
        run = found.measure(PlannedRun(bench("vllm", AGG), AGG, traffic(8), tmp_path), Silent())
    assert nothing_left(fake)
    assert [record.error for record in run.records] == [None] * 8
    assert run.deployed["load"] == {"source": source}
    (limit,) = found.limitations(bench("vllm", AGG), AGG)
    assert ("adds latency" in limit) is (source == "api-server")
    assert TOKEN not in repr(run)


def test_an_own_manifest_takes_the_place_of_the_rendered_one(fake, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "apiVersion: nvidia.com/v1alpha1\nkind: DynamoGraphDeployment\nmetadata: {name: mine}\n"
        "spec:\n  services:\n"
        "    Gateway: {componentType: frontend, extraPodSpec: {mainContainer: "
        "{image: 'a:1.6.1'}}}\n"
        "    agg: {componentType: worker, replicas: 2, extraPodSpec: {mainContainer: "
        "{image: 'a:1.6.1'}}}\n"
    )
    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        load = Load(source="api-server")
        found = target(settings(load=load), manifests={"example/agg": own})
        secret = AGG.but(env={"MY_TOKEN": "hush"})
        planned = PlannedRun(bench("vllm", secret), secret, traffic(4), tmp_path)
        run = found.measure(planned, Silent())
    assert run.deployed["env"] == {"MY_TOKEN": "***"} and "hush" not in repr(run)
    assert any("/services/mine-gateway:8000/proxy/" in path for _, path in fake.requests)
    assert len(run.records) == 4
    assert any("user-provided" in item for item in found.limitations(bench("vllm", AGG), AGG))


def test_a_deployment_that_is_ready_but_does_not_answer(fake, tmp_path):
    with serving(Script(status=500, body=b"no worker"), NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        with pytest.raises(DeploymentError) as caught:
            target().measure(PlannedRun(bench("vllm", AGG), AGG, traffic(4), tmp_path), Silent())
    assert "load shard 0 failed" in str(caught.value)
    assert "does not serve requests: HTTP 500: no worker" in str(caught.value)
    assert nothing_left(fake)
    assert (tmp_path / "cluster" / "reason.txt").exists()


def test_a_deployment_with_another_model(fake, tmp_path):
    with serving(FAST, Character(model="other")) as server:
        fake.frontend_url = server.base_url
        found = target(ClusterSettings(NAMESPACE, limits=Limits(answer=0, delete=5),
                                       load=Load(pip="")))  # fmt: skip
        with pytest.raises(DeploymentError, match=r"has no model 'org/model'; it has other"):
            found.measure(PlannedRun(bench("vllm", AGG), AGG, traffic(4), tmp_path), Silent())
    assert nothing_left(fake)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (waiting("ImagePullBackOff", "no python:3.99"), "ImagePullBackOff: no python:3.99"),
        (unschedulable("0/4 nodes: 4 Insufficient cpu"), "unschedulable: 0/4 nodes: 4 Insuffici"),
        (crashing(3), "crash loop"),
    ],
)
def test_a_load_generator_that_does_not_start(fake, tmp_path, status, message):
    fake.script["load"] = ((0, status),)
    limits = Limits(schedule=0.5, pull=0.5, grace=0.3, delete=5, ready=5)
    found = target(ClusterSettings(NAMESPACE, limits=limits, load=Load(pip="")))
    with pytest.raises(DeploymentError, match="the load generator did not start") as caught:
        found.measure(PlannedRun(bench("vllm", AGG), AGG, traffic(4), tmp_path), Silent())
    assert message in str(caught.value)
    assert nothing_left(fake)


def test_a_load_generator_that_dies_in_the_middle(fake, tmp_path, monkeypatch):
    from pytest_dynamo_bench.targets.kubernetes import load_job

    monkeypatch.setattr(load_job, "_CHECK_SECONDS", 0.2)

    class Killer(Stages):
        def requests(self, done, failed, total):
            for process, _ in fake.load_processes.values():
                process.kill()

    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        with pytest.raises(DeploymentError, match=r"load generator"):
            target().measure(
                PlannedRun(bench("vllm", AGG), AGG, traffic(40, spacing_ms=100), tmp_path), Killer()
            )
    assert nothing_left(fake)


def test_a_worker_that_dies_in_the_middle_ends_the_run_with_its_log(fake, tmp_path, monkeypatch):
    from pytest_dynamo_bench.targets.kubernetes import load_job

    monkeypatch.setattr(load_job, "_CHECK_SECONDS", 0.2)

    class Killer(Stages):
        def requests(self, done, failed, total):
            if done and "agg" not in fake.script:
                fake.script["agg"] = ((0, crashing(1, "OOMKilled", 137)),)
                for pod in fake.named("pods"):
                    fake.logs[pod, True] = "CUDA out of memory\n"

    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        with pytest.raises(DeploymentError) as caught:
            target().measure(
                PlannedRun(bench("vllm", AGG), AGG, traffic(40, spacing_ms=200), tmp_path), Killer()
            )
    told = str(caught.value)
    assert re.search(r"agg-\S+-agg-0 \(agg\): restarted 1 times, last ended with OOMKilled", told)
    assert "  CUDA out of memory" in told
    assert nothing_left(fake)
    logs = list((tmp_path / "cluster" / "logs").glob("*.previous.log"))
    assert logs


def test_a_worker_that_restarts_unseen_makes_the_run_a_problem(fake, tmp_path):
    """A restart that is over before anybody looks shows in the pod's counter."""
    from tests.kubernetes.fake_cluster import running

    class Restarts(Stages):
        def requests(self, done, failed, total):
            fake.script["agg"] = ((0, running(restarts=1)),)
            time.sleep(0.1)

    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        run = target().measure(
            PlannedRun(bench("vllm", AGG), AGG, traffic(4), tmp_path), Restarts()
        )
    assert any(re.search(r"pod agg-\S+ was restarted during the run", p) for p in run.problems)
    assert (tmp_path / "cluster" / "pods.json").exists()


def test_an_api_server_that_restarts_in_the_middle_of_the_load(fake, tmp_path):
    class Restarter(Stages):
        done = False

        def requests(self, done, failed, total):
            if done > 3 and not self.done:
                self.done = True
                threading.Thread(target=fake.restart, args=(0.6,)).start()

    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        run = target().measure(
            PlannedRun(bench("vllm", AGG), AGG, traffic(20, spacing_ms=100), tmp_path), Restarter()
        )
    assert [record.error for record in run.records] == [None] * 20
    assert nothing_left(fake)


# -- the Job -----------------------------------------------------------------------------------


def test_the_jobs_manifest():
    load = Load(shards=3, cpu="2", memory="1Gi", node_selector={"pool": "cpu"},
                tolerations=({"operator": "Exists"},))  # fmt: skip
    found = settings(load=load, image_pull_secret="pull")
    job = job_manifest("graph", found, ["graph-order-0-0"], {"a": "b"})
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (3, 3, "Indexed")
    assert (spec["backoffLimit"], job["metadata"]["labels"]) == (0, {"a": "b"})
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["automountServiceAccountToken"] is False
    (term,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == {
        "nvidia.com/dynamo-graph-deployment-name": "graph"
    }
    assert pod["nodeSelector"] == {"pool": "cpu"} and pod["tolerations"]
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["initContainers"][0]["command"][-1] == "pytest-dynamo-bench"
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "1Gi"}
    text = json.dumps(job)
    assert "sh" not in [part for c in (*pod["containers"], *pod["initContainers"])
                        for part in c["command"]]  # fmt: skip
    assert "privileged" not in text


def test_large_orders_are_cut_into_pieces_that_a_configmap_holds():
    maps = order_maps("graph", [b"x" * 1_500_000, b"y"], {}, "ns")
    assert [m["metadata"]["name"] for m in maps] == [
        "graph-order-0-0", "graph-order-0-1", "graph-order-0-2", "graph-order-1-0"
    ]  # fmt: skip
    assert all(len(json.dumps(m)) < 1_000_000 for m in maps)


# -- cleaning up -------------------------------------------------------------------------------


def test_what_a_killed_run_left_is_listed_and_removed(fake, tmp_path, capsys):
    found = target()
    documents = found._documents(bench("trtllm", SPLIT), SPLIT, NEW_OPERATOR)
    for document in documents:
        found._cluster.create(resource_of(document), document)
    other = KubernetesTarget(KubernetesOptions(settings()), found._cluster, run_id="run-2")
    found._cluster.create(
        "configmaps", other._documents(bench("trtllm", SPLIT), SPLIT, NEW_OPERATOR)[0]
    )
    fake.add("configmaps", {"metadata": {"name": "somebody-elses"}})
    path = tmp_path / "cluster.yaml"
    path.write_text(f"namespace: {NAMESPACE}\n")
    arguments = ["cleanup", "--dynamo-cluster", str(path), "--wait", "5"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "of run run-1" in text and "of run run-2" in text
    assert text.endswith("nothing was deleted; use --run ID or --all\n")
    assert len(fake.named("configmaps")) == 3
    assert main([*arguments, "--run", "run-1"]) == 0
    assert capsys.readouterr().out.endswith("all of it is gone\n")
    assert not fake.named(DGD) and len(fake.named("configmaps")) == 2
    assert main([*arguments, "--run", "run-9"]) == 2
    assert main([*arguments, "--all"]) == 0
    assert set(fake.named("configmaps")) == {"somebody-elses"}
    assert main(arguments) == 0
    assert "nothing is left" in capsys.readouterr().out


# -- through pytest ----------------------------------------------------------------------------

MODULE = """
from pytest_dynamo_bench import *
from pytest_dynamo_bench.targets.base import PlannedRun

AGG = Configuration("agg", "baseline", [Worker(1)])
KV = AGG.but(name="kv", role="treatment", router="kv")
benchmark = Benchmark(
    name="example", question="?", model="org/model", hardware=Hardware("H200", 1),
    traffic=MooncakeTrace("trace.jsonl"), configurations=[AGG, KV],
    claims=[Claim("KV does no harm", "time_to_first_token.mean", "kv", "agg",
                  not_higher_by={"kubernetes": 3})],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""
GATES = "--dynamo-gate=schedule_delay_ms=2000"


@pytest.fixture
def project(pytester, fake):
    pytester.makepyfile(test_example=MODULE)
    trace_file(pytester.path / "trace.jsonl", count=60, spacing_ms=15)
    (pytester.path / "cluster.yaml").write_text(
        f"namespace: {NAMESPACE}\nload: {{pip: '', shards: 2}}\n"
        "limits: {ready: 6, grace: 0.5, delete: 5, answer: 5}\n"
    )
    return pytester


def test_a_claim_on_a_cluster_with_planted_credentials(project, fake):
    with serving(FAST, NOT_DYNAMO) as server:
        fake.frontend_url = server.base_url
        result = project.runpytest(
            "--dynamo-target=kubernetes", "--dynamo-cluster=cluster.yaml", GATES,
            "--junitxml=junit.xml",
        )  # fmt: skip
    result.assert_outcomes(passed=1)
    assert nothing_left(fake)
    written = [p for p in project.path.rglob("*") if p.is_file() and p.suffix != ".py"]
    assert any(p.name == "manifest.yaml" for p in written)
    for path in written:
        if path.name != "kubeconfig":
            assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in result.stdout.str()
    (text,) = (p.read_text() for p in project.path.glob("reports/*/example/kv/run.json"))
    run = json.loads(text)
    assert run["target"] == "kubernetes" and len(run["observed"]["shards"]) == 2


def test_credentials_are_nowhere_when_things_go_wrong(project, fake, monkeypatch):
    """The API server itself repeats the token in an error, a container prints it."""
    monkeypatch.setattr("pytest_dynamo_bench.targets.kubernetes.api._UNREAD_ROLES_SECONDS", 0.2)
    fake.script["agg"] = ((0, crashing(3)),)
    fake.faults.append(
        Fault(lambda m, p: p.endswith("events"), 403, times=99, message=f"Bearer {TOKEN}")
    )
    for name in ("agg", "kv"):
        for number in range(3):
            fake.logs[f"{name}-agg-{number}", True] = TOKEN
    original = fake.add

    def add(resource, content):
        if resource == "pods":
            fake.logs[content["metadata"]["name"], True] = f"using {TOKEN}\n"
        return original(resource, content)

    fake.add = add
    result = project.runpytest("--dynamo-target=kubernetes", "--dynamo-cluster=cluster.yaml")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*crash loop: 3 restarts*", "*using [*][*][*]*"])
    assert TOKEN not in result.stdout.str()
    written = [p for p in project.path.rglob("*") if p.is_file()]
    for path in written:
        assert path.name == "kubeconfig" or TOKEN.encode() not in path.read_bytes(), path


def test_a_dry_run_measures_nothing(project, fake):
    result = project.runpytest(
        "--dynamo-target=kubernetes", "--dynamo-cluster=cluster.yaml", "--dynamo-dry-run", "-rs"
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*--dynamo-dry-run: nothing was started*"])
    assert nothing_left(fake)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "target 'kubernetes' needs --dynamo-cluster FILE"),
        (["--dynamo-cluster=nope.yaml"], "nope.yaml: cannot be read: No such file"),
        (["--dynamo-cluster=cluster.yaml", "--dynamo-manifest=agg"], "must be CONFIGURATION=FILE"),
        (["--dynamo-cluster=bad.yaml"], "bad.yaml, line 2: env.HF_TOKEN: looks like a secret"),
    ],
)
def test_wrong_options_are_usage_errors(project, arguments, message):
    (project.path / "bad.yaml").write_text("namespace: a\nenv: {HF_TOKEN: hf_x}\n")
    result = project.runpytest("--dynamo-target=kubernetes", *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])

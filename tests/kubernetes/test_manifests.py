"""Rendered manifests against the published ones, field by field, and every feature's switch."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_dynamo_bench import (
    Benchmark,
    Configuration,
    Hardware,
    KvOffload,
    MooncakeTrace,
    SpeculativeDecoding,
    Worker,
)
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.kubernetes import manifest
from pytest_dynamo_bench.targets.kubernetes.engine_arguments import engine_command
from pytest_dynamo_bench.targets.kubernetes.graph import (
    NEW_OPERATOR,
    OLD_OPERATOR,
    operator_of_release,
    tag_of,
    version_of,
)
from pytest_dynamo_bench.targets.kubernetes.manifest import (
    claims,
    deployment_name,
    image_of,
    operator_of,
    render,
    with_image,
)
from pytest_dynamo_bench.targets.kubernetes.settings import (
    ClusterSettings,
    EngineSettings,
    Frontend,
    Volume,
)
from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump_all
from tests.kubernetes.forms import OPERATORS, components, shared_env
from tests.kubernetes.real_schemas import admission_problems, problems

PROJECT = Path(__file__).parent.parent.parent
PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("published_manifests.json").read_text("utf-8")
)
del PUBLISHED["_"]
PAGES = [page for page in PUBLISHED if (PROJECT / "benchmarks" / f"{page}.py").exists()]
ARMS = [(page, arm) for page in PAGES for arm in PUBLISHED[page]]
ABSENT = "<absent>"
GB200 = {
    "image_tag": "1.3.1",
    "model_cache": Volume("model-cache", "/model-cache"), "token_secret": "hf-token-secret",
    "compute_domain": "your-compute-domain-channel", "run_as_root": True, "startup_seconds": 3600,
    "node_selector": {"kubernetes.io/arch": "arm64"},
}  # fmt: skip
# What the published set-ups say of their clusters, which is a settings file here.
CLUSTERS = {
    "qwen3_32b_kv_routing": ClusterSettings(
        "ns", image_tag="1.3.1", token_secret="hf-token-secret", custom_resources={"rdma/ib": "2"},
        model_cache=Volume("model-cache", "/home/dynamo/.cache/huggingface"),
        compilation_cache=Volume("compilation-cache", "/home/dynamo/.cache/vllm"),
        frontend=Frontend(cpu="8"),
    ),
    "deepseek_wideep_routing": ClusterSettings("ns", probe_timeout_seconds=5, **GB200),
    "kimi_feature_stack": ClusterSettings("ns", **GB200),
    "llama_topology": ClusterSettings(
        "ns", image_tag="1.3.0", token_secret="hf-token-secret",
        model_cache=Volume("model-cache", "/opt/models"),
    ),
    "qwen36_feature_stack": ClusterSettings(
        "ns", image_tag="1.3.1",
        model_cache=Volume("shared-model-cache", "/home/dynamo/.cache/huggingface"),
        frontend=Frontend(cpu="4", memory="16Gi"),
    ),
    "qwen3_vl_embedding_cache": ClusterSettings(
        "ns", image_tag="1.3.1", token_secret="hf-token-secret",
        model_cache=Volume("model-cache", "/home/dynamo/.cache/huggingface"),
        compilation_cache=Volume("compilation-cache", "/home/dynamo/.cache/vllm"),
        frontend=Frontend(cpu="1"),
    ),
    # Not published.
    "session_affinity": ClusterSettings("ns", image_tag="1.4.2"),
}  # fmt: skip


def benchmark_of(name: str) -> Benchmark:
    path = PROJECT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"manifest_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    benchmark: Benchmark = module.benchmark
    return benchmark


# -- the published manifests in one form with ours ------------------------------------------------


def merge(first, second):
    found = dict(first)
    for key, value in second.items():
        if key == "like":
            continue
        if value == ABSENT:
            found.pop(key, None)
        elif isinstance(value, dict):
            found[key] = merge(found.get(key) or {}, value)
        else:
            found[key] = value
    return found


def published(page: str, arm: str) -> dict[str, Any]:
    entry = PUBLISHED[page][arm]
    base = published(page, entry["like"]) if "like" in entry else {}
    workers = {}
    for role, worker in entry.get("workers", {}).items():
        like = base["workers"][worker["like"]] if "like" in worker else {}
        workers[role] = merge(like or base.get("workers", {}).get(role, {}), worker)
    found = merge(base, {k: v for k, v in entry.items() if k != "workers"})
    found["workers"] = workers
    return found


def rendered(page: str, arm: str, operator=NEW_OPERATOR) -> dict[str, Any]:
    benchmark, settings = benchmark_of(page), CLUSTERS[page]
    documents = render(benchmark, benchmark.configuration(arm), settings, "run", operator)
    return in_short(documents)


def in_short(documents) -> dict[str, Any]:
    """The fields that the published facts have, under the same names."""
    graph = documents[-1]
    files = documents[0]["data"] if len(documents) > 1 else {}
    parts = components(graph)
    claims = {claim: None for part in parts.values() for claim in part["mounts"]}
    frontend = parts.pop("Frontend")
    assert frontend["type"] == "frontend"
    found = {
        "name": graph["metadata"]["name"],
        "framework": graph["spec"]["backendFramework"],
        "pvcs": list(claims),
        "graph_env": variables(shared_env(graph)),
        "config_map": documents[0]["metadata"]["name"] if files else None,
        "frontend": {
            "replicas": frontend["replicas"],
            **frontend["requests"],
            "args": flags(frontend["container"]["args"]),
            "env": variables(frontend["container"].get("env")),
        },
        "workers": {},
    }
    if "services" in graph["spec"]:
        listed = graph["spec"].get("pvcs", [])
        assert listed == [{"create": False, "name": claim} for claim in claims]
    for name, part in parts.items():
        pod, container = part["pod"], part["container"]
        role = "aggregated" if part["type"] == "worker" else part["type"]
        probe = container.get("startupProbe")
        limits = dict(part["limits"])
        gpu = limits.pop("nvidia.com/gpu")
        assert part["requests"] == {"nvidia.com/gpu": gpu}
        found["workers"][role] = without_nothing(
            {
                "service": name,
                "sub_component": None if role == "aggregated" else role,
                "replicas": part["replicas"],
                "gpu": gpu,
                "custom": limits,
                "nodes": part["nodes"],
                "image": container["image"],
                "secret": part["secret"],
                "shared_memory": part["shared_memory"],
                "mounts": part["mounts"],
                "affinity": next(iter(pod.get("affinity", {})), None),
                "compute_domain": next(
                    (c["resourceClaimTemplateName"] for c in pod.get("resourceClaims", ())), None
                ),
                "user": container.get("securityContext", {}).get("runAsUser"),
                "node_selector": pod.get("nodeSelector"),
                "probe": probe
                and {
                    "path": probe["httpGet"]["path"], "port": probe["httpGet"]["port"],
                    "period": probe["periodSeconds"], "failures": probe["failureThreshold"],
                    "timeout": probe["timeoutSeconds"],
                },
                "args": flags(container["args"]),
                "env": variables(container.get("env")),
                "config": yaml.safe_load(files[f"{role}.yaml"]) if files else None,
            }
        )  # fmt: skip
    return without_nothing(found)


def without_nothing(fields):
    return {key: value for key, value in fields.items() if value not in (None, {}, [])}


def variables(items):
    return {item["name"]: item["value"] for item in items or ()}


def flags(argv):
    found, index = {}, 0
    while index < len(argv):
        assert argv[index].startswith("--"), argv
        has_value = index + 1 < len(argv) and not argv[index + 1].startswith("--")
        found[argv[index]] = argv[index + 1] if has_value else None
        index += 1 + has_value
    return found


def differences(ours, theirs, path=()):
    """Paths at which the two differ, with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = {}
        for key in [*ours, *(key for key in theirs if key not in ours)]:
            found |= differences(ours.get(key, ABSENT), theirs.get(key, ABSENT), (*path, key))
        return found
    # An absent branch of several leaves is several differences.
    for one, other in ((ours, theirs), (theirs, ours)):
        if isinstance(one, dict) and one and other == ABSENT:
            found = {}
            for key, value in one.items():
                pair = (value, ABSENT) if one is ours else (ABSENT, value)
                found |= differences(*pair, (*path, key))
            return found
    return {} if ours == theirs else {path: (ours, theirs)}


def listed_differences() -> list[tuple[str, str]]:
    """Page pattern and path pattern of every row of the table in the documentation."""
    text = (PROJECT / "docs" / "manifests.md").read_text("utf-8")
    text = text.partition("## Differences from the published manifests")[2]
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \|", text, re.M)
    return [(page.strip(), path) for page, path in rows]


def matches(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None


def all_differences():
    for page, arm in ARMS:
        for path, values in differences(rendered(page, arm), published(page, arm)).items():
            yield page, arm, " ".join(map(str, path)), values


def test_every_difference_from_the_published_manifests_is_listed_and_none_is_listed_in_vain():
    rows, used, unlisted = listed_differences(), set(), []
    for page, arm, path, (ours, theirs) in all_differences():
        found = [
            row
            for row in rows
            if matches(row[1], path) and (row[0] in ("all", page, f"{page} {arm}"))
        ]
        used.update(found)
        if not found:
            unlisted.append(f"{page} {arm}: {path}: ours {ours!r}, published {theirs!r}")
    assert not unlisted, "\n" + "\n".join(unlisted)
    assert {row for row in rows if row[0].split()[0] in ("all", *PAGES)} == used


@pytest.mark.parametrize(("page", "arm"), ARMS)
def test_what_matters_most_is_as_published(page, arm):
    """Said again without the machinery above: roles, replicas, GPUs, nodes, parallelism."""
    ours, theirs = rendered(page, arm), published(page, arm)
    assert ours["workers"].keys() == theirs["workers"].keys()
    for role, worker in theirs["workers"].items():
        mine = ours["workers"][role]
        for key in ("replicas", "gpu", "nodes"):
            assert mine[key] == worker[key], (role, key)
        for key in ("tensor_parallel_size", "moe_expert_parallel_size", "enable_attention_dp",
                    "max_batch_size", "max_num_tokens", "kv_cache_config",
                    "moe_config"):  # fmt: skip
            assert mine.get("config", {}).get(key) == worker.get("config", {}).get(key), key
        assert mine["args"].get("--tensor-parallel-size") == worker["args"].get(
            "--tensor-parallel-size"
        )
    mode = theirs.get("frontend", {"args": {}})["args"].get("--router-mode", "round-robin")
    assert ours["frontend"]["args"]["--router-mode"] == mode


@pytest.mark.parametrize(("page", "arm"), ARMS)
def test_both_forms_say_the_same(page, arm):
    assert rendered(page, arm, OLD_OPERATOR) == rendered(page, arm, NEW_OPERATOR)


def test_the_comparison_would_see_a_wrong_manifest():
    ours, theirs = rendered("kimi_feature_stack", "disagg-eagle-kv-router"), published(
        "kimi_feature_stack", "disagg-eagle-kv-router"
    )  # fmt: skip
    before = differences(ours, theirs)
    ours["workers"]["prefill"]["config"]["kv_cache_config"]["host_cache_size"] = 1
    del ours["workers"]["decode"]["env"]["NVIDIA_GDRCOPY"]
    more = differences(ours, theirs).keys() - before.keys()
    assert more == {
        ("workers", "prefill", "config", "kv_cache_config", "host_cache_size"),
        ("workers", "decode", "env", "NVIDIA_GDRCOPY"),
    }


# -- every feature on every engine -----------------------------------------------------------------


def bench(engine, configuration):
    return Benchmark(
        name="example", question="?", model="org/model", hardware=Hardware("H200", 16),
        traffic=MooncakeTrace("conversation"), engine=engine, configurations=[configuration],
        claims=[],
    )  # fmt: skip


def command(engine, configuration, mode="aggregated"):
    (worker,) = [item for item in configuration.workers if item.mode == mode]
    return engine_command(bench(engine, configuration), configuration, worker)


AGG = Configuration("agg", "baseline", [Worker(2, tp=2)])
SPLIT = AGG.but(
    name="split",
    workers=[Worker(2, mode="prefill", tp=2), Worker(1, mode="decode", tp=2)],
)
EAGLE = SpeculativeDecoding(3, method="Eagle3", draft_model="org/head")


def one(**fields):
    return AGG.but(workers=[Worker(2, **fields)])


def test_kv_routing():
    kv = AGG.but(router="kv")
    assert "--kv-events-config" in command("vllm", kv).args
    assert "--kv-events-config" in command("sglang", kv).args
    assert "--publish-kv-events" in command("trtllm", kv).args
    for engine in ("vllm", "sglang", "trtllm"):
        assert not {"--kv-events-config", "--publish-kv-events"} & command(engine, AGG).args.keys()


def test_split():
    for mode in ("prefill", "decode"):
        vllm, trtllm, sglang = (command(e, SPLIT, mode) for e in ("vllm", "trtllm", "sglang"))
        for found in (vllm, trtllm, sglang):
            assert found.args["--disaggregation-mode"] == mode
        assert json.loads(vllm.args["--kv-transfer-config"])["kv_connector"] == "NixlConnector"
        assert trtllm.config["cache_transceiver_config"] == {"backend": "UCX"}
        assert sglang.args["--disaggregation-transfer-backend"] == "nixl"


def test_wide_experts():
    wide = one(attention_dp=8, moe_ep=8, wideep=True)
    vllm, trtllm, sglang = (command(e, wide) for e in ("vllm", "trtllm", "sglang"))
    assert vllm.args["--data-parallel-size"] == "8" and "--enable-expert-parallel" in vllm.args
    assert trtllm.config["moe_config"] == {"backend": "WIDEEP"}
    assert (trtllm.config["tensor_parallel_size"], trtllm.config["enable_attention_dp"]) == (
        8,
        True,
    )
    assert sglang.args["--ep-size"] == "8" and "--enable-dp-attention" in sglang.args
    assert sglang.args["--moe-a2a-backend"] == "deepep"


def test_speculative_decoding():
    found = one(speculative=EAGLE)
    assert json.loads(command("vllm", found).args["--speculative-config"]) == {
        "method": "eagle3", "num_speculative_tokens": 3, "model": "org/head"
    }  # fmt: skip
    assert command("trtllm", found).config["speculative_config"]["decoding_type"] == "Eagle3"
    assert command("sglang", found).args["--speculative-algorithm"] == "EAGLE3"


def test_kv_offload():
    found = one(kv_offload=KvOffload(100))
    assert command("vllm", found).args["--kv-offloading-size"] == "100"
    assert command("trtllm", found).config["kv_cache_config"]["host_cache_size"] == 100 * 2**30
    assert command("sglang", found).args["--hicache-size"] == "100"
    prefill = Worker(1, mode="prefill", kv_offload=KvOffload(1))
    split = SPLIT.but(workers=[prefill, Worker(1, mode="decode")])
    connectors = json.loads(command("vllm", split, "prefill").args["--kv-transfer-config"])
    names = [c["kv_connector"] for c in connectors["kv_connector_extra_config"]["connectors"]]
    assert names == ["NixlConnector", "OffloadingConnector"]


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "sglang"])
def test_images(engine):
    assert {"--enable-multimodal", "--frontend-decoding"} <= command(
        engine, one(frontend_decoding=True)
    ).args.keys()
    cached = one(frontend_decoding=True, embedding_cache_gib=0.5)
    if engine == "vllm":
        args = command(engine, cached).args
        assert args["--multimodal-embedding-cache-capacity-gb"] == "0.5"
    else:
        with pytest.raises(TargetError, match="embedding cache"):
            command(engine, cached)


@pytest.mark.parametrize("engine", ["vllm", "trtllm", "sglang"])
def test_several_nodes_and_limits(engine):
    found = one(tp=16, nodes=2, max_num_seqs=7, max_num_batched_tokens=1234, prefix_caching=False)
    documents = render(bench(engine, found), found, ClusterSettings("ns"), "r1", NEW_OPERATOR)
    part = components(documents[-1])["agg"]
    assert (part["nodes"], part["limits"]) == (2, {"nvidia.com/gpu": "8"})
    text = dump_all(documents)
    assert "7" in text and "1234" in text
    off = {"vllm": "--no-enable-prefix-caching", "trtllm": "enable_block_reuse: false",
           "sglang": "--disable-radix-cache"}  # fmt: skip
    assert off[engine] in text


# -- names, settings of the cluster ---------------------------------------------------------------


def test_names_are_legal_short_and_different():
    benchmark = bench("vllm", AGG)
    names = set()
    for number in range(50):
        name = "9" + "very-long.name_" * 5 + str(number)
        configuration = AGG.but(name=name)
        found = deployment_name(benchmark, configuration, f"r{number}")
        assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", found)
        assert len(found) + len("-frontend-0-0") <= 45
        names.add(found)
    assert len(names) == 50


def test_what_the_cluster_says_is_in_the_manifest():
    settings = ClusterSettings(
        "team-a", registry="mirror/ai", image_tag="9.9.0", image_pull_secret="pull-me",
        model_cache=Volume("weights", "/w", size="700Gi"), storage_class="fast",
        compilation_cache=Volume("kernels", "/k"),
        env={"A": "1"}, node_selector={"pool": "gpu"},
        tolerations=({"key": "gpu", "operator": "Exists"},), compute_domain="domain",
        custom_resources={"rdma/ib": "1"},
        engines={"all": EngineSettings(args={"--extra": "x", "--flag": None}, env={"B": "2"},
                                       shared_memory="16Gi")},
    )  # fmt: skip
    benchmark = bench("vllm", SPLIT)
    assert image_of(benchmark, SPLIT, settings) == "mirror/ai/vllm-runtime:9.9.0"
    for operator in OPERATORS:
        (graph,) = render(benchmark, SPLIT, settings, "r1", operator)
        assert graph["apiVersion"] == operator.api_version
        assert graph["metadata"]["namespace"] == "team-a"
        assert shared_env(graph) == [{"name": "A", "value": "1"}]
        for name, part in components(graph).items():
            assert part["pod"]["nodeSelector"] == {"pool": "gpu"}
            assert part["pod"]["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
            assert part["pod"]["imagePullSecrets"] == [{"name": "pull-me"}]
            assert part["mounts"].pop("weights") == "/w"
            if name != "Frontend":
                assert part["limits"] == {"nvidia.com/gpu": "2", "rdma/ib": "1"}
                assert part["claims"] == [{"name": "compute-domain-channel"}]
                assert part["container"]["args"][-3:] == ["--extra", "x", "--flag"]
                assert {"name": "B", "value": "2"} in part["container"]["env"]
                assert part["shared_memory"] == "16Gi"
                assert part["compiled"] == ["kernels"] and part["mounts"] == {"kernels": "/k"}
    claim, _ = claims(settings)
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"]["requests"]["storage"] == "700Gi"


def test_engine_files_are_for_tensorrt_llm_only():
    settings = ClusterSettings("ns", engines={"all": EngineSettings(config={"a": 1})})
    with pytest.raises(
        TargetError, match="config is TensorRT-LLM's; aggregated workers run dynamo"
    ):
        render(bench("vllm", AGG), AGG, settings, "r", NEW_OPERATOR)
    documents = render(bench("trtllm", AGG), AGG, settings, "r", NEW_OPERATOR)
    assert yaml.safe_load(documents[0]["data"]["aggregated.yaml"])["a"] == 1


def test_manifests_are_yaml_that_reads_back():
    for page, arm in ARMS:
        benchmark = benchmark_of(page)
        for operator in OPERATORS:
            cluster = CLUSTERS[page]
            documents = render(benchmark, benchmark.configuration(arm), cluster, "run", operator)
            assert list(yaml.safe_load_all(dump_all(documents))) == documents


# -- images and releases ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.6.1", "1.6.1"),
        ("localhost:5000/vllm-runtime:v1.5.0-rc.1+x.y", "1.5.0"),
        ("vllm-runtime:1.6.1@sha256:abc", "1.6.1"), ("a/b:V1.0.0-7e2", "1.0.0"),
        ("localhost:5000/vllm-runtime", ""), ("vllm-runtime@sha256:abc", ""), ("a:latest", ""),
        ("a:1.6", ""), ("a:1.06.1", ""), ("a:1.6.1-", ""), ("a:1.6.1.2", ""), ("a:wip-1.6.1", ""),
        ("a:1.6.1-01", ""), ("a:1.6.1_x", ""),
    ],
)  # fmt: skip
def test_a_tag_is_read_as_the_operator_reads_it(image, version):
    assert version_of(tag_of(image)) == version
    spec = {"services": {"a": {"extraPodSpec": {"mainContainer": {"image": image}}}}}
    asked = admission_problems({"kind": "DynamoGraphDeployment", "spec": spec}, "1.5")
    assert bool(asked) is not bool(version)


@pytest.mark.parametrize(
    ("release", "operator"),
    [("1.3.1", OLD_OPERATOR), ("1.4.2", OLD_OPERATOR), ("1.5.0", NEW_OPERATOR),
     ("1.6.1", NEW_OPERATOR), ("2.0.0", NEW_OPERATOR), ("", NEW_OPERATOR)],
)  # fmt: skip
def test_the_operator_of_a_release(release, operator):
    assert operator_of_release(release) == operator
    settings = ClusterSettings("ns", image_tag=release or "wip")
    assert operator_of(bench("vllm", AGG), AGG, settings) == operator


def test_an_image_whose_tag_says_no_release_needs_the_release():
    benchmark, own = bench("vllm", AGG), {"agg": "me/vllm:wip"}
    settings = with_image(ClusterSettings("ns"), own, benchmark, AGG)
    with pytest.raises(TargetError, match=r"image me/vllm:wip is not a release .* runtime_version"):
        render(benchmark, AGG, settings, "r", NEW_OPERATOR)
    (old,) = render(benchmark, AGG, settings, "r", OLD_OPERATOR)
    assert {part["runtime"] for part in components(old).values()} == {None}
    for version in ("v1alpha1", "v1beta1"):
        operator = replace(NEW_OPERATOR, version=version)
        told = replace(settings, runtime_version="1.6.1")
        (graph,) = render(benchmark, AGG, told, "r", operator)
        for part in components(graph).values():
            assert (part["runtime"], part["container"]["image"]) == ("1.6.1", "me/vllm:wip")
        assert problems(graph, "1.5") + admission_problems(graph, "1.5") == []
        (graph,) = render(benchmark, AGG, ClusterSettings("ns"), "r", operator)
        assert {part["runtime"] for part in components(graph).values()} == {None}


def test_an_image_of_the_command_line_is_for_all_or_for_one():
    benchmark, settings = bench("vllm", AGG), ClusterSettings("ns", images={"vllm": "theirs:1.6.0"})
    for images, image in (
        ({}, "theirs:1.6.0"), ({"": "mine:1.6.1"}, "mine:1.6.1"),
        ({"": "mine:1.6.1", "agg": "my/agg:1.6.1"}, "my/agg:1.6.1"),
        ({"agg": "my/agg:1.6.1", "example/agg": "this:1.6.1"}, "this:1.6.1"),
        ({"other/agg": "x:1.6.1", "split": "y:1.6.1"}, "theirs:1.6.0"),
    ):  # fmt: skip
        found = with_image(settings, images, benchmark, AGG)
        assert image_of(benchmark, AGG, found) == image


def test_the_image_follows_the_dynamo_of_the_configuration_and_of_its_workers(monkeypatch):
    benchmark, settings = bench("vllm", SPLIT), ClusterSettings("ns", image_tag="1.4.2")
    prefill, _ = SPLIT.workers
    named = {}
    monkeypatch.setattr(manifest, "dynamo_of", lambda part: part and named.get(id(part)))

    def tags(cluster=settings, operator=NEW_OPERATOR):
        (graph,) = render(benchmark, SPLIT, cluster, "r", operator)
        found = components(graph).items()
        return {name: (tag_of(part["container"]["image"]), part["runtime"]) for name, part in found}

    assert set(tags().values()) == {("1.4.2", None)}
    named[id(SPLIT)] = "1.6.1"
    assert set(tags().values()) == {("1.6.1", None)}
    named[id(prefill)] = "1.5.1"
    assert tags() == {"Frontend": ("1.6.1", None), "prefill": ("1.5.1", None),
                      "decode": ("1.6.1", None)}  # fmt: skip
    own = with_image(settings, {"": "me/vllm:wip"}, benchmark, SPLIT)
    assert tags(own) == {"Frontend": ("wip", "1.6.1"), "prefill": ("wip", "1.5.1"),
                         "decode": ("wip", "1.6.1")}  # fmt: skip
    with pytest.raises(TargetError, match=r"is of Dynamo 1.6.1 and has image a:1.4.2: name the"):
        tags(with_image(settings, {"split": "a:1.4.2"}, benchmark, SPLIT))
    named[id(SPLIT)] = "../dynamo/.venv/bin/python"
    with pytest.raises(TargetError, match=r"is no release, .* --dynamo-image split=IMAGE"):
        tags()
    assert tags(own, OLD_OPERATOR)["Frontend"] == ("wip", None)
    with pytest.raises(TargetError, match=r"runtime_version: 1\.6\.1"):
        tags(own)

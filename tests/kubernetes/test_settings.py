"""The settings file of a cluster, a user's own manifest, and the command that prints them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pytest_dynamo_bench import Configuration, Worker
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.kubernetes.settings import (
    ClusterSettings,
    EngineSettings,
    Frontend,
    Limits,
    Load,
    Volume,
    read_settings,
)
from pytest_dynamo_bench.targets.kubernetes.user_manifest import read_manifest

PROJECT = Path(__file__).parent.parent.parent
AGG = Configuration("agg", "baseline", [Worker(1)])

WHOLE = """\
namespace: team-a
image_tag: 1.4.2
model_cache: {claim: model-cache, path: /model-cache, size: 700Gi}
env:
  NCCL_DEBUG: WARN
tolerations:
- key: nvidia.com/gpu
  operator: Exists
load:
  shards: 3
limits:
  ready: 90
engines:
  prefill:
    args: {--max-model-len: 4096, --flag: null}
    config: {max_seq_len: 5}
"""


def settings_file(tmp_path, text):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return path


def test_a_file_is_read(tmp_path):
    found = read_settings(settings_file(tmp_path, WHOLE))
    assert found.namespace == "team-a"
    assert found.model_cache == Volume("model-cache", "/model-cache", "700Gi")
    assert found.env == {"NCCL_DEBUG": "WARN"}
    assert found.tolerations == ({"key": "nvidia.com/gpu", "operator": "Exists"},)
    assert (found.load.shards, found.limits.ready, found.limits.pull) == (3, 90.0, 1800)
    assert found.engines["prefill"] == EngineSettings(
        args={"--max-model-len": 4096, "--flag": None}, config={"max_seq_len": 5}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_tag: x\n", "line 1: namespace is missing"),
        ("namespace: a\nimage_tga: x\n", "line 2: image_tga: unknown field; did you mean "
         "'image_tag'?"),
        ("namespace: a\nenv:\n  A: true\n", "line 3: env.A: must be text, got True; write it in "
         "quotes"),
        ("namespace: a\nload:\n  shards: many\n", "line 3: load.shards: must be a number, got"),
        ("namespace: a\nload:\n  shards: 0\n", "line 3: load.shards: must be 1 or more"),
        ("namespace: a\nload: {source: url}\n", "line 2: load: source: url needs url"),
        ("namespace: a\nload:\n  source: ftp\n", "line 3: load.source: must be one of cluster"),
        ("namespace: A_b\n", "line 1: namespace: 'A_b' is not a valid Kubernetes name"),
        ("namespace: a\nmodel_cache:\n  claim: c\n", "line 2: model_cache: path is missing"),
        ("namespace: a\nmodel_cache: {claim: c, path: d}\n", "line 2: model_cache.path: 'd' must"),
        ("namespace: a\nmodel_cache: [x]\n", "line 2: model_cache: must be a mapping with fields"),
        ("namespace: a\nfrontend:\n  cpu: lots\n", "line 3: frontend.cpu: 'lots' is not a quan"),
        ("namespace: a\ntolerations: {a: b}\n", "line 2: tolerations: must be a list"),
        ("namespace: a\nimages:\n  ollama: x\n", "line 3: images.ollama: must be vllm, trtllm or"),
        ("namespace: a\nengines:\n  dec: {}\n", "line 3: engines.dec: must be one of all, aggreg"),
        ("namespace: a\nlimits:\n  ready: -1\n", "line 3: limits.ready: must be a number from 0"),
        ("namespace: 'a\n", "line 2: is not YAML"),
        ("- a\n", "line 1: must be a mapping with fields"),
        ("", "must be one YAML document"),
        ("namespace: a\n---\nb: c\n", "must be one YAML document"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_file_line_and_field(text, message, tmp_path):
    path = settings_file(tmp_path, text)
    with pytest.raises(TargetError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"nope.yaml: cannot be read: No such file"):
        read_settings(tmp_path / "nope.yaml")


def test_the_documentation_has_every_field():
    text = (PROJECT / "docs" / "run-on-a-cluster.md").read_text("utf-8")
    for kind in (ClusterSettings, Load, Limits, Frontend, EngineSettings, Volume):
        for field in dataclasses.fields(kind):
            assert f"`{field.name}`" in text, field.name


OWN = """\
# a recipe
apiVersion: nvidia.com/v1alpha1
kind: DynamoGraphDeployment
metadata:
  name: mine
spec:
  services:
    Frontend:
      componentType: frontend
      extraPodSpec:
        containers: null
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.3.1
---
apiVersion: v1
kind: ConfigMap
metadata: {name: mine-config, labels: {a: b}}
data: {x: y}
"""


def test_a_users_own_manifest(tmp_path):
    config, graph = read_manifest(
        settings_file(tmp_path, OWN), AGG, ClusterSettings("team-a"), "r1"
    )
    assert (config["kind"], graph["kind"]) == ("ConfigMap", "DynamoGraphDeployment")
    assert "containers" not in graph["spec"]["services"]["Frontend"]["extraPodSpec"]
    for document in (config, graph):
        assert document["metadata"]["namespace"] == "team-a"
        assert document["metadata"]["labels"]["pytest-dynamo-bench/run"] == "r1"
    assert config["metadata"]["labels"]["a"] == "b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1.3.1", "my-tag"), "it still has placeholders: line 13: my-tag"),
        (("1.3.1", "${TAG}"), "line 13: ${TAG}"),
        (("1.3.1", "<IMAGE_TAG>"), "line 13: <IMAGE_TAG>"),
        (("x: y", "x: your-compute-domain"), "line 18: your-compute-domain"),
        (("kind: ConfigMap", "kind: Secret"), "line 16: kind Secret: only DynamoGraphDeployment"),
        (("kind: DynamoGraphDeployment", "kind: ConfigMap"), "must have one DynamoGraphDeployment"),
        (("{name: mine-config, labels: {a: b}}", "{}"), "ConfigMap has no metadata.name"),
        (("nvidia.com/v1alpha1", "v1"), "apiVersion of the DynamoGraphDeployment must be nvidia"),
    ],
)
def test_what_is_wrong_with_an_own_manifest_is_named(change, message, tmp_path):
    path = settings_file(tmp_path, OWN.replace(*change))
    with pytest.raises(TargetError) as caught:
        read_manifest(path, AGG, ClusterSettings("team-a"), "r1")
    assert message in str(caught.value)


KIMI = "benchmarks/kimi_feature_stack.py"


def show(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pytest_dynamo_bench", "show", "--target", "kubernetes", *arguments],
        capture_output=True, text=True, cwd=PROJECT, timeout=60,
    )  # fmt: skip


def test_show_prints_what_would_be_deployed(tmp_path):
    path = settings_file(tmp_path, WHOLE)
    done = show(KIMI, "--dynamo-cluster", str(path), "--configuration", "disagg-eagle-kv-router",
                "--with-claims")  # fmt: skip
    assert done.returncode == 0, done.stderr
    claim, config, graph = yaml.safe_load_all(done.stdout)
    assert claim["kind"] == "PersistentVolumeClaim"
    assert yaml.safe_load(config["data"]["prefill.yaml"])["max_seq_len"] == 5
    assert graph["metadata"]["namespace"] == "team-a"
    assert graph["apiVersion"] == "nvidia.com/v1alpha1" and len(graph["spec"]["services"]) == 3
    assert "# kimi_feature_stack: disagg-eagle-kv-router (nvidia.com/v1alpha1)\n" in done.stdout


def test_show_says_what_is_wrong(tmp_path):
    done = show(
        "benchmarks/kimi_feature_stack.py",
        "--target",
        "kubernetes",
        "--configuration",
        "disagg-eagle",
    )
    assert done.returncode == 2
    assert "there is no configuration 'disagg-eagle'; did you mean" in done.stderr
    image = ("--target", "kubernetes", "--dynamo-image", "disagg-eagle=registry/own:1.6.1")
    done = show("benchmarks/kimi_feature_stack.py", *image)
    assert done.returncode == 2
    assert "has no configuration 'disagg-eagle'" in done.stderr
    path = settings_file(tmp_path, "namespace: a\nload: {shards: x}\n")
    done = show(
        "benchmarks/kimi_feature_stack.py", "--target", "kubernetes", "--dynamo-cluster", str(path)
    )
    assert done.returncode == 2
    assert f"{path}, line 2: load.shards: must be a number" in done.stderr

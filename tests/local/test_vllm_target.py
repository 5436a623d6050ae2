"""The real vLLM backend: Dynamo's own cache and frontend decoding, what listens, what is left."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest

from pytest_dynamo_bench import Concurrency, SlidingWindowImages
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.targets.local.vllm.environment import find_environment
from pytest_dynamo_bench.verdicts.regression import mismatches
from tests.local.test_local_target import Watch, nothing_left, scratch_directories
from tests.local.test_vision_target import BENCHMARK, PIXELS, PLAIN

pytest.importorskip("dynamo.llm", reason="needs ai-dynamo")
try:
    find_environment()
    WHY_NOT = ""
except TargetError as error:
    WHY_NOT = str(error)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT),
]

# Two users of three turns: 18 images, of which 10 are distinct; vLLM's own cache holds four.
TRAFFIC = SlidingWindowImages(
    users=2, turns=3, window=3, text_tokens=100, osl=4, image_width=308, image_height=308,
    schedule=Concurrency(2),
)  # fmt: skip


def measure(configuration, tmp_path, watch):
    target = LocalTarget(LocalOptions(engine="vllm"))
    benchmark = dataclasses.replace(BENCHMARK, traffic=TRAFFIC)
    target.check(benchmark)
    return target.measure(PlannedRun(benchmark, configuration, TRAFFIC.load(), tmp_path), watch)


def test_dynamos_cache_and_the_frontends_decoder_are_at_work(tmp_path):
    before, watch = scratch_directories(), Watch()
    run = measure(PIXELS, tmp_path, watch)
    assert run.problems == [] and [record.error for record in run.records] == [None] * 6
    for record in run.records:
        assert (record.prompt_tokens, record.completion_tokens) == (100, 4)
        assert (record.images, record.images_decoded, record.image_decode_ms) == (3, 0, 0)
        assert record.image_transfer_ms > 0
    cache, beside = run.observed["embedding_cache"], run.observed["encoder_cache"]
    # What comes again is in one of the two caches, and is not encoded.
    assert beside["encoded"] == cache["misses"] == 10
    assert cache["hits"] + beside["hits"] == 8 and cache["hits"] >= 2
    assert cache["hits"] == sum(record.image_cache_hits for record in run.records)
    assert sum(record.encoder_ms for record in run.records) > 0
    assert Metrics(run).worker_decode_share == 0
    assert run.deployed["engine"] == "vllm"
    assert watch.listening <= {"127.0.0.1", "::1"}, "a port is open to other machines"
    assert nothing_left(before)


def test_without_them_the_worker_decodes_and_encodes(tmp_path):
    before, watch = scratch_directories(), Watch()
    run = measure(PLAIN, tmp_path, watch)
    assert [record.error for record in run.records] == [None] * 6
    for record in run.records:
        assert (record.images, record.images_decoded, record.image_cache_hits) == (3, 3, 0)
        assert record.image_decode_ms > 0 and record.image_transfer_ms == 0
    beside = run.observed["encoder_cache"]
    assert beside["encoded"] + beside["hits"] == 18 and beside["encoded"] > 10
    assert "embedding_cache" not in run.observed
    assert Metrics(run).worker_decode_share == 1
    # Another engine's stored run is not taken for one of this.
    other = dataclasses.replace(run, deployed={**run.deployed, "engine": "vision worker"})
    assert mismatches(run, other) == ("deployed.engine: 'vllm', stored 'vision worker'",)
    assert nothing_left(before)


def test_an_engine_that_is_killed_ends_the_run_and_leaves_nothing(tmp_path):
    before = scratch_directories()

    def kill():
        for process in watch.processes:
            if "EngineCore" in process.name():
                process.kill()

    watch = Watch(interfere=kill)
    with contextlib.suppress(DeploymentError):
        run = measure(PLAIN, tmp_path, watch)
        assert run.problems or any(record.error for record in run.records)
    assert nothing_left(before)

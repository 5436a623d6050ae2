"""Images through the real Dynamo: what is counted, what is listening, what is left."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench import (
    Benchmark,
    Concurrency,
    Configuration,
    Hardware,
    SlidingWindowImages,
    Worker,
)
from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.errors import UnavailableError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget
from pytest_dynamo_bench.targets.local.vision import deployment
from tests.local.test_local_target import Watch, nothing_left, scratch_directories

pytest.importorskip("dynamo.llm", reason="needs ai-dynamo")
pytestmark = [pytest.mark.slow, pytest.mark.alone]

PLAIN = Configuration("plain", "baseline", [Worker(1)])
CACHED = PLAIN.but(name="cached", role="treatment", workers=[Worker(1, embedding_cache_gib=1)])
PIXELS = PLAIN.but(
    name="pixels",
    role="treatment",
    workers=[Worker(1, frontend_decoding=True, embedding_cache_gib=1)],
)
# Two users of three turns: 18 images, of which 10 are distinct.
TRAFFIC = SlidingWindowImages(
    users=2, turns=3, window=3, text_tokens=100, osl=4, image_width=96, image_height=64,
    schedule=Concurrency(2),
)  # fmt: skip
BENCHMARK = Benchmark(
    name="pictures", question="?", model="Qwen/Qwen3.6-35B-A3B-FP8", hardware=Hardware("H100", 1),
    traffic=TRAFFIC, configurations=[PLAIN, CACHED, PIXELS], claims=[],
)  # fmt: skip


def measure(configuration, tmp_path, watch=None):
    target = LocalTarget(LocalOptions())
    return target.measure(
        PlannedRun(BENCHMARK, configuration, TRAFFIC.load(), tmp_path), watch or Watch()
    )


def test_repeated_images_skip_the_encoder(tmp_path):
    before, watch = scratch_directories(), Watch()
    run = measure(CACHED, tmp_path, watch)
    metrics = Metrics(run)
    assert run.problems == [] and [record.error for record in run.records] == [None] * 6
    for record in run.records:
        assert (record.prompt_tokens, record.completion_tokens) == (100, 4)
        assert (record.images, record.images_decoded) == (3, 3)
        # A user's first turn has new images only, every later one a single new image.
        assert record.image_cache_hits == (2 if record.turn else 0)
        assert record.encoder_ms > 0 and record.image_decode_ms > 0
        assert record.image_transfer_ms == 0
    assert metrics.embedding_hit_rate == pytest.approx(8 / 18)
    assert metrics.worker_decode_share == 1
    cache = run.observed["embedding_cache"]
    assert (cache["hits"], cache["misses"], cache["evictions"]) == (8, 10, 0)
    assert run.observed["cpu_seconds"]["vision-0"] > 0
    assert watch.listening <= {"127.0.0.1", "::1"}, "a port is open to other machines"
    assert nothing_left(before)


@pytest.mark.skipif(
    deployment.nixl_libraries(resolve(None)) is None, reason=deployment.INSTALL_NIXL
)
def test_the_frontend_decodes_and_the_worker_gets_pixels(tmp_path):
    before, watch = scratch_directories(), Watch()
    run = measure(PIXELS, tmp_path, watch)
    assert [record.error for record in run.records] == [None] * 6
    for record in run.records:
        assert (record.images, record.images_decoded, record.image_decode_ms) == (3, 0, 0)
        assert record.image_transfer_ms > 0
        # The cache knows an image by its pixels, wherever they were decoded.
        assert record.image_cache_hits == (2 if record.turn else 0)
    assert Metrics(run).worker_decode_share == 0
    assert watch.listening <= {"127.0.0.1", "::1"}, "a port is open to other machines"
    assert nothing_left(before)


def test_without_nixl_a_configuration_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "nixl_libraries", lambda _: None)
    with pytest.raises(UnavailableError, match="pip install --no-deps nixl"):
        measure(PIXELS, tmp_path)

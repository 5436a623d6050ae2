"""The parts of the vision worker: engine, encoder, cache, and what joins their measures."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from collections import OrderedDict
from unittest import mock

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import (
    Benchmark,
    Concurrency,
    Configuration,
    Hardware,
    PooledImages,
    Worker,
)
from pytest_dynamo_bench.errors import TargetError, UnavailableError
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.local.vision import deployment
from pytest_dynamo_bench.targets.local.vision.embedding_cache import EmbeddingCache
from pytest_dynamo_bench.targets.local.vision.encoder import (
    VisionEncoder,
    image_tokens,
    token_grid,
)
from pytest_dynamo_bench.targets.local.vision.engine import Engine, Limits, Request
from pytest_dynamo_bench.targets.local.vision.pollers import Pollers, lower_poller_priority
from pytest_dynamo_bench.targets.local.vision.worker import decode
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import NoiseImages, SyntheticTraffic

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


# --- embedding cache --------------------------------------------------------------------


@pytest.fixture(scope="module")
def dynamos_cache():
    """What stands in for PyTorch is gone again afterwards."""
    pytest.importorskip("dynamo.common", reason="needs ai-dynamo")
    with mock.patch.dict(sys.modules):
        yield


def embedding(kilobytes):
    return np.zeros((kilobytes, 512), np.float16)


@pytest.mark.usefixtures("dynamos_cache")
def test_the_least_recently_used_embedding_goes_first():
    cache = EmbeddingCache(3 * 1024)
    for key in ("a", "b", "c"):
        assert cache.get(key) is None
        cache.put(key, embedding(1))
    assert cache.get("a") is not None
    cache.put("d", embedding(1))
    assert cache.get("b") is None and cache.get("a") is not None
    assert cache.counts() == {
        "capacity_bytes": 3072, "bytes": 3072, "entries": 3, "hits": 2, "misses": 4, "evictions": 1,
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=60), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
@pytest.mark.usefixtures("dynamos_cache")
def test_a_cache_never_holds_more_than_its_capacity(puts, capacity):
    cache = EmbeddingCache(capacity * 1024)
    expected = OrderedDict()
    for key, kilobytes in puts:
        found = cache.get(str(key))
        assert (found is not None) == (key in expected)
        if found is None:
            cache.put(str(key), embedding(kilobytes))
            if kilobytes <= capacity:
                expected[key] = kilobytes
                while sum(expected.values()) > capacity:
                    expected.popitem(last=False)
        else:
            assert len(found) == expected[key]
            expected.move_to_end(key)
        counts = cache.counts()
        assert counts["bytes"] == 1024 * sum(expected.values()) <= cache.capacity_bytes
        assert counts["hits"] + counts["misses"] <= len(puts)
    counts = cache.counts()
    assert counts["entries"] == len(expected) <= counts["misses"] - counts["evictions"]


# --- encoder ----------------------------------------------------------------------------


def test_embeddings_have_the_size_of_the_models():
    encoder = VisionEncoder(2048)
    made = encoder.encode(NoiseImages(640, 480).pixels(0))
    assert made.shape == (300, 2048) == (image_tokens(640, 480), 2048)
    assert made.dtype == np.float16 and np.isfinite(made).all() and made.astype(float).std() > 0.1
    assert np.array_equal(made, VisionEncoder(2048).encode(NoiseImages(640, 480).pixels(0)))
    assert not np.array_equal(made, encoder.encode(NoiseImages(640, 480).pixels(1)))


@pytest.mark.parametrize(
    ("size", "grid"),
    # The published images have 2,550 tokens each.
    [((1080, 2400), (34, 75)), ((640, 480), (20, 15)), ((1, 1), (1, 1)), ((50, 30), (2, 1))],
)
def test_sides_are_rounded_to_multiples_of_32(size, grid):
    assert token_grid(*size) == grid
    assert VisionEncoder(4).encode(NoiseImages(*size).pixels(0)).shape == (grid[0] * grid[1], 4)


def test_a_patch_stays_where_it_is():
    pixels = np.zeros((64, 96, 3), np.uint8)
    changed = pixels.copy()
    changed[40:44, 70:74] = 255
    encoder = VisionEncoder(8)
    differs = (encoder.encode(pixels) != encoder.encode(changed)).any(axis=1)
    assert differs.tolist() == [False] * 5 + [True]


def test_decoding_gives_the_pixels_back():
    images = NoiseImages(33, 21)
    assert np.array_equal(decode(images.data_url(2)), images.pixels(2))
    with pytest.raises(ValueError, match="must be data URLs"):
        decode("http://x/y.png")


# --- engine -----------------------------------------------------------------------------


class Times:
    """A step costs 10 ms for its prefill and 1 ms for its decoding, and is noted."""

    def __init__(self):
        self.prefills, self.decodes = [], []

    def prefill_after_prefix_ms(self, new, prefix):
        self.prefills.append((new[0], prefix[0]))
        return np.array([10.0])

    def decode_ms(self, active, context):
        self.decodes.append((active[0], context[0]))
        return np.array([1.0])


async def run(times, limits, requests):
    """Run requests to their end; seconds that it took."""
    engine = Engine(times, limits)
    for request in requests:
        engine.submit(request)
    stepping = asyncio.create_task(engine.run())
    started = asyncio.get_running_loop().time()
    for request in requests:
        for _ in range(request.output_tokens):
            await request.produced.get()
    took = asyncio.get_running_loop().time() - started
    stepping.cancel()
    return took


async def test_a_prompt_is_processed_in_chunks_and_then_decoded():
    times = Times()
    await run(times, Limits(8, 1000, 10_000), [Request(2500, 3)])
    assert times.prefills == [(1000, 0), (1000, 1000), (500, 2000)]
    assert times.decodes == [(2501, 2501), (2502, 2502)]


async def test_decoding_goes_on_while_prompts_are_processed():
    times = Times()
    await run(times, Limits(8, 1000, 10_000), [Request(900, 4), Request(1500, 2)])
    # The second prompt gets what the first leaves of a step.
    assert times.prefills[:2] == [(1000, pytest.approx(0)), (999, pytest.approx(100))]
    assert len(times.prefills) == 3
    assert times.decodes[0] == (901, 901)


async def test_requests_wait_for_kv_cache_and_for_a_place():
    times = Times()
    await run(times, Limits(8, 1000, 250), [Request(100, 5), Request(100, 5), Request(100, 5)])
    assert len(times.prefills) == 2
    times = Times()
    await run(times, Limits(1, 1000, 10_000), [Request(100, 5), Request(100, 5)])
    assert len(times.prefills) == 2 and all(active < 110 for active, _ in times.decodes)
    with pytest.raises(ValueError, match="does not fit a KV cache of 99"):
        Engine(times, Limits(1, 1000, 99)).submit(Request(99, 1))


async def test_a_cancelled_request_makes_room():
    gone = Request(100, 10_000)
    gone.cancelled = True
    await run(Times(), Limits(1, 1000, 20_000), [Request(10, 2)])
    engine = Engine(Times(), Limits(1, 1000, 20_000))
    for request in (gone, kept := Request(10, 1)):
        engine.submit(request)
    stepping = asyncio.create_task(engine.run())
    assert await asyncio.wait_for(kept.produced.get(), 5) == 1
    stepping.cancel()


async def test_images_are_encoded_when_the_prompt_reaches_them_and_the_step_waits():
    encoded = []

    async def encode(image):
        encoded.append((image, len(times.prefills)))
        await asyncio.sleep(0.03)

    times = Times()
    request = Request(2500, 1, image_starts=(500, 1500, 2100), encode=encode)
    took = await run(times, Limits(8, 1000, 10_000), [request])
    assert encoded == [(0, 0), (1, 1), (2, 2)]
    # Three steps of 10 ms, and three images of 30 ms.
    assert took == pytest.approx(0.12, abs=0.06) and took >= 0.115


# --- deployment -------------------------------------------------------------------------

SOURCE = PooledImages(
    requests=100, images_per_request=1, pool=50, text_tokens=40, osl=4, image_width=64,
    image_height=64, schedule=Concurrency(4),
)  # fmt: skip
CACHED = Configuration(
    "cached", "treatment", [Worker(2, embedding_cache_gib=2, max_num_seqs=7, kv_blocks=10)]
)
WORKERS = deployment.VisionWorkers()
PIXELS = CACHED.but(name="pixels", workers=[Worker(1, frontend_decoding=True)])


def benchmark(**changes):
    fields = {
        "name": "b", "question": "?", "model": "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8",
        "hardware": Hardware("GB200", 1), "traffic": SOURCE, "configurations": [CACHED, PIXELS],
        "claims": [],
    }  # fmt: skip
    return Benchmark(**{**fields, **changes})


def test_configurations_have_the_features_of_their_workers():
    assert CACHED.features == {"embedding_cache"}
    assert PIXELS.features == {"frontend_decoding"}


def test_a_cache_shrinks_with_the_images(tmp_path):
    scaled = dataclasses.replace(SOURCE, requests=20, pool=5)
    plan = deployment.vision_plan(benchmark(), scaled.load())
    assert plan.image_bytes == 5 * 4 * 8192 * 2 and plan.share == 0.1
    assert plan.cache_bytes(CACHED.workers[0]) == round(0.2 * 2**30)
    assert plan.cache_bytes(PIXELS.workers[0]) == 0
    commands = WORKERS.serving(benchmark(), CACHED, scaled.load(), tmp_path).commands
    assert list(commands) == ["vision-0", "vision-1"]
    argv = commands["vision-1"]
    for option, value in (
        ("--embedding-cache-bytes", str(round(0.2 * 2**30))), ("--embedding-values", "8192"),
        ("--kv-tokens", "640"), ("--max-num-seqs", "7"),
        ("--measures", str(tmp_path / "images-1.jsonl")),
    ):  # fmt: skip
        assert argv[argv.index(option) + 1] == value
    assert "--frontend-decoding" not in argv
    text = " ".join(WORKERS.limitations(benchmark(), CACHED, scaled.load()))
    assert "ours" in text and "modelled" in text and "10 %" in text


def test_frontend_decoding_without_nixl_is_skipped_with_what_to_install(monkeypatch):
    monkeypatch.setattr(deployment, "nixl_libraries", lambda dynamo: None)
    WORKERS.check_configuration(benchmark(), CACHED)
    with pytest.raises(UnavailableError, match=r"pip install --no-deps nixl==.* nixl-cu13=="):
        WORKERS.check_configuration(benchmark(), PIXELS)


@pytest.mark.parametrize(
    ("changes", "configuration", "message"),
    [
        ({"model": "Qwen/Qwen3-32B"}, None, "takes no images"),
        ({"hardware": Hardware("A100", 1)}, CACHED, "no engine profile of"),
        (
            {},
            CACHED.but(workers=[Worker(1, mode="prefill"), Worker(1, mode="decode")]),
            "aggregated workers only",
        ),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_brought_up(
    changes, configuration, message
):
    asked = benchmark(**changes)

    def check():
        if configuration is None:
            deployment.vision_plan(asked, SOURCE.load())
        else:
            WORKERS.check_configuration(asked, configuration)

    with pytest.raises(TargetError, match=message):
        check()


def line(name, hits, misses, evictions=0):
    counts = {"capacity_bytes": 9, "bytes": 5, "entries": 2}
    return {
        "request": name, "images": 2, "image_cache_hits": 1, "images_decoded": 2,
        "image_decode_ms": 3.5, "image_transfer_ms": 0.0, "encoder_ms": 7.5,
        "cache": {**counts, "hits": hits, "misses": misses, "evictions": evictions},
    }  # fmt: skip


def test_measures_join_the_records_that_they_are_of(tmp_path):
    warm, one, two = line("w", 0, 2), line("a", 1, 3), line("b", 2, 4, 1)
    (tmp_path / "images-0.jsonl").write_text("".join(json.dumps(x) + "\n" for x in (warm, one)))
    (tmp_path / "images-1.jsonl").write_text(json.dumps(two) + '\n{"request": "cut o')
    measures = WORKERS.measures(tmp_path)
    assert list(measures) == ["w", "a", "b"]
    records = [
        RequestRecord(name, name, 0, 0.0, 0.0, (1.0,), 2.0, 5, 5, response_id=f"chatcmpl-{name}")
        for name in ("a", "b", "lost")
    ]
    joined = WORKERS.with_measures(records, measures)
    assert [record.images for record in joined] == [2, 2, None]
    assert joined[0].encoder_ms == 7.5 and joined[1].images_decoded == 2
    # What the warm-up had counted on the first worker is not the run's.
    assert WORKERS.summary(measures, records)["embedding_cache"] == {
        "capacity_bytes": 18, "bytes": 10, "entries": 4, "hits": 1 + 2, "misses": 1 + 4,
        "evictions": 1,
    }  # fmt: skip


def test_on_replay_the_reason_for_no_claims_is_said():
    target = ReplayTarget()
    assert "vision encoder" in target.why_not_claimed(benchmark())
    text = benchmark(traffic=SyntheticTraffic(isl=9, osl=2, requests=3, schedule=Concurrency(1)))
    assert target.why_not_claimed(text) == ""


async def test_threads_that_poll_get_the_lowest_priority_and_others_keep_theirs():
    commands = ("while True: pass", "import time; time.sleep(60)")
    polling, idle = (subprocess.Popen([sys.executable, "-c", command]) for command in commands)
    try:
        await asyncio.sleep(0.3)
        pollers = await lower_poller_priority([polling.pid, idle.pid, 2**22 + 1])
        assert pollers.threads == ((polling.pid, polling.pid),)
        assert psutil.Process(polling.pid).nice() == 19
        assert psutil.Process(idle.pid).nice() < 19
        assert pollers.seconds() > 0
    finally:
        for process in (polling, idle):
            process.kill()
            process.wait()
    assert pollers.seconds() == 0 == Pollers().seconds()

"""The shipped profiles: found, documented, and physically possible."""

import dataclasses

import numpy as np
import pytest

from pytest_dynamo_bench import SpeculativeDecoding, Worker
from pytest_dynamo_bench.engines import find_profile, kv_capacity_tokens
from pytest_dynamo_bench.engines.catalog import SHIPPED
from pytest_dynamo_bench.engines.profiles import ProfileTables, shipped_directory
from pytest_dynamo_bench.errors import TargetError


def shipped(spec):
    worker = Worker(
        1, tp=spec.tp, attention_dp=spec.attention_dp, moe_ep=spec.moe_ep,
        speculative=SpeculativeDecoding(spec.draft_tokens) if spec.draft_tokens else None,
    )  # fmt: skip
    return find_profile(spec.model, spec.gpu, spec.engine, worker)


PROFILES = pytest.mark.parametrize("profile", [*map(shipped, SHIPPED)], ids=lambda p: p.name)
QWEN = "Qwen/Qwen3-32B"
KIMI = "nvidia/Kimi-K2.5-NVFP4"


def test_every_row_of_the_catalog_is_shipped():
    found = {path.stem for path in shipped_directory().glob("*.json")}
    assert found == {spec.name for spec in SHIPPED}


@PROFILES
def test_provenance_is_complete(profile):
    provenance = profile.provenance
    for field in ("source_model", "tool_version", "kernel_data", "command", "date", "operations"):
        assert provenance[field], field
    spec = next(spec for spec in SHIPPED if spec.name == profile.name)
    made_from = dataclasses.asdict(spec) | {"source_model": spec.source_model or spec.model}
    assert {key: provenance[key] for key in made_from} == made_from


@PROFILES
def test_a_longer_prompt_or_a_larger_batch_never_takes_less_time(profile):
    tables = profile.tables
    for array, axes in (
        (tables.prefill_ttft_ms, (0,)),
        (tables.prefill_ms_by_prefix, (0, 1)),
        (tables.decode_itl, (0,)),
    ):
        assert np.isfinite(array).all() and (array > 0).all()
        for axis in axes:
            assert (np.diff(array, axis=axis) >= -1e-9).all()
    for axis_values in (tables.prefill_isl, tables.decode_active_kv_tokens, tables.prefix_tokens):
        assert (np.diff(axis_values) > 0).all()


@PROFILES
def test_a_batch_of_longer_contexts_never_takes_less_time(profile):
    context = np.geomspace(256, 131_072, 40)
    for batch in (1, 8, 64):
        kept = context[context * batch < 4e6]
        steps = profile.tables.decode_ms(kept * batch, kept)
        # The table's axes are KV tokens and context; along a fixed batch it is rising only
        # as far as its interpolation is exact.
        assert (steps[1:] >= steps[:-1] * 0.93).all()


@PROFILES
def test_axes_reach_the_longest_prompts(profile):
    assert profile.tables.prefill_isl[-1] >= 200_000
    assert profile.tables.decode_context_length[-1] >= 200_000


@PROFILES
def test_capacity_agrees_with_the_estimator_of_aiconfigurator(profile):
    provenance = profile.provenance
    reference = provenance["kv_capacity_estimate"]
    worker = Worker(
        1,
        tp=provenance["tp"],
        attention_dp=provenance["attention_dp"],
        moe_ep=provenance["moe_ep"] if provenance["moe_ep"] > 1 else None,
        max_num_batched_tokens=reference["max_num_batched_tokens"],
    )
    tokens = kv_capacity_tokens(
        provenance["model"],
        provenance["gpu"],
        worker,
        provenance["engine"],
        reference["memory_fraction"],
    )
    # Mixtures of experts are the uncertain case: how much of the weights around the experts,
    # and of the all-to-all buffers under attention data parallelism, every rank holds.
    bound = 0.30 if worker.attention_dp > 1 else 0.20 if worker.moe_ep else 0.07
    assert tokens == pytest.approx(reference["tokens"], rel=bound)


def test_a_profile_is_found_by_its_deployment():
    assert find_profile(QWEN, "H200", "vllm", Worker(8, tp=2)).name.startswith("Qwen3-32B--H200")
    assert find_profile(QWEN, "H200", "vllm", Worker(8, tp=4)) is None
    assert find_profile(QWEN, "H200", "sglang", Worker(8, tp=2)) is None
    assert find_profile("nobody/knows", "H200", "vllm", Worker(8, tp=2)) is None


def test_speculative_decoding_needs_a_profile_that_prices_the_drafts():
    plain = Worker(3, tp=8, moe_ep=8)
    drafting = dataclasses.replace(plain, speculative=SpeculativeDecoding(3))
    step = np.array([64 * 8192.0]), np.array([8192.0])
    without = find_profile(KIMI, "GB200", "trtllm", plain)
    with_drafts = find_profile(KIMI, "GB200", "trtllm", drafting)
    assert with_drafts.tables.decode_ms(*step) > without.tables.decode_ms(*step)
    assert (
        find_profile(
            KIMI, "GB200", "trtllm",
            dataclasses.replace(plain, speculative=SpeculativeDecoding(2)),
        )
        is None
    )  # fmt: skip


def test_the_reader_reads_between_and_beyond_the_points_as_dynamo_does():
    tables = ProfileTables(
        np.array([1.0, 3.0]), np.array([10.0, 20.0]), np.array([0.0, 100.0]),
        np.array([10.0, 20.0]), np.array([[2.0, 4.0], [6.0, 8.0]]),
        np.array([0.0, 10.0]), np.array([[10.0, 30.0], [20.0, 40.0]]),
    )  # fmt: skip
    assert tables.prefill_ms(np.array([2.0, 5.0])).tolist() == [15.0, 30.0]
    assert tables.decode_ms(np.array([50.0]), np.array([15.0])).tolist() == [5.0]
    assert tables.prefill_after_prefix_ms(np.array([2.0]), np.array([5.0])).tolist() == [25.0]


def test_a_users_profile_comes_first(tmp_path):
    shipped = find_profile(QWEN, "H200", "vllm", Worker(1, tp=2))
    (tmp_path / "mine.json").write_text(shipped.path.with_suffix(".json").read_text())
    with pytest.raises(TargetError, match=r"mine\.npz is missing"):
        find_profile(QWEN, "H200", "vllm", Worker(1, tp=2), [tmp_path])
    shipped.tables.write(tmp_path / "other.npz")
    (tmp_path / "mine.json").rename(tmp_path / "other.json")
    assert find_profile(QWEN, "H200", "vllm", Worker(1, tp=2), [tmp_path]).name == "other"


def test_provenance_that_is_none_is_an_error_with_its_path(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(TargetError, match=r"x\.json"):
        find_profile(QWEN, "H200", "vllm", Worker(1, tp=2), [tmp_path])

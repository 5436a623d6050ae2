"""The cost of attending to what comes before a prefill's new tokens."""

import numpy as np
import pytest

from pytest_dynamo_bench import Worker
from pytest_dynamo_bench.engines import find_profile, price_prefills, with_surcharge
from pytest_dynamo_bench.engines.profiles import ProfileTables


def tables(cost_of_prefix=1e-3):
    """A prefill of n tokens after p: 2 n + c n p."""
    new = np.array([1.0, 100.0, 1000.0])
    prefix = np.array([0.0, 5000.0])
    by_prefix = 2 * new[:, None] + cost_of_prefix * new[:, None] * prefix[None, :]
    flat = np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.ones((2, 2))
    return ProfileTables(new, by_prefix[:, 0].copy(), *flat, prefix, by_prefix)


def test_chunks_attend_to_the_chunks_before_them():
    pricing = price_prefills(tables(), [250], [0], step_tokens=100)
    assert pricing.new_tokens == 250
    assert pricing.table_ms == pytest.approx(500)
    assert pricing.source_ms == pytest.approx(500 + 1e-3 * (100 * 100 + 50 * 200))


def test_new_tokens_attend_to_a_cached_prefix():
    pricing = price_prefills(tables(), [250, 40], [200, 0], step_tokens=100)
    assert pricing.new_tokens == 90
    assert pricing.source_ms - pricing.table_ms == pytest.approx(1e-3 * 50 * 200)


def test_the_last_token_of_a_cached_prompt_is_processed_anew():
    assert price_prefills(tables(), [64], [64], step_tokens=100).new_tokens == 1


def test_the_surcharge_makes_the_total_right():
    plain = tables()
    inputs, cached = [250, 900, 3000], [0, 200, 1024]
    pricing = price_prefills(plain, inputs, cached, step_tokens=100)
    charged = with_surcharge(plain, pricing.surcharge_ms_per_token)
    again = price_prefills(charged, inputs, cached, step_tokens=100)
    assert again.table_ms == pytest.approx(pricing.source_ms)


def test_long_prompts_of_a_real_profile_cost_twice_what_the_table_says():
    profile = find_profile("Qwen/Qwen3-32B", "H200", "vllm", Worker(1, tp=2))
    pricing = price_prefills(profile.tables, [100_000], [0], 8192)
    assert pricing.table_ms == pytest.approx(5780, rel=0.01)
    assert pricing.source_ms == pytest.approx(13_362, rel=0.01)

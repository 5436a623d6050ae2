"""The resampler draws the same requests however they are counted."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.verdicts.blocks import circular_block_sums
from pytest_dynamo_bench.verdicts.resampling import counted, drawn_blocks, requests_of, widening


@given(length=st.integers(1, 9), blocks=st.integers(2, 9), seed=st.integers(0, 99))
def test_blocks_that_are_counted_are_the_requests_that_are_taken(length, blocks, seed):
    n = length * blocks
    starts = drawn_blocks(n, length, 5, np.random.default_rng(seed))
    assert starts.shape == (5, blocks)
    values = np.random.default_rng(seed).normal(size=(n, 1))
    sums = counted(starts, n) @ circular_block_sums(values, length)
    taken = [values[requests_of(row, length, n)].sum() for row in starts]
    assert np.allclose(sums[:, 0], taken)


@given(length=st.integers(1, 9), n=st.integers(2, 60), seed=st.integers(0, 99))
def test_a_resample_has_as_many_requests_as_there_are(length, n, seed):
    (row,) = drawn_blocks(n, length, 1, np.random.default_rng(seed))
    taken = requests_of(row, length, n)
    assert len(taken) == n and taken.min() >= 0 and taken.max() < n


def test_few_blocks_widen_more_than_many():
    assert widening(100, 50) > widening(100, 10) > widening(10_000, 10) > 1

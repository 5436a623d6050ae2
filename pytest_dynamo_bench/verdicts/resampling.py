"""The resampler: blocks of consecutive requests, drawn with replacement, going round at the end.

That is the circular block bootstrap of Politis & Romano (1992). Verdicts apply a statistic to how
often each block was drawn, attributions to the requests themselves; both draw here.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse, special

from pytest_dynamo_bench.arrays import IntArray


def drawn_blocks(n: int, length: int, resamples: int, generator: np.random.Generator) -> IntArray:
    """Starts of the blocks of every resample, uniform over all n positions.

    Returns:
        (resamples, ceil(n / length)) starts.
    """
    return generator.integers(0, n, size=(resamples, -(-n // length)))


def counted(starts: IntArray, n: int) -> sparse.csr_array:
    """(resamples, n) how often each block start was drawn, sparse."""
    resamples, blocks = starts.shape
    ones = np.ones(starts.size)
    offsets = np.arange(resamples + 1) * blocks
    return sparse.csr_array((ones, starts.ravel(), offsets), shape=(resamples, n))


def requests_of(starts: IntArray, length: int, n: int) -> IntArray:
    """(n,) the requests of one resample; of the last block what fits."""
    return np.asarray(((starts[:, None] + np.arange(length)) % n).ravel()[:n])


def widening(n: int, length: int) -> float:
    """What deviations have to be enlarged by, since there are few blocks.

    ``sqrt(m / (m - 1))``, and Student's t with m - 1 degrees of freedom against the normal, for m
    blocks.
    """
    blocks = max(n / length, 2.0)
    student = special.stdtrit(blocks - 1, 0.975) / special.ndtri(0.975)
    return math.sqrt(blocks / (blocks - 1)) * float(student)

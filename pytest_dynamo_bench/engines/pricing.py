"""What a prefill costs beyond its new tokens: attending to what comes before them.

Dynamo's table prices a prefill step by its new tokens alone. But the tokens of a later chunk
of a long prompt attend to the chunks before it, and tokens after a cached prefix attend to
that. For Qwen3-32B on two H200 a prompt of 100,000 tokens takes 13.4 s by the source of the
table and 5.8 s by the table, eight thousand tokens at a time.

The cost of attending to a prefix is proportional to new tokens times prefix, and adds up over
the requests of a step. So the mean cost for each new token of a given traffic can be added to
the table, however the steps come to be mixed: the total is then right, and only its division
between early and late tokens of a prompt isn't.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pytest_dynamo_bench.engines.profiles import ProfileTables


@dataclass(frozen=True)
class PrefillPricing:
    """How a table prices the prefills of a traffic, and how its source does.

    Attributes:
        new_tokens: tokens that had to be processed.
        table_ms: their time by the table alone, chunk by chunk.
        source_ms: their time with what comes before each chunk.
    """

    new_tokens: int
    table_ms: float
    source_ms: float

    @property
    def surcharge_ms_per_token(self) -> float:
        """What each new token has to be charged for the total to be right, milliseconds."""
        return max(0.0, self.source_ms - self.table_ms) / max(self.new_tokens, 1)


def price_prefills(
    tables: ProfileTables,
    input_tokens: Sequence[int],
    cached_tokens: Sequence[int],
    step_tokens: int,
) -> PrefillPricing:
    """Price the prefills of some requests by the table and by its source.

    Args:
        tables: the profile; its ``prefill_ms_by_prefix`` is the source.
        input_tokens: prompt length of each request.
        cached_tokens: tokens of each prompt that were found in a cache.
        step_tokens: most tokens of a step; longer prompts are processed in such chunks.
    """
    inputs = np.asarray(input_tokens, dtype=np.int64)
    starts = np.minimum(np.asarray(cached_tokens, dtype=np.int64), inputs - 1)
    counts = -(-(inputs - starts) // step_tokens)
    request = np.repeat(np.arange(len(inputs)), counts)
    chunk = np.arange(len(request)) - np.repeat(np.cumsum(counts) - counts, counts)
    prefix = (starts[request] + chunk * step_tokens).astype(np.float64)
    new = np.minimum(inputs[request] - prefix, float(step_tokens))
    return PrefillPricing(
        new_tokens=int(new.sum()),
        table_ms=float(tables.prefill_ms(new).sum()),
        source_ms=float(tables.prefill_after_prefix_ms(new, prefix).sum()),
    )


def with_surcharge(tables: ProfileTables, ms_per_token: float) -> ProfileTables:
    """The tables with every new token of a prefill costing so much more."""
    return dataclasses.replace(
        tables, prefill_ttft_ms=tables.prefill_ttft_ms + ms_per_token * tables.prefill_isl
    )

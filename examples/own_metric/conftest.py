"""Two metrics of our own: functions of the requests of a run, as a pandas DataFrame."""

from __future__ import annotations

import pandas as pd

from pytest_dynamo_bench import Metric


def slow_starts(requests: pd.DataFrame) -> tuple[pd.Series, int]:
    """Whether the first token took more than two seconds, and how much each request counts."""
    return requests["first_token_ms"] - requests["sent_ms"] > 2000, 1


def ttft_per_1000_prompt_tokens(requests: pd.DataFrame) -> pd.Series:
    """Time to first token by the length of the prompt, in ms."""
    ttft_ms = requests["first_token_ms"] - requests["sent_ms"]
    return 1000 * ttft_ms / requests["input_tokens"]


def pytest_dynamo_bench_metrics() -> list[Metric]:
    """What claims, tolerances and reports know from here on."""
    return [
        Metric.of_frame(
            "slow_starts",
            slow_starts,
            kind="ratio",
            unit="share",
            better="lower",
            definition="requests whose first token took more than two seconds / requests",
        ),
        Metric.of_frame(
            "ttft_per_1000_prompt_tokens",
            ttft_per_1000_prompt_tokens,
            unit="ms",
            better="lower",
            definition="per request: time to first token / prompt tokens * 1,000",
            title="TTFT per 1,000 tokens",
        ),
    ]

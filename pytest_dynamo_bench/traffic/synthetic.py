"""Prompts of one length that have nothing in common."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dynamo_bench.traffic.fields import check_whole
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    Concurrency,
    GeneratedTraffic,
    TrafficRequest,
)


@dataclass(frozen=True)
class SyntheticTraffic(GeneratedTraffic):
    """Requests of fixed lengths, each prompt distinct from its first block on.

    The same as AIPerf's ``--synthetic-input-tokens-mean`` and ``--output-tokens-mean`` with a
    standard deviation of 0. Prompts share no block, so caches have no effect. Nothing is random.

    Attributes:
        isl: prompt length, tokens.
        osl: output length, tokens.
        requests: number of requests.
        schedule: requests in flight. There are no arrival times for a fixed schedule.

    Raises:
        BenchmarkError: a field is invalid; the message names it.
    """

    isl: int
    osl: int
    requests: int
    schedule: Concurrency

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for name in ("isl", "osl", "requests"):
            check_whole(owner, name, getattr(self, name), 1)
        self.check_closed_loop()

    @property
    def content(self) -> str:
        return (
            f"{self.requests:,} synthetic requests, {self.isl} tokens in, {self.osl} out, no reuse"
        )

    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one."""
        blocks = -(-self.isl // BLOCK_TOKENS)
        for index in range(self.requests):
            name = f"{index:06d}"
            yield TrafficRequest(
                request_id=name,
                session_id=name,
                turn=0,
                timestamp_ms=0.0,
                delay_ms=0.0,
                input_tokens=self.isl,
                output_tokens=self.osl,
                hash_ids=tuple(range(index * blocks, (index + 1) * blocks)),
            )

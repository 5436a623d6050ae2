"""What a claim about caching rests on, as figures: reuse, load, and cache pressure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pytest_dynamo_bench.traffic.model import Traffic


@dataclass(frozen=True)
class TrafficFigures:
    """A description of traffic, comparable between a trace and a cut of it.

    Lengths are in tokens. ``reusable_share`` is the share of prefix blocks that an earlier
    request of the same traffic had already: the hit rate of one cache of infinite size
    (``1 - distinct ids / ids``), NaN where no ids are known. ``working_set_tokens`` is what such
    a cache would hold. ``images`` are those of all requests, ``image_bytes`` the encoded bytes
    of the ``distinct_images``, ``image_pixels`` their pixels; all 0 for text alone.
    """

    requests: int
    sessions: int
    duration_seconds: float
    input_tokens: int
    output_tokens: int
    reusable_share: float
    working_set_tokens: int
    images: int = 0
    distinct_images: int = 0
    image_bytes: int = 0
    image_pixels: int = 0

    @property
    def mean_isl(self) -> float:
        """Mean input sequence length, tokens."""
        return self.input_tokens / self.requests

    @property
    def mean_osl(self) -> float:
        """Mean output sequence length, tokens."""
        return self.output_tokens / self.requests

    @property
    def repeated_images_share(self) -> float:
        """Share of images that an earlier request had already; 0 without images."""
        return 1 - self.distinct_images / self.images if self.images else 0.0

    def load_per_worker(self, prefill_workers: int) -> float:
        """Input tokens per second and prefilling worker."""
        return self.input_tokens / max(self.duration_seconds, 1e-9) / prefill_workers

    def cache_pressure(self, kv_tokens: int) -> float:
        """Working set over the KV cache of all workers together; below 1 everything fits."""
        return self.working_set_tokens / kv_tokens


def describe(traffic: Traffic) -> TrafficFigures:
    """Count what :class:`TrafficFigures` holds."""
    distinct: set[int] = set()
    references = images = 0
    shown: set[int] = set()
    for request in traffic.requests:
        distinct.update(request.hash_ids)
        references += len(request.hash_ids)
        shown.update(request.images)
        images += len(request.images)
    pool = traffic.images
    sizes = [pool.size(image) for image in shown] if pool else []
    return TrafficFigures(
        requests=len(traffic.requests),
        sessions=len({request.session_id for request in traffic.requests}),
        duration_seconds=traffic.duration_seconds,
        input_tokens=sum(request.input_tokens for request in traffic.requests),
        output_tokens=sum(request.output_tokens for request in traffic.requests),
        reusable_share=1 - len(distinct) / references if references else math.nan,
        working_set_tokens=len(distinct) * traffic.block_tokens,
        images=images,
        distinct_images=len(shown),
        image_bytes=sum(pool.encoded_bytes(image) for image in shown) if pool else 0,
        image_pixels=sum(width * height for width, height in sizes),
    )


def ideal_cached_tokens(traffic: Traffic) -> list[int]:
    """Of each request, the tokens of its prompt that one cache of infinite size would hold.

    Only whole prefixes count, as in an engine: a block after an unknown one is not reused.
    """
    seen: set[int] = set()
    cached = []
    for request in traffic.requests:
        known = 0
        while known < len(request.hash_ids) and request.hash_ids[known] in seen:
            known += 1
        cached.append(min(known * traffic.block_tokens, request.input_tokens))
        seen.update(request.hash_ids)
    return cached

"""Requests with images that come again: a window that slides over a user's images, and a pool.

The algorithms are those of the two dataset generators of Dynamo's multimodal benchmarks. Images
are noise (the published pool has photographs; what matters is their size, that they are distinct,
and which are repeated). Texts have the published number of words and share no prefix, so only image
caches can hit.

The same seed gives the same requests and image bytes everywhere. Requests are generated one at a
time, and images on demand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.traffic.fields import check_whole
from pytest_dynamo_bench.traffic.images import NoiseImages
from pytest_dynamo_bench.traffic.model import (
    BLOCK_TOKENS,
    Concurrency,
    GeneratedTraffic,
    TrafficRequest,
)


class _OfImages(GeneratedTraffic):
    """What both have: noise images of one size, and texts that share nothing."""

    schedule: Concurrency
    text_tokens: int
    osl: int
    image_width: int
    image_height: int
    seed: int

    @property
    def images(self) -> NoiseImages:  # type: ignore[override]
        return NoiseImages(self.image_width, self.image_height, self.seed)

    def _check(self, *names: str) -> None:
        owner = type(self).__name__
        for name in (*names, "text_tokens", "osl", "image_width", "image_height"):
            check_whole(owner, name, getattr(self, name), 1)
        check_whole(owner, "seed", self.seed, 0)
        self.check_closed_loop()

    def _request(
        self, name: str, session: str, turn: int, index: int, images: tuple[int, ...]
    ) -> TrafficRequest:
        blocks = -(-self.text_tokens // BLOCK_TOKENS)
        ids = tuple(range(index * blocks, (index + 1) * blocks))
        return TrafficRequest(
            name, session, turn, 0.0, 0.0, self.text_tokens, self.osl, ids, images
        )


@dataclass(frozen=True)
class SlidingWindowImages(_OfImages):
    """Dialogues about a window of images that moves by one image per turn.

    Turn ``t`` of a user has images ``t`` … ``t + window - 1`` of the user's
    ``window + turns - 1`` images: after the first turn all but one are repeats. Users share
    nothing. Requests are in the order of turns, and turn ``t + 1`` of a user is sent after turn
    ``t`` has ended. Texts are new in every turn.

    Attributes:
        users: sessions.
        turns: requests of each.
        window: images of each request.
        schedule: how many users are in flight. There are no arrival times for a fixed
            schedule.
        text_tokens: of each request's text, without its images.
        osl: output length, tokens.
        image_width: pixels.
        image_height: pixels.
        seed: decides the pixels.

    Raises:
        BenchmarkError: a field cannot be right; the message names it.
    """

    users: int
    turns: int
    window: int
    schedule: Concurrency
    text_tokens: int
    osl: int
    image_width: int
    image_height: int
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("users", "turns", "window")

    @property
    def images_per_user(self) -> int:
        """Distinct images that one user sees."""
        return self.window + self.turns - 1

    @property
    def content(self) -> str:
        return (
            f"{self.users} users x {self.turns} turns, a window of {self.window} of "
            f"{self.images_per_user} images each, {self.image_width} x {self.image_height}; "
            f"{self.text_tokens:,} text tokens in, {self.osl:,} out; seed {self.seed}"
        )

    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one, turn after turn of all users."""
        for turn in range(self.turns):
            for user in range(self.users):
                first = user * self.images_per_user + turn
                yield self._request(
                    f"{user:05d}.{turn:02d}", f"user_{user}", turn,
                    turn * self.users + user, tuple(range(first, first + self.window)),
                )  # fmt: skip


@dataclass(frozen=True)
class PooledImages(_OfImages):
    """Single requests with images from a shared pool.

    Each image of the pool is in at least one request: the shuffled pool is distributed over the
    requests. The remaining images of a request are drawn from the pool, without repeats within
    the request, and its images are shuffled.

    Attributes:
        requests: how many.
        images_per_request: of each.
        pool: distinct images.
        schedule: how many are in flight.
        text_tokens: of each request's text, without its images.
        osl: output length, tokens.
        image_width: pixels.
        image_height: pixels.
        seed: decides pixels and draws.

    Raises:
        BenchmarkError: a field cannot be right; the message names it.
    """

    requests: int
    images_per_request: int
    pool: int
    schedule: Concurrency
    text_tokens: int
    osl: int
    image_width: int
    image_height: int
    seed: int = 0

    def __post_init__(self) -> None:
        self._check("requests", "images_per_request", "pool")
        slots = self.requests * self.images_per_request
        if not self.images_per_request <= self.pool <= slots:
            raise BenchmarkError(
                f"{type(self).__name__}: pool: must be between the {self.images_per_request} "
                f"images of a request and the {slots} of all requests, got {self.pool}"
            )

    @property
    def content(self) -> str:
        return (
            f"{self.requests:,} requests with {self.images_per_request} of {self.pool} images, "
            f"{self.image_width} x {self.image_height}; {self.text_tokens:,} text tokens in, "
            f"{self.osl:,} out; seed {self.seed}"
        )

    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one."""
        chance = random.Random(f"{self.seed}")
        dealt = list(range(self.pool))
        _shuffle(dealt, chance)
        for index in range(self.requests):
            images = dealt[index :: self.requests]
            while len(images) < self.images_per_request:
                drawn = int(chance.random() * self.pool)
                if drawn not in images:
                    images.append(drawn)
            _shuffle(images, chance)
            name = f"{index:06d}"
            yield self._request(name, name, 0, index, tuple(images))


def _shuffle(items: list[int], chance: random.Random) -> None:
    """Fisher and Yates, from ``random()`` alone, whose values Python keeps between versions."""
    for last in range(len(items) - 1, 0, -1):
        other = int(chance.random() * (last + 1))
        items[last], items[other] = items[other], items[last]

"""The language part of a worker: continuous batching, with steps timed by an engine profile.

One step at a time. A step has a token of every request that is decoding, and then parts of
prompts up to the most tokens of a step (chunked prefill). Where the part of a prompt reaches an
image, the image is encoded first, and everything in the step waits for it, as in an
aggregated vLLM worker. How long a step takes is the profile's time of its prefill and decode
parts, waited for, and the encoder's own time on this machine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

# A step that begins this much late, since the machine was busy, is planned from its due time, so
# that small delays do not add up.
_CATCH_UP_SECONDS = 0.02


class StepTimes(Protocol):
    """Time of the two parts of a step, milliseconds."""

    def prefill_after_prefix_ms(self, new_tokens: np.ndarray, prefix: np.ndarray) -> np.ndarray: ...

    def decode_ms(self, active_kv_tokens: np.ndarray, context: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Limits:
    """Of an engine.

    Attributes:
        max_num_seqs: most requests in a step.
        max_num_batched_tokens: most tokens in a step.
        kv_tokens: KV cache; a request is taken up when its prompt and output fit.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int


@dataclass(eq=False)
class Request:
    """A request in the engine.

    Attributes:
        prompt_tokens: text and images.
        output_tokens: how many to generate.
        image_starts: position in the prompt at which each image begins.
        encode: makes sure that an image's embedding is there; called once for each image.
        produced: tokens so far, one item each.
    """

    prompt_tokens: int
    output_tokens: int
    image_starts: Sequence[int] = ()
    encode: Callable[[int], Awaitable[None]] | None = None
    produced: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    prefilled: int = 0
    encoded: int = 0
    generated: int = 0
    cancelled: bool = False

    @property
    def decoding(self) -> bool:
        """Whether its prompt has been processed."""
        return self.prefilled == self.prompt_tokens


class Engine:
    """Runs requests until it is cancelled.

    Args:
        times: of the steps.
        limits: of the engine.
    """

    def __init__(self, times: StepTimes, limits: Limits) -> None:
        self._times, self._limits = times, limits
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._arrived = asyncio.Event()

    def submit(self, request: Request) -> None:
        """Take a request; its tokens come from ``request.produced``.

        Raises:
            ValueError: it can never fit the KV cache.
        """
        needed = request.prompt_tokens + request.output_tokens
        if needed > self._limits.kv_tokens:
            raise ValueError(
                f"a request of {needed} tokens does not fit a KV cache of {self._limits.kv_tokens}"
            )
        self._waiting.append(request)
        self._arrived.set()

    async def run(self) -> None:
        """Step as long as there is something to do, and wait for more."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            self._admit()
            if not self._running:
                self._arrived.clear()
                if not self._waiting:
                    await self._arrived.wait()
                due = clock()
                continue
            if clock() - due > _CATCH_UP_SECONDS:
                due = clock()
            due = await self._step(due)

    def _admit(self) -> None:
        self._running = [
            request
            for request in self._running
            if not request.cancelled and request.generated < request.output_tokens
        ]
        held = sum(request.prompt_tokens + request.output_tokens for request in self._running)
        while self._waiting and len(self._running) < self._limits.max_num_seqs:
            first = self._waiting[0]
            needed = first.prompt_tokens + first.output_tokens
            if not first.cancelled and held + needed > self._limits.kv_tokens:
                break
            self._waiting.popleft()
            if not first.cancelled:
                held += needed
                self._running.append(first)

    async def _step(self, due: float) -> float:
        """One step that begins at ``due`` on the loop's clock; returns when it ended."""
        loop = asyncio.get_running_loop()
        decoding = [request for request in self._running if request.decoding]
        left = self._limits.max_num_batched_tokens - len(decoding)
        parts: list[tuple[Request, int]] = []
        for request in self._running:
            new = min(left, request.prompt_tokens - request.prefilled)
            if new > 0:
                parts.append((request, new))
                left -= new
        before = loop.time()
        for request, new in parts:
            await self._encode(request, request.prefilled + new)
        encoding = loop.time() - before
        end = due + encoding + self._step_ms(decoding, parts) / 1000
        await asyncio.sleep(max(0.0, end - loop.time()))
        for request, new in parts:
            request.prefilled += new
            if request.decoding:
                self._produce(request)
        for request in decoding:
            self._produce(request)
        return end

    async def _encode(self, request: Request, until: int) -> None:
        """Encode the images that begin before a position of the prompt."""
        while (
            request.encode is not None
            and request.encoded < len(request.image_starts)
            and request.image_starts[request.encoded] < until
        ):
            await request.encode(request.encoded)
            request.encoded += 1

    def _step_ms(self, decoding: Sequence[Request], parts: Sequence[tuple[Request, int]]) -> float:
        total = 0.0
        if parts:
            new = np.array([tokens for _, tokens in parts], dtype=np.float64)
            prefix = np.array([request.prefilled for request, _ in parts], dtype=np.float64)
            mean_prefix = np.array([float((new * prefix).sum() / new.sum())])
            total += float(
                self._times.prefill_after_prefix_ms(np.array([new.sum()]), mean_prefix)[0]
            )
        if decoding:
            context = np.array(
                [request.prompt_tokens + request.generated for request in decoding],
                dtype=np.float64,
            )
            total += float(
                self._times.decode_ms(np.array([context.sum()]), np.array([context.mean()]))[0]
            )
        return total

    def _produce(self, request: Request) -> None:
        request.generated += 1
        request.produced.put_nowait(request.generated)

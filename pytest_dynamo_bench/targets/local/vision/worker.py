"""The vision worker as a process: registers with Dynamo's runtime and answers its frontend.

A separate program: ``python -m pytest_dynamo_bench.targets.local.vision.worker``. Beside its
answers it writes a JSON line for each request to ``--measures``: how many images it had, how
many of them were in the embedding cache, and the time that their decoding, transfer and
encoding took.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import io
import json
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from pytest_dynamo_bench.engines.profiles import ProfileTables
from pytest_dynamo_bench.targets.local.vision.embedding_cache import (
    EmbeddingCache,
    stand_in_for_torch,
)
from pytest_dynamo_bench.targets.local.vision.encoder import VisionEncoder, image_tokens
from pytest_dynamo_bench.targets.local.vision.engine import Engine, Limits, Request

Pixels = npt.NDArray[np.uint8]

_ANSWER_TOKENS = 1024
_MOST_IMAGE_BYTES = 512 * 1024 * 1024


@dataclass
class Measures:
    """What one request's images took; times in milliseconds.

    Attributes:
        request: what the frontend calls the request.
        images: in the request.
        image_cache_hits: of these, found in the embedding cache.
        images_decoded: of the images, decoded in this process.
        image_decode_ms: decoding these.
        image_transfer_ms: reading their pixels from the frontend.
        encoder_ms: encoding those that were not in the cache.
    """

    request: str
    images: int = 0
    image_cache_hits: int = 0
    images_decoded: int = 0
    image_decode_ms: float = 0.0
    image_transfer_ms: float = 0.0
    encoder_ms: float = 0.0


class FrontendPixels:
    """Reads pixels that the frontend has decoded, through Dynamo's NIXL connector."""

    def __init__(self) -> None:
        stand_in_for_torch()
        from dynamo import nixl_connect

        self._nixl = nixl_connect
        self._connector = nixl_connect.Connector()

    async def read(self, decoded: dict[str, Any]) -> Pixels:
        """The pixels of a ``Decoded`` item of the frontend."""
        place = decoded["nixl_descriptor"]
        pixels = np.empty(decoded["shape"], dtype=np.uint8)
        remote = self._nixl.RdmaMetadata(
            descriptors=[
                self._nixl.SerializedDescriptor(device="cpu", ptr=place["addr"], size=place["size"])
            ],
            nixl_metadata=decoded["nixl_metadata"],
            notification_key=hashlib.blake2b(str(place).encode(), digest_size=16).hexdigest(),
            operation_kind=int(self._nixl.OperationKind.READ),
        )
        reading = await self._connector.begin_read(remote, self._nixl.Descriptor((pixels, "cpu")))
        await reading.wait_for_completion()
        return pixels[..., :3]


def decode(url: str) -> Pixels:
    """The pixels of an image in a ``data:`` URL."""
    from PIL import Image

    head, _, body = url.partition(",")
    if not head.startswith("data:") or not head.endswith(";base64"):
        raise ValueError(f"images must be data URLs, got {url[:40]!r}")
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        return np.asarray(image.convert("RGB"))


class VisionWorker:
    """Answers requests of the frontend.

    Args:
        engine: times the language part.
        encoder: of images.
        cache: of what it made.
        pixels: reads what the frontend decoded; None where images are decoded here.
        file: gets a line for each request.
    """

    def __init__(
        self,
        engine: Engine,
        encoder: VisionEncoder,
        cache: EmbeddingCache,
        pixels: FrontendPixels | None,
        file: TextIO,
    ) -> None:
        self._engine, self._encoder, self._cache = engine, encoder, cache
        self._pixels, self._file = pixels, file

    async def generate(
        self, request: dict[str, Any], context: Any
    ) -> AsyncIterator[dict[str, Any]]:
        """Dynamo's endpoint: yields tokens one by one."""
        measures = Measures(str(context.id()))
        items = (request.get("multi_modal_data") or {}).get("image_url") or []
        images = await asyncio.gather(*(self._pixels_of(item, measures) for item in items))
        text_tokens = len(request["token_ids"])
        sizes = [image_tokens(image.shape[1], image.shape[0]) for image in images]
        starts = [text_tokens + sum(sizes[:index]) for index in range(len(sizes))]

        async def encode(index: int) -> None:
            await self._encode(images[index], measures)

        wanted = request["stop_conditions"]["max_tokens"]
        running = Request(text_tokens + sum(sizes), wanted, starts, encode)
        self._engine.submit(running)
        try:
            for count in range(1, wanted + 1):
                token = await running.produced.get()
                made: dict[str, Any] = {"token_ids": [token % _ANSWER_TOKENS]}
                if count == wanted:
                    made["finish_reason"] = "length"
                    # Before the client can know that it is over, and read the file.
                    self._write(measures)
                yield made
        finally:
            running.cancelled = True

    async def _pixels_of(self, item: dict[str, Any], measures: Measures) -> Pixels:
        started = time.perf_counter()
        measures.images += 1
        if "Decoded" in item:
            if self._pixels is None:
                raise ValueError("the frontend decoded an image although frontend decoding is off")
            pixels = await self._pixels.read(item["Decoded"])
            measures.image_transfer_ms += (time.perf_counter() - started) * 1000
        else:
            pixels, took_ms = await asyncio.to_thread(_timed_decode, item["Url"])
            measures.images_decoded += 1
            measures.image_decode_ms += took_ms
        return pixels

    async def _encode(self, pixels: Pixels, measures: Measures) -> None:
        """Look an image up, and encode it where it isn't there."""
        key = ""
        if self._cache.capacity_bytes:
            key = await asyncio.to_thread(_digest, pixels)
            if self._cache.get(key) is not None:
                measures.image_cache_hits += 1
                return
        started = time.perf_counter()
        embedding = await asyncio.to_thread(self._encoder.encode, pixels)
        measures.encoder_ms += (time.perf_counter() - started) * 1000
        if self._cache.capacity_bytes:
            self._cache.put(key, embedding)

    def _write(self, measures: Measures) -> None:
        line = {**asdict(measures), "cache": self._cache.counts()}
        self._file.write(json.dumps(line) + "\n")


def _timed_decode(url: str) -> tuple[Pixels, float]:
    started = time.perf_counter()
    return decode(url), (time.perf_counter() - started) * 1000


def _digest(pixels: Pixels) -> str:
    """What an image is known by: its pixels, as in vLLM."""
    found = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16)
    found.update(str(pixels.shape).encode())
    return found.hexdigest()


async def serve(options: argparse.Namespace) -> None:
    """Register, and answer until the process gets the signal to end."""
    from dynamo.llm import (
        MediaDecoder,
        MediaFetcher,
        ModelInput,
        ModelType,
        WorkerType,
        register_model,
    )
    from dynamo.runtime import DistributedRuntime

    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp")
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, runtime.shutdown)
    engine = Engine(
        ProfileTables.read(options.profile),
        Limits(options.max_num_seqs, options.max_num_batched_tokens, options.kv_tokens),
    )
    stepping = loop.create_task(engine.run())
    endpoint = runtime.endpoint("dynamo.backend.generate")
    decoder = fetcher = None
    if options.frontend_decoding:
        decoder, fetcher = MediaDecoder(), MediaFetcher()
        decoder.enable_image({"limits": {"max_alloc": _MOST_IMAGE_BYTES}})
    with options.measures.open("w", encoding="utf-8", buffering=1) as file:
        worker = VisionWorker(
            engine,
            VisionEncoder(options.embedding_values),
            EmbeddingCache(options.embedding_cache_bytes),
            FrontendPixels() if options.frontend_decoding else None,
            file,
        )
        await register_model(
            ModelInput.Tokens,
            ModelType.Chat | ModelType.Completions,
            endpoint,
            str(options.model_path),
            str(options.model_path),
            worker_type=WorkerType.Aggregated,
            kv_cache_block_size=options.block_size,
            media_decoder=decoder,
            media_fetcher=fetcher,
        )
        serving = asyncio.ensure_future(endpoint.serve_endpoint(worker.generate))
        await asyncio.wait({serving, stepping}, return_when=asyncio.FIRST_COMPLETED)
        # An engine that fails ends the process, since its requests would wait forever.
        (stepping if stepping.done() else serving).result()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", type=Path, required=True)
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--measures", type=Path, required=True)
    parser.add_argument("--embedding-values", type=int, required=True)
    parser.add_argument("--embedding-cache-bytes", type=int, default=0)
    parser.add_argument("--kv-tokens", type=int, required=True)
    parser.add_argument("--block-size", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--frontend-decoding", action="store_true")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

"""Writes down what Dynamo's vLLM worker does with images; it changes nothing of that.

vLLM loads it in each of its processes, as a plugin. A JSON line is appended to a file of the
process for each of these, always with the request:

* ``asked``: images that came with it, from Dynamo's request processor
* ``decoded``, ``read``: milliseconds of decoding an image, or of reading its pixels over NIXL
* ``queued``: images and their tokens, as vLLM's scheduler got them
* ``kept``: an image that vLLM's own encoder cache had
* ``cached``: an image that Dynamo's cache had, or will have, with the cache's counts
* ``encoded``: images, and their share by tokens of the milliseconds of a run of the encoder
"""

from __future__ import annotations

import contextvars
import functools
import json
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any, TextIO

_DIRECTORY = "DYNAMO_BENCH_OBSERVATIONS"
_request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="")
_file: TextIO | None = None
_done: list[Any] = []


def register() -> None:
    """What vLLM calls once it has started, or in a new process of it; may be called again."""
    if _DIRECTORY not in os.environ:
        return
    # The engine is a child of Dynamo's process.
    observe = _observe_worker if multiprocessing.parent_process() is None else _observe_engine
    if observe not in _done:
        _done.append(observe)
        observe()


def _note(event: str, request: str, **values: Any) -> None:
    global _file
    if _file is None:
        path = Path(os.environ[_DIRECTORY]) / f"observed-{os.getpid()}.jsonl"
        _file = path.open("a", encoding="utf-8", buffering=1)
    _file.write(json.dumps({"event": event, "request": request, **values}) + "\n")


def _replace(owner: type, name: str, wrapper: Any) -> None:
    """Replace a function by a wrapper that looks like it."""
    original = getattr(owner, name)
    wrapper = functools.wraps(original)(wrapper)
    static = isinstance(owner.__dict__.get(name), staticmethod)
    setattr(owner, name, staticmethod(wrapper) if static else wrapper)


def _milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1000


def _observe_worker() -> None:
    """Dynamo's own process: where images come in."""
    from dynamo.common.multimodal.image_loader import ImageLoader
    from dynamo.vllm.multimodal_utils.request_processor import VllmMultimodalRequestProcessor

    extract = VllmMultimodalRequestProcessor.extract_multimodal_data
    decode = ImageLoader._open_image_sync
    read = ImageLoader._read_and_convert_nixl_image

    async def extracting(
        self: Any, request: Any, request_id: str, *args: Any, **kwargs: Any
    ) -> Any:
        items = (request.get("multi_modal_data") or {}).get("image_url") or []
        _note("asked", request_id, images=len(items))
        token = _request.set(request_id)
        try:
            return await extract(self, request, request_id, *args, **kwargs)
        finally:
            _request.reset(token)

    def decoding(image_data: Any) -> Any:
        started = time.perf_counter()
        image = decode(image_data)
        _note("decoded", _request.get(), ms=_milliseconds(started))
        return image

    async def reading(self: Any, metadata: Any) -> Any:
        started = time.perf_counter()
        image = await read(self, metadata)
        _note("read", _request.get(), ms=_milliseconds(started))
        return image

    _replace(VllmMultimodalRequestProcessor, "extract_multimodal_data", extracting)
    _replace(ImageLoader, "_open_image_sync", decoding)
    _replace(ImageLoader, "_read_and_convert_nixl_image", reading)


def _observe_engine() -> None:
    """vLLM's engine: its scheduler, its encoder cache, Dynamo's cache, and the encoder."""
    from dynamo.vllm.multimodal_utils.multimodal_embedding_cache_connector import (
        DynamoMultimodalEmbeddingCacheConnector as Cache,
    )
    from vllm.v1.core.encoder_cache_manager import EncoderCacheManager
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    add, encode = Scheduler.add_request, GPUModelRunner._execute_mm_encoder
    look, allocate = EncoderCacheManager.check_and_update_cache, EncoderCacheManager.allocate
    cache = Cache.update_state_after_alloc
    settled: set[tuple[str, int]] = set()

    def adding(self: Any, request: Any) -> Any:
        tokens = [feature.mm_position.length for feature in request.mm_features]
        _note("queued", request.request_id, images=len(tokens), tokens=sum(tokens))
        return add(self, request)

    def looking(self: Any, request: Any, input_id: int) -> bool:
        found = bool(look(self, request, input_id))
        # A request that is continued finds what it has brought there itself.
        if found and (request.request_id, input_id) not in settled:
            settled.add((request.request_id, input_id))
            _note("kept", request.request_id, image=input_id)
        return found

    def allocating(self: Any, request: Any, input_id: int) -> Any:
        settled.add((request.request_id, input_id))
        return allocate(self, request, input_id)

    def caching(self: Any, request: Any, index: int) -> Any:
        hit = request.mm_features[index].identifier in self._cache_order
        evicting = len(self._evicts_this_step)
        result = cache(self, request, index)
        _note(
            "cached", request.request_id, image=index, hit=hit,
            evicted=len(self._evicts_this_step) - evicting,
            bytes=self._num_used_bytes, entries=len(self._cache_order),
            capacity_bytes=self._capacity_bytes,
        )  # fmt: skip
        return result

    def encoding(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        result = encode(self, scheduler_output, *args, **kwargs)
        took_ms = _milliseconds(started)
        sizes = {
            request: [
                self.requests[request].mm_features[index].mm_position.length for index in indices
            ]
            for request, indices in scheduler_output.scheduled_encoder_inputs.items()
        }
        whole = sum(sum(tokens) for tokens in sizes.values())
        for request, tokens in sizes.items():
            share = sum(tokens) / whole
            _note("encoded", request, images=len(tokens), ms=took_ms * share)
        return result

    _replace(Scheduler, "add_request", adding)
    _replace(EncoderCacheManager, "check_and_update_cache", looking)
    _replace(EncoderCacheManager, "allocate", allocating)
    _replace(Cache, "update_state_after_alloc", caching)
    _replace(GPUModelRunner, "_execute_mm_encoder", encoding)

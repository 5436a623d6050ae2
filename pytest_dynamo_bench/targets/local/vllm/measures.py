"""What the observer in vLLM's processes wrote, as measures of requests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pytest_dynamo_bench.outside import Amount, Count
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.local.image_engine import Measures
from pytest_dynamo_bench.targets.local.vision.deployment import IMAGE_MEASURES, request_name
from pytest_dynamo_bench.targets.local.vllm.toy_model import MARKS_OF_AN_IMAGE


class _Asked(msgspec.Struct, tag="asked", tag_field="event"):
    request: str
    images: Count


class _Decoded(msgspec.Struct, tag="decoded", tag_field="event"):
    request: str
    ms: Amount


class _Read(msgspec.Struct, tag="read", tag_field="event"):
    request: str
    ms: Amount


class _Queued(msgspec.Struct, tag="queued", tag_field="event"):
    request: str
    tokens: Count


class _Kept(msgspec.Struct, tag="kept", tag_field="event"):
    request: str


class _Encoded(msgspec.Struct, tag="encoded", tag_field="event"):
    request: str
    images: Count
    ms: Amount


class _Cached(msgspec.Struct, tag="cached", tag_field="event"):
    request: str
    hit: bool
    evicted: int
    bytes: Count
    entries: Count
    capacity_bytes: Count


_Event = _Asked | _Decoded | _Read | _Queued | _Kept | _Encoded | _Cached
_decode = msgspec.json.Decoder(_Event).decode


def read_observations(directory: Path) -> Measures:
    """Request to its measures: those of :data:`IMAGE_MEASURES`, and

    * ``image_tokens``: of all its images in the prompt, as vLLM's scheduler has them
    * ``encoder_cache_hits``: images that vLLM's own encoder cache had
    * ``encoded``: images that were encoded
    * ``cache``: Dynamo's cache after it, with what was evicted for it; None without one

    What was not observed is None.
    """
    events = list(_events(directory))
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, _Asked):
            found[event.request] = {
                "images": event.images,
                "images_decoded": 0,
                "image_decode_ms": 0.0,
                "image_transfer_ms": 0.0,
                **dict.fromkeys(
                    ("image_cache_hits", "encoder_ms", "image_tokens", "encoder_cache_hits",
                     "encoded", "cache")
                ),
            }  # fmt: skip
    for event in sorted(events, key=lambda event: not isinstance(event, _Queued)):
        # vLLM adds a suffix to the request's id.
        own = found.get(event.request) or found.get(event.request.rpartition("-")[0])
        if own is not None:
            _add(own, event)
    return found


def _events(directory: Path) -> Iterator[_Event]:
    for path in sorted(directory.glob("observed-*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError, RecursionError):
                yield _decode(line)


def _add(own: dict[str, Any], event: _Event) -> None:
    match event:
        case _Decoded():
            own["images_decoded"] += 1
            own["image_decode_ms"] += event.ms
        case _Read():
            own["image_transfer_ms"] += event.ms
        case _Queued():
            own["image_tokens"] = event.tokens
            own |= {"image_cache_hits": 0, "encoder_ms": 0.0, "encoder_cache_hits": 0, "encoded": 0}
        case _Kept():
            own["encoder_cache_hits"] = (own["encoder_cache_hits"] or 0) + 1
        case _Encoded():
            own["encoded"] = (own["encoded"] or 0) + event.images
            own["encoder_ms"] = (own["encoder_ms"] or 0.0) + event.ms
        case _Cached():
            own["image_cache_hits"] = (own["image_cache_hits"] or 0) + event.hit
            evicted = (own["cache"] or {}).get("evictions", 0) + event.evicted
            own["cache"] = {
                "bytes": event.bytes, "entries": event.entries,
                "capacity_bytes": event.capacity_bytes, "evictions": evicted,
            }  # fmt: skip


def with_observations(records: Sequence[RequestRecord], measures: Measures) -> list[RequestRecord]:
    """The records with what their images took, their prompts counted without images.

    A traffic says how long the text of a prompt is. vLLM counts the tokens of images too, and
    two marks around each; these are taken off where they are known, so that what remains can
    be compared with what was asked for.
    """
    joined = []
    for record in records:
        own = measures.get(request_name(record))
        if own is not None:
            changes = {name: own[name] for name in IMAGE_MEASURES}
            if record.prompt_tokens is not None and own["image_tokens"] is not None:
                marks = MARKS_OF_AN_IMAGE * own["images"]
                changes["prompt_tokens"] = record.prompt_tokens - own["image_tokens"] - marks
                if own["images"]:
                    # How many of these are tokens of images is not reported.
                    changes["cached_tokens"] = None
            record = dataclasses.replace(record, **changes)
        joined.append(record)
    return joined


def summary(measures: Measures, records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Dynamo's cache and vLLM's over the measured requests, for the run's record."""
    own = [measures[name] for record in records if (name := request_name(record)) in measures]
    known = [item for item in own if item["encoder_cache_hits"] is not None]
    found: dict[str, Any] = {
        "encoder_cache": {
            "hits": sum(item["encoder_cache_hits"] for item in known),
            "encoded": sum(item["encoded"] for item in known),
        }
    }
    caches = [item["cache"] for item in known if item["cache"] is not None]
    if caches:
        fullest = max(caches, key=lambda cache: cache["entries"])
        found["embedding_cache"] = {
            **{key: fullest[key] for key in ("capacity_bytes", "bytes", "entries")},
            "hits": sum(item["image_cache_hits"] for item in known),
            "misses": sum(item["encoded"] for item in known),
            "evictions": sum(cache["evictions"] for cache in caches),
        }
    return found

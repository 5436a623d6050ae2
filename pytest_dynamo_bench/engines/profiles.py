"""Engine profiles: the time of a prefill and of a decode step of a model on a GPU.

A profile is an ``.npz`` that Dynamo's mocker and replay read (``planner_profile_data``), with
a ``.json`` of the same name that says where it comes from.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray, IndexArray
from pytest_dynamo_bench.benchmark import Worker
from pytest_dynamo_bench.engines.dimensions import ModelDimensions, model_dimensions
from pytest_dynamo_bench.errors import TargetError


@dataclass(frozen=True)
class EngineProfile:
    """A profile on disk.

    Attributes:
        path: the ``.npz``.
        provenance: what it was made from, as in the ``.json`` beside it.
        dimensions: the model's own numbers.
    """

    path: Path
    provenance: Mapping[str, Any]
    dimensions: ModelDimensions

    @property
    def name(self) -> str:
        """File name without its suffix."""
        return self.path.stem

    @functools.cached_property
    def tables(self) -> ProfileTables:
        """The arrays of the file."""
        return ProfileTables.read(self.path)

    @functools.cached_property
    def content(self) -> bytes:
        """The file."""
        return self.path.read_bytes()


@dataclass(frozen=True)
class ProfileTables:
    """The arrays of a profile; times in milliseconds, lengths in tokens.

    The first five are Dynamo's. The last two are not read by Dynamo: they price a prefill
    whose prompt begins with tokens that are in the cache, or were processed by an earlier
    step, which Dynamo's table leaves out.

    Attributes:
        prefill_isl: (n,) new tokens of a step.
        prefill_ttft_ms: (n,) its time.
        decode_active_kv_tokens: (m,) KV tokens of all requests of a step.
        decode_context_length: (k,) mean context of the requests of a step.
        decode_itl: (m, k) its time.
        prefix_tokens: (p,) tokens before the new ones.
        prefill_ms_by_prefix: (n, p) time of a prefill of ``prefill_isl`` new tokens.
    """

    prefill_isl: FloatArray
    prefill_ttft_ms: FloatArray
    decode_active_kv_tokens: FloatArray
    decode_context_length: FloatArray
    decode_itl: FloatArray
    prefix_tokens: FloatArray
    prefill_ms_by_prefix: FloatArray

    @classmethod
    def read(cls, source: Path | IO[bytes]) -> ProfileTables:
        """Read a profile's arrays; the two that Dynamo doesn't read may be missing."""
        with np.load(source) as file:
            names = [name for name in cls.__dataclass_fields__ if name in file.files]
            arrays = {name: np.asarray(file[name], dtype=np.float64) for name in names}
        arrays.setdefault("prefix_tokens", np.zeros(1))
        arrays.setdefault("prefill_ms_by_prefix", arrays["prefill_ttft_ms"][:, None])
        return cls(**arrays)

    def write(self, to: Path | IO[bytes]) -> None:
        """Write the arrays as Dynamo reads them: uncompressed."""
        np.savez(to, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    def prefill_ms(self, new_tokens: FloatArray) -> FloatArray:
        """Time of a prefill step as Dynamo reads the table, linear beyond the ends."""
        return _linear(new_tokens, self.prefill_isl, self.prefill_ttft_ms)

    def prefill_after_prefix_ms(self, new_tokens: FloatArray, prefix: FloatArray) -> FloatArray:
        """Time of a prefill of new tokens that attend to a prefix as well."""
        columns = np.stack(
            [
                _linear(new_tokens, self.prefill_isl, column)
                for column in self.prefill_ms_by_prefix.T
            ]
        )
        return _bilinear_pick(columns, prefix, self.prefix_tokens)

    def decode_ms(self, active_kv_tokens: FloatArray, context: FloatArray) -> FloatArray:
        """Time of a decode step as Dynamo reads the table, bilinear, at least 1 ms."""
        columns = np.stack(
            [_linear(active_kv_tokens, self.decode_active_kv_tokens, c) for c in self.decode_itl.T]
        )
        return np.maximum(_bilinear_pick(columns, context, self.decode_context_length), 1.0)


def _cell(x: FloatArray, axis: FloatArray) -> tuple[IndexArray, FloatArray]:
    """The cell of each value and its position in it; the outermost cells extrapolate."""
    index = np.clip(np.searchsorted(axis, x, side="right") - 1, 0, max(len(axis) - 2, 0))
    width = axis[np.minimum(index + 1, len(axis) - 1)] - axis[index]
    return index, np.where(width > 0, (x - axis[index]) / np.where(width > 0, width, 1), 0.0)


def _linear(x: FloatArray, axis: FloatArray, values: FloatArray) -> FloatArray:
    index, share = _cell(np.asarray(x, dtype=np.float64), axis)
    upper = values[np.minimum(index + 1, len(axis) - 1)]
    return np.asarray(values[index] * (1 - share) + upper * share)


def _bilinear_pick(columns: FloatArray, y: FloatArray, axis: FloatArray) -> FloatArray:
    """Interpolate (k, n) columns at (n,) positions along the axis of length k."""
    index, share = _cell(np.asarray(y, dtype=np.float64), axis)
    rows = np.arange(columns.shape[1])
    upper = columns[np.minimum(index + 1, len(axis) - 1), rows]
    return np.asarray(columns[index, rows] * (1 - share) + upper * share)


def find_profile(
    model: str,
    gpu: str,
    engine: str,
    worker: Worker,
    directories: Iterable[Path] = (),
) -> EngineProfile | None:
    """The profile of a model on a GPU in an engine at a worker's parallelism.

    A worker with speculative decoding needs a profile whose decode steps check as many
    drafts. Experts count as spread over all GPUs of a replica where ``moe_ep`` isn't given.

    Args:
        directories: where to look first, for profiles that a user has made.

    Returns:
        The profile, or None when there is none that fits.
    """
    wanted = profile_key(model, gpu, engine, worker)
    for profile in _profiles(tuple(directories)):
        if key_of(profile.provenance) == wanted:
            return profile
    return None


ProfileKey = tuple[str, str, str, int, int, int, int]


def profile_key(model: str, gpu: str, engine: str, worker: Worker) -> ProfileKey:
    """What a profile is found by."""
    drafts = worker.speculative.draft_tokens if worker.speculative else 0
    return (model, gpu, engine, worker.tp, worker.attention_dp, worker.moe_ep or 1, drafts)


def key_of(provenance: Mapping[str, Any]) -> ProfileKey:
    """The key of a profile by its provenance."""
    return (
        str(provenance["model"]),
        str(provenance["gpu"]),
        str(provenance["engine"]),
        int(provenance["tp"]),
        int(provenance["attention_dp"]),
        int(provenance["moe_ep"]),
        int(provenance["draft_tokens"]),
    )


def shipped_directory() -> Path:
    """Where the shipped profiles are."""
    with resources.as_file(resources.files("pytest_dynamo_bench.engines") / "data") as data:
        return data / "profiles"


@functools.cache
def _profiles(directories: tuple[Path, ...]) -> tuple[EngineProfile, ...]:
    found = []
    for directory in (*directories, shipped_directory()):
        for path in sorted(directory.glob("*.json")):
            try:
                provenance = json.loads(path.read_text("utf-8"))
                key_of(provenance)
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise TargetError(f"{path}: not a profile's provenance: {error!r}") from None
            arrays = path.with_suffix(".npz")
            if not arrays.is_file():
                raise TargetError(f"{path}: {arrays.name} is missing next to it")
            found.append(EngineProfile(arrays, provenance, model_dimensions(provenance["model"])))
    return tuple(found)

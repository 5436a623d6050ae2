"""Dynamo's own cache of image embeddings, without PyTorch.

Dynamo's cache asks a tensor only for its size. What the encoder makes are arrays, and for these
gigabytes of PyTorch are not needed.
"""

from __future__ import annotations

import importlib.util
import sys
import types

import numpy as np
import numpy.typing as npt

Embedding = npt.NDArray[np.float16]


def stand_in_for_torch() -> None:
    """Let Dynamo's and NIXL's Python packages load without PyTorch.

    They name its type of a tensor, ask whether what they are given is one, and for the version
    of CUDA.
    """
    if "torch" in sys.modules or importlib.util.find_spec("torch") is not None:
        return
    torch, version = types.ModuleType("torch"), types.ModuleType("torch.version")
    vars(torch).update(Tensor=type("Tensor", (), {}), version=version)
    vars(version).update(cuda="13.0")
    sys.modules |= {"torch": torch, "torch.version": version}


class _Tensor:
    """An array with what Dynamo's cache asks of a tensor."""

    def __init__(self, values: Embedding) -> None:
        self.values = values

    def is_contiguous(self) -> bool:
        return self.values.flags.c_contiguous

    def element_size(self) -> int:
        return self.values.itemsize

    def numel(self) -> int:
        return self.values.size


class EmbeddingCache:
    """Dynamo's ``MultimodalEmbeddingCacheManager``, for arrays.

    It is bounded in bytes, the least recently used embedding goes first, and one that is larger
    than the whole cache is not kept.

    Args:
        capacity_bytes: of all embeddings together; 0 keeps none.
    """

    def __init__(self, capacity_bytes: int) -> None:
        stand_in_for_torch()
        from dynamo.common.memory import multimodal_embedding_cache_manager as dynamos

        self.capacity_bytes = capacity_bytes
        self._entry = dynamos.CachedEmbedding
        self._cache = dynamos.MultimodalEmbeddingCacheManager(capacity_bytes)

    def get(self, key: str) -> Embedding | None:
        """The embedding of an image, counted as a hit or a miss."""
        found = self._cache.get(key)
        return None if found is None else found.tensor.values

    def put(self, key: str, embedding: Embedding) -> None:
        """Keep an embedding, at the cost of those that were not used for longest."""
        self._cache.set(key, self._entry(_Tensor(embedding)))

    def counts(self) -> dict[str, int]:
        """What reports show."""
        stats = self._cache.stats
        kept = ("capacity_bytes", "entries", "hits", "misses", "evictions")
        return {"bytes": stats["current_bytes"], **{name: stats[name] for name in kept}}

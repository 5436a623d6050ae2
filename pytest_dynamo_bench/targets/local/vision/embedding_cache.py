"""Results of the image encoder by the image that they are of; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Embedding = npt.NDArray[np.float16]


class EmbeddingCache:
    """A cache bounded in bytes, as Dynamo's: a hit makes an entry the last to go.

    An embedding larger than the whole cache is not kept.

    Args:
        capacity_bytes: of all embeddings together; 0 keeps none.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.bytes = self.hits = self.misses = self.evictions = 0
        self._entries: OrderedDict[bytes, Embedding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Embedding | None:
        """The embedding of an image, counted as a hit or a miss."""
        found = self._entries.get(key)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._entries.move_to_end(key)
        return found

    def put(self, key: bytes, embedding: Embedding) -> None:
        """Keep an embedding, at the cost of those that were not used for longest."""
        if embedding.nbytes > self.capacity_bytes:
            return
        replaced = self._entries.pop(key, None)
        self.bytes += embedding.nbytes - (0 if replaced is None else replaced.nbytes)
        self._entries[key] = embedding
        while self.bytes > self.capacity_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.bytes -= oldest.nbytes
            self.evictions += 1

    def counts(self) -> dict[str, int]:
        """What reports show."""
        return {
            "capacity_bytes": self.capacity_bytes,
            "bytes": self.bytes,
            "entries": len(self),
            "hits": self.hits,
            "misses": self.misses,
            "evictions": self.evictions,
        }

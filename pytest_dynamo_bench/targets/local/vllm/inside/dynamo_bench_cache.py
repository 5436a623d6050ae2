"""Dynamo's cache of image embeddings, where the device is a processor.

Dynamo's connector moves what it finds to ``cuda`` whatever the device is. All else is Dynamo's.
"""

from __future__ import annotations

from typing import Any

from dynamo.vllm.multimodal_utils.multimodal_embedding_cache_connector import (
    DynamoMultimodalEmbeddingCacheConnector,
)


class ProcessorEmbeddingCacheConnector(
    DynamoMultimodalEmbeddingCacheConnector  # type: ignore[misc,unused-ignore]
):
    """The cache with its results on the CPU."""

    def __init__(self, vllm_config: Any, role: Any) -> None:
        super().__init__(vllm_config, role)
        self._device = "cpu"

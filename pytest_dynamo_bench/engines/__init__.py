"""Engines as numbers: timing profiles of models on GPUs, dimensions, KV capacity."""

from pytest_dynamo_bench.engines.capacity import kv_capacity_tokens
from pytest_dynamo_bench.engines.dimensions import ModelDimensions, model_dimensions
from pytest_dynamo_bench.engines.profiles import (
    EngineProfile,
    ProfileTables,
    find_profile,
    shipped_profiles,
)

__all__ = [
    "EngineProfile",
    "ModelDimensions",
    "ProfileTables",
    "find_profile",
    "kv_capacity_tokens",
    "model_dimensions",
    "shipped_profiles",
]

"""Engines as numbers: timing profiles of models on GPUs, dimensions, KV capacity."""

from pytest_dynamo_bench.engines.capacity import device_blocks, host_blocks, kv_capacity_tokens
from pytest_dynamo_bench.engines.dimensions import ModelDimensions, model_dimensions
from pytest_dynamo_bench.engines.host_tier import HostTier, host_tiers
from pytest_dynamo_bench.engines.pricing import PrefillPricing, price_prefills, with_surcharge
from pytest_dynamo_bench.engines.profiles import (
    EngineProfile,
    ProfileTables,
    find_profile,
)

__all__ = [
    "EngineProfile",
    "HostTier",
    "ModelDimensions",
    "PrefillPricing",
    "ProfileTables",
    "device_blocks",
    "find_profile",
    "host_blocks",
    "host_tiers",
    "kv_capacity_tokens",
    "model_dimensions",
    "price_prefills",
    "with_surcharge",
]

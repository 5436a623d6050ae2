"""Engine arguments as the replay of this Python's Dynamo takes them.

They are given in the words of Dynamo's own ``MockEngineArgs``; releases without it take a mapping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dynamo import _core

_OF_ALL_RANKS = ("dp_size", "startup_time")
_CALLED = {"engine_type": "backend", "kv_bytes_per_token": "kv_transfer_bytes_per_token"}


def engine_arguments(given: Mapping[str, Any]) -> Any:
    """An object, or a mapping that stands for one."""
    if hasattr(_core, "MockEngineArgs"):
        return _core.MockEngineArgs.from_json(json.dumps(given))
    ranks = {name: value for name, value in given.items() if name in _OF_ALL_RANKS}
    engine = {_CALLED.get(k, k): v for k, v in given.items() if k not in _OF_ALL_RANKS}
    profile = engine.pop("planner_profile_data", None)
    if profile is not None:
        config = {"path": profile}
        engine["timing_model"] = {
            "type": "external", "provider": "dynamo_profile", "config": config
        }  # fmt: skip
    return {**ranks, "engine": engine}

"""What engines need for the models of the published comparisons, beside a configuration's data.

Context lengths, parsers, kernels, environment: facts about a model on an engine, taken from the
recipes in ``ai-dynamo/dynamo`` (Apache-2.0). A cluster's settings can add to them or replace them,
and are where those of other models are written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pytest_dynamo_bench.targets.kubernetes.settings import EngineSettings

REMOVE = "<remove>"
_ROLES = ("all", "split", "aggregated", "prefill", "decode")


@dataclass(frozen=True)
class ModelSettings:
    """Of one model on one engine."""

    frontend: EngineSettings
    graph_env: Mapping[str, str]
    roles: Mapping[str, EngineSettings]

    def for_role(self, role: str) -> EngineSettings:
        """What holds for a role: that of all, then of splits, then its own."""
        names = ["all", *(["split"] if role != "aggregated" else []), role]
        found = EngineSettings()
        for name in names:
            if name in self.roles:
                found = merged(found, self.roles[name])
        return found


def merged(first: EngineSettings, second: EngineSettings) -> EngineSettings:
    """Both, the second one over the first."""
    return EngineSettings(
        args={**first.args, **second.args},
        config=deep_merge(first.config, second.config),
        env={**first.env, **second.env},
        shared_memory=second.shared_memory or first.shared_memory,
    )


def deep_merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees of settings; the second one's leaves win, and ``<remove>`` takes a key out."""
    found = dict(first)
    for key, value in second.items():
        old = found.get(key)
        if value == REMOVE:
            found.pop(key, None)
        elif isinstance(value, Mapping):
            found[key] = deep_merge(old if isinstance(old, Mapping) else {}, value)
        else:
            found[key] = value
    return found


def model_settings(model: str, engine: str) -> ModelSettings:
    """What is shipped for a model on an engine; empty where nothing is."""
    text = (resources.files(__package__) / "models.json").read_text(encoding="utf-8")
    entry = json.loads(text).get(model, {}).get(engine, {})
    return ModelSettings(
        frontend=EngineSettings(**entry.get("frontend", {})),
        graph_env=entry.get("graph_env", {}),
        roles={role: EngineSettings(**entry[role]) for role in _ROLES if role in entry},
    )

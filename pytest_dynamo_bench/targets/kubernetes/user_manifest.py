"""A user's manifest instead of the rendered one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import Configuration
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.kubernetes.graph import FORMS, GROUP, KIND
from pytest_dynamo_bench.targets.kubernetes.manifest import labels
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.targets.kubernetes.yaml_files import Lines, read_documents

# What recipes leave to be filled in.
_PLACEHOLDER = re.compile(
    r"\bmy-tag\b|\byour-[a-z-]+|\$\{\w+\}|<(?:[A-Z][A-Z0-9_]{2,}|your[-_ ][^>]*)>|\bCHANGE_?ME\b",
)
_KINDS = (KIND, "ConfigMap")


def read_manifest(
    path: Path, configuration: Configuration, settings: ClusterSettings, run_id: str
) -> list[dict[str, Any]]:
    """The documents of a file as they are created: with our labels, in the cluster's namespace.

    Nulls are taken out, since the API server rejects some of those that recipes have.

    Raises:
        TargetError: a placeholder was left in it, or it has other objects than a deployment and
            ConfigMaps; names file and line.
    """
    documents: list[dict[str, Any]] = []
    for content, lines in read_documents(path):
        if content is None:
            continue
        line = lines.get((), 1)
        if not isinstance(content, Mapping) or "kind" not in content:
            raise TargetError(f"{path}, line {line}: not a Kubernetes object")
        kind = content["kind"]
        if kind not in _KINDS:
            raise TargetError(
                f"{path}, line {lines.get(('kind',), line)}: kind {kind}: only {KIND} and "
                "ConfigMap are created; everything else must already exist"
            )
        _refuse_placeholders(path, content, lines)
        document = _without_nulls(content)
        metadata = document.setdefault("metadata", {})
        if not metadata.get("name"):
            raise TargetError(f"{path}, line {line}: {kind} has no metadata.name")
        metadata["namespace"] = settings.namespace
        metadata["labels"] = {**metadata.get("labels", {}), **labels(configuration, run_id)}
        documents.append(document)
    graphs = [document for document in documents if document["kind"] == KIND]
    if len(graphs) != 1:
        raise TargetError(f"{path}: must have one {KIND}, has {len(graphs)}")
    known = [f"{GROUP}/{version}" for version in FORMS]
    if graphs[0].get("apiVersion") not in known:
        raise TargetError(f"{path}: apiVersion of the {KIND} must be {' or '.join(known)}")
    return [*(d for d in documents if d["kind"] != KIND), *graphs]


def _refuse_placeholders(path: Path, content: Any, lines: Lines) -> None:
    found = [
        (lines.get(at, 1), placeholder)
        for at, text in _texts(content, ())
        for placeholder in _PLACEHOLDER.findall(text)
    ]
    if found:
        named = "; ".join(f"line {line}: {placeholder}" for line, placeholder in sorted(set(found)))
        raise TargetError(f"{path}: it still has placeholders: {named}")


def _texts(content: Any, at: tuple[Any, ...]) -> list[tuple[tuple[Any, ...], str]]:
    if isinstance(content, Mapping):
        return [item for key, value in content.items() for item in _texts(value, (*at, key))]
    if isinstance(content, list):
        return [item for n, value in enumerate(content) for item in _texts(value, (*at, n))]
    return [(at, content)] if isinstance(content, str) else []


def _without_nulls(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {k: _without_nulls(v) for k, v in content.items() if v is not None}
    if isinstance(content, list):
        return [_without_nulls(item) for item in content if item is not None]
    return content

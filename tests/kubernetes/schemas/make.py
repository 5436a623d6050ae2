"""Make a JSON Schema of the DynamoGraphDeployment that an operator serves, from its CRD.

The CRD has 1.6 MB, most of it descriptions and the same parts of pods again and again. Here what
only people read is left out, and what occurs more than once is written once, so that nothing of
what an API server checks by itself is lost, except rules in CEL. As a server with
``fieldValidation=Strict`` does, the schema refuses fields that are not in it. From a clone, with a
work tree or without::

    python tests/kubernetes/schemas/make.py CLONE COMMIT 1.4 "what the commit is of that release"

The commits of those that are here are of the main branch. 1.3 and 1.4 are where the release's
branch left it: the commit whose ``components/src/dynamo`` has most files in common with the
release's wheel.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

CRD = "deploy/operator/config/crd/bases/nvidia.com_dynamographdeployments.yaml"
REPOSITORY = "https://github.com/ai-dynamo/dynamo"
_CHECKED = {
    "type", "enum", "required", "pattern", "format", "nullable", "minimum", "maximum", "minLength",
    "maxLength", "minItems", "maxItems", "maxProperties", "anyOf", "x-kubernetes-list-map-keys",
}  # fmt: skip
_WORTH_A_NAME = 120


def json_schema(node: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as a JSON Schema that refuses what is not in it."""
    found = {key: value for key, value in node.items() if key in _CHECKED}
    if node.get("x-kubernetes-int-or-string"):
        pattern = {"pattern": node["pattern"]} if "pattern" in node else {}
        return {"type": ["integer", "string"], **pattern}
    if "properties" in node:
        found["properties"] = {k: json_schema(v) for k, v in node["properties"].items()}
        found["additionalProperties"] = bool(node.get("x-kubernetes-preserve-unknown-fields"))
    elif isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = json_schema(node["additionalProperties"])
    if "items" in node:
        found["items"] = json_schema(node["items"])
    return found


def _name(schema: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:8]


def _parts(schema: Any) -> list[dict[str, Any]]:
    """Every schema in a schema, outer ones first."""
    if not isinstance(schema, dict):
        return []
    inner = [*schema.get("properties", {}).values(), schema.get("items")]
    inner.append(schema.get("additionalProperties"))
    return [schema, *(part for item in inner for part in _parts(item))]


def _shared(schema: Any, names: set[str], whole: bool = False) -> Any:
    """The schema with references where a part is one of those that are written once."""
    if not isinstance(schema, dict):
        return schema
    if not whole and _name(schema) in names:
        return {"$ref": f"#/$defs/{_name(schema)}"}
    found = dict(schema)
    if "properties" in schema:
        found["properties"] = {k: _shared(v, names) for k, v in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in schema:
            found[key] = _shared(schema[key], names)
    return found


def make(crd: dict[str, Any], source: dict[str, str]) -> dict[str, Any]:
    """The schemas of all versions, with what they share."""
    versions = {
        version["name"]: json_schema(version["schema"]["openAPIV3Schema"])
        for version in crd["spec"]["versions"]
        if version["served"]
    }
    for schema in versions.values():
        # What every object has is not in a CRD.
        schema["properties"]["metadata"] = {"type": "object"}
    parts = {}
    counted: Counter[str] = Counter()
    for schema in versions.values():
        for part in _parts(schema):
            parts[_name(part)] = part
            counted[_name(part)] += 1
    names = {
        name
        for name, part in parts.items()
        if counted[name] > 1 and len(json.dumps(part)) > _WORTH_A_NAME
    }
    storage = next(v["name"] for v in crd["spec"]["versions"] if v["storage"])
    return {
        "source": source,
        "storage": storage,
        "versions": {name: _shared(schema, names) for name, schema in versions.items()},
        "$defs": {name: _shared(parts[name], names, whole=True) for name in sorted(names)},
    }


def main(directory: str, commit: str, release: str, what: str) -> None:
    git = ["git", "-C", directory]
    whole = subprocess.check_output([*git, "rev-parse", commit], text=True).strip()
    date = subprocess.check_output([*git, "log", "-1", "--format=%cs", whole], text=True).strip()
    text = subprocess.check_output([*git, "show", f"{whole}:{CRD}"])
    crd = yaml.load(text, Loader=yaml.CSafeLoader)
    source = {
        "repository": REPOSITORY, "commit": whole, "date": date, "path": CRD,
        "license": "Apache-2.0, (c) NVIDIA CORPORATION & AFFILIATES", "what": what,
    }  # fmt: skip
    path = Path(__file__).with_name(f"{release}.json")
    path.write_text(json.dumps(make(crd, source), separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

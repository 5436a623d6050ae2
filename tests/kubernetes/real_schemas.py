"""What a real API server refuses of an object: the operator's schema, and Kubernetes' own types.

The schemas of DynamoGraphDeployments are those of Dynamo's releases, see ``schemas/make.py``. All
other objects are compared with the models of the official client, which are generated from
Kubernetes' own description. Not checked, because only a cluster does: rules in CEL, and the
operator's webhooks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import kubernetes.client as official

DIRECTORY = Path(__file__).with_name("schemas")
RELEASES = sorted(path.stem for path in DIRECTORY.glob("*.json"))
_SCALARS = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


@dataclass(frozen=True)
class Problem:
    """One thing that a server refuses, where, and whether it is a field that does not exist."""

    path: str
    text: str
    unknown: bool = False

    def __str__(self) -> str:
        return f'unknown field "{self.path}"' if self.unknown else f"{self.path}: {self.text}"


def problems(document: dict[str, Any], release: str) -> list[Problem]:
    """What a cluster with Dynamo's operator of a release refuses of an object."""
    kind = document["kind"]
    if kind == "DynamoGraphDeployment":
        version = document["apiVersion"].partition("/")[2]
        return [*graph_problems(document, release, version), *metadata_problems(document)]
    return list(_refused_of_model(document, f"V1{kind}", ""))


def metadata_problems(document: dict[str, Any]) -> list[Problem]:
    """What is wrong with the part that every object has."""
    return list(_refused(document["metadata"], "V1ObjectMeta", "metadata"))


def graph_problems(content: Any, release: str, version: str = "v1alpha1") -> list[Problem]:
    """What the schema of a release refuses of a DynamoGraphDeployment."""
    found = []
    for error in _validator(release, version).iter_errors(content):
        path = _dotted(error.absolute_path)
        if error.validator == "additionalProperties" and isinstance(error.validator_value, bool):
            names = set(error.instance) - set(error.schema["properties"])
            found += [Problem(_under(path, name), "", unknown=True) for name in sorted(names)]
        else:
            found.append(Problem(path, error.message))
    return found


@functools.cache
def _validator(release: str, version: str) -> Any:
    made = json.loads((DIRECTORY / f"{release}.json").read_text("utf-8"))
    kind = jsonschema.validators.extend(
        jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": _unique}
    )
    return kind({**made["versions"][version], "$defs": made["$defs"]})


def _unique(_validator: Any, keys: list[str], items: Any, _schema: Any) -> Iterator[Any]:
    seen = set()
    for item in items if isinstance(items, list) else ():
        identity = tuple(item.get(key) for key in keys) if isinstance(item, dict) else item
        if identity in seen:
            yield jsonschema.ValidationError(f"Duplicate value: {identity}")
        seen.add(identity)


def _dotted(path: Any) -> str:
    text = ""
    for part in path:
        text = f"{text}[{part}]" if isinstance(part, int) else _under(text, part)
    return text


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _refused(value: Any, kind: str, path: str) -> Iterator[Problem]:
    """Compare with a type of the official client, as it writes them: ``list[V1Container]``."""
    outer, _, inner = kind.rstrip("])").replace("[", "(").partition("(")
    if outer == "list":
        if not isinstance(value, list):
            yield Problem(path, f"{value!r} is not a list")
            return
        for index, item in enumerate(value):
            yield from _refused(item, inner, f"{path}[{index}]")
    elif outer == "dict":
        if not isinstance(value, dict):
            yield Problem(path, f"{value!r} is not a map")
            return
        for key, item in value.items():
            yield from _refused(item, inner.partition(", ")[2], _under(path, key))
    elif outer in _SCALARS:
        wrong = not isinstance(value, _SCALARS[outer])
        if wrong or (isinstance(value, bool) and outer != "bool"):
            yield Problem(path, f"{value!r} is not of type {outer}")
    elif hasattr(official, outer):
        yield from _refused_of_model(value, outer, path)


def _refused_of_model(value: Any, name: str, path: str) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield Problem(path, f"{value!r} is not a {name}")
        return
    model = getattr(official, name)
    fields = {json_name: own for own, json_name in model.attribute_map.items()}
    for key, item in value.items():
        if key not in fields:
            yield Problem(_under(path, key), "", unknown=True)
        else:
            yield from _refused(item, model.openapi_types[fields[key]], _under(path, key))
    try:
        # The client refuses what lacks a field that is required, at this level and below.
        official.ApiClient().deserialize(SimpleNamespace(data=json.dumps(value)), name)
    except ValueError as error:
        yield Problem(path or name, str(error))
    except (TypeError, AttributeError):
        pass  # Of a wrong type, which was said above.

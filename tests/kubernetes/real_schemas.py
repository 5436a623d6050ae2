"""What a real API server refuses of an object: the operator's schema, and Kubernetes' own types.

The schemas of DynamoGraphDeployments are those of Dynamo's releases, see ``schemas/make.py``. All
other objects are compared with the models of the official client, which are generated from
Kubernetes' own description. The schemas' rules in CEL that can concern a new deployment, and what
the operator's admission asks of images, are written here again. Not checked: its other webhooks.
"""

from __future__ import annotations

import functools
import json
import re
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


# A tag as the operator reads it (deploy/operator/internal/runtimeversion), such as v1.6.1-rc.1+x.
_NUMBER = r"(0|[1-9][0-9]*)"
_WORD = rf"({_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_BUILD = r"[0-9A-Za-z-]+"
_TAG = re.compile(
    rf"[vV]?{_NUMBER}\.{_NUMBER}\.{_NUMBER}(-{_WORD}(\.{_WORD})*)?(\+{_BUILD}(\.{_BUILD})*)?"
)


def admission_problems(document: dict[str, Any], release: str) -> list[Problem]:
    """What the rules in CEL and the admission refuse of a new DynamoGraphDeployment.

    From the markers ``XValidation`` in ``deploy/operator/api/v1beta1``; for images, which need
    ``runtimeVersionOverride`` since the operator of 1.5.0, from ``shared_v1beta1.go`` and
    ``shared_v1alpha1.go`` in ``deploy/operator/internal/webhook/validation``.
    """
    if document["kind"] != "DynamoGraphDeployment":
        return []
    spec = document.get("spec") or {}
    components = list(_components(spec))
    names = [item["name"].lower() for _, item, _, _ in components]
    found = []
    if spec.get("restart"):
        found.append(Problem("spec", "spec.restart must be unset on create"))
    if len(set(names)) < len(names):
        found.append(Problem("spec.components", "names must be unique case-insensitively"))
    if sum(item.get("type") == "epp" for _, item, _, _ in components) > 1:
        found.append(Problem("spec.components", "at most one component may have type epp"))
    for path, item, where, image in components:
        if item.get("eppConfig") and item.get("type") != "epp":
            found.append(Problem(path, "eppConfig may only be set when type is epp"))
        replicas = item.get("replicas", 1)
        if replicas and item.get("minAvailable", 0) > replicas:
            found.append(Problem(path, "minAvailable must be less than or equal to replicas"))
        if _OVERRIDE not in json.dumps(_made(release)):
            continue
        tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
        if not image:
            found.append(Problem(f"{path}.{where}", "Required value: is required"))
        elif not item.get(_OVERRIDE) and not _TAG.fullmatch(tag):
            found.append(Problem(f"{path}.{_OVERRIDE}", _OVERRIDE_REQUIRED))
    return found


_OVERRIDE = "runtimeVersionOverride"
_OVERRIDE_REQUIRED = (
    "Required value: is required when the specified Dynamo runtime container image has no "
    "parseable semantic-version tag"
)


def _components(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, str]]:
    """Path, component with name and type, and path and name of its image, in either version."""
    for name, item in spec.get("services", {}).items():
        where = "extraPodSpec.mainContainer.image"
        image = item.get("extraPodSpec", {}).get("mainContainer", {}).get("image", "")
        kind = item.get("componentType")
        yield f"spec.services[{name}]", {**item, "name": name, "type": kind}, where, image
    for index, item in enumerate(spec.get("components", ())):
        where, image = "podTemplate.spec.containers", ""
        containers = item.get("podTemplate", {}).get("spec", {}).get("containers", ())
        for at, container in enumerate(containers):
            if container["name"] == "main":
                where, image = f"{where}[{at}].image", container.get("image", "")
        yield f"spec.components[{index}]", item, where, image


@functools.cache
def open_api(release: str, version: str) -> bytes:
    """The schema as an API server shows it to all: OpenAPI v3, nothing written once for several."""
    made = _made(release)

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return whole(made["$defs"][node["$ref"].rpartition("/")[2]])
        return {key: whole(value) for key, value in node.items()}

    kind = {"group": "nvidia.com", "version": version, "kind": "DynamoGraphDeployment"}
    schema = {**whole(made["versions"][version]), "x-kubernetes-group-version-kind": [kind]}
    schemas = {f"com.nvidia.{version}.DynamoGraphDeployment": schema, "meta.v1.Status": {}}
    return json.dumps({"openapi": "3.0.0", "components": {"schemas": schemas}}).encode()


@functools.cache
def _made(release: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DIRECTORY / f"{release}.json").read_text("utf-8"))
    return found


@functools.cache
def _validator(release: str, version: str) -> Any:
    made = _made(release)
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

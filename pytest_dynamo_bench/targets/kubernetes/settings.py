"""What a cluster needs and a benchmark does not say: one small YAML file."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.dynamo.releases import DYNAMO_RELEASE
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.plain_text import SECRET_NAME, did_you_mean
from pytest_dynamo_bench.targets.kubernetes.yaml_files import Lines, read_documents

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# What the operator's schema takes for runtimeVersionOverride.
_RUNTIME_VERSION = re.compile(r"(0|[1-9]\d{0,3})(\.(0|[1-9]\d{0,3})){2}")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")


@dataclass(frozen=True)
class Volume:
    """A PersistentVolumeClaim that exists already, and where it is mounted.

    Attributes:
        claim: its name.
        path: where it is mounted; weights and tokenizers are looked for there.
        size: for the manifest of the claim that can be printed, such as ``700Gi``.
    """

    claim: str
    path: str
    size: str = ""


@dataclass(frozen=True)
class Frontend:
    """The pod of Dynamo's frontend."""

    cpu: str = ""
    memory: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """The pods that send the traffic.

    Attributes:
        source: ``cluster`` runs them as a Job beside the service, ``api-server`` sends from
            here through the API server, for a look at small load, ``url`` from here to ``url``.
        image: an image with this package, or with Python and pip for it.
        pip: what is installed when the pod starts; empty where the image has everything.
        shards: pods that share the traffic among them.
        url: of an ingress, for ``source: url``.
    """

    source: str = "cluster"
    image: str = "python:3.12-slim"
    pip: str = "pytest-dynamo-bench"
    shards: int = 1
    cpu: str = "4"
    memory: str = "8Gi"
    url: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Limits:
    """How long each step may take, in seconds.

    Attributes:
        schedule: until every pod has a node.
        pull: until every image is there.
        ready: until the deployment says that it is ready; loading a model is part of it.
        answer: until the model is listed and answers.
        grace: that a pod may be in a state that usually does not pass.
        delete: until resource and pods are gone.
        restarts: of a container, from which on it is a crash loop.
    """

    schedule: float = 600
    pull: float = 1800
    ready: float = 3600
    answer: float = 600
    grace: float = 60
    delete: float = 300
    restarts: int = 3


@dataclass(frozen=True)
class EngineSettings:
    """More for the engine of one role, over what a configuration says by itself.

    Attributes:
        args: flags with their values; a flag without one is null.
        config: keys of TensorRT-LLM's engine file.
        env: environment variables.
        shared_memory: size of /dev/shm, such as ``80Gi``.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    shared_memory: str = ""


@dataclass(frozen=True)
class ClusterSettings:
    """Everything about a cluster that a manifest needs beside a configuration.

    Attributes:
        namespace: where everything is made; it has to exist.
        context: of the kubeconfig; the current one when empty.
        registry: that images are pulled from.
        image_tag: of the runtime image of configurations that name no Dynamo of their own.
        images: a whole image name by engine, instead of registry and tag.
        runtime_version: the release of Dynamo in an image whose tag does not say it, such as
            that of an own build; the operator asks for it.
        image_pull_secret: name of a secret.
        model_cache: volume with the weights.
        compilation_cache: volume for compiled kernels.
        storage_class: of claims whose manifests are printed.
        token_secret: secret with ``HF_TOKEN``.
        env: for all pods of a deployment.
        node_selector: for all of them.
        tolerations: for all of them.
        compute_domain: name of a ResourceClaimTemplate, for NVLink over several nodes.
        custom_resources: of every worker, such as ``rdma/ib: "2"``.
        run_as_root: workers run as user 0.
        startup_seconds: that a worker's start-up probe allows; 0 leaves the probe to the operator.
        probe_timeout_seconds: of one attempt of it.
        frontend, load, limits: see there.
        engines: by role (``all``, ``aggregated``, ``prefill``, ``decode``), for own models.
    """

    namespace: str
    context: str = ""
    registry: str = "nvcr.io/nvidia/ai-dynamo"
    image_tag: str = DYNAMO_RELEASE
    images: Mapping[str, str] = field(default_factory=dict)
    runtime_version: str = ""
    image_pull_secret: str = ""
    model_cache: Volume | None = None
    compilation_cache: Volume | None = None
    storage_class: str = ""
    token_secret: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: Sequence[Mapping[str, Any]] = ()
    compute_domain: str = ""
    custom_resources: Mapping[str, str] = field(default_factory=dict)
    run_as_root: bool = False
    startup_seconds: int = 0
    probe_timeout_seconds: int = 20
    frontend: Frontend = Frontend()
    load: Load = Load()
    limits: Limits = Limits()
    engines: Mapping[str, EngineSettings] = field(default_factory=dict)


_ROLES = ("all", "aggregated", "prefill", "decode")
_SOURCES = ("cluster", "api-server", "url")
_NAMES = {
    "namespace", "image_pull_secret", "storage_class", "token_secret", "claim", "compute_domain",
}  # fmt: skip
_QUANTITIES = {"size", "cpu", "memory", "shared_memory"}


def read_settings(path: Path) -> ClusterSettings:
    """Read a file of settings.

    Raises:
        TargetError: names file, line and field, and what would be right.
    """
    documents = read_documents(path)
    if len(documents) != 1:
        raise TargetError(f"{path}: must be one YAML document with the cluster's settings")
    content, lines = documents[0]
    reader = _Reader(path, lines)
    settings = reader.dataclass(ClusterSettings, content, ())
    assert isinstance(settings, ClusterSettings)
    reader.check(settings)
    return settings


class _Reader:
    def __init__(self, path: Path, lines: Lines) -> None:
        self._path, self._lines = path, lines

    def fail(self, at: tuple[Any, ...], problem: str) -> typing.NoReturn:
        line = next(
            (self._lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in self._lines), 1
        )
        name = ".".join(map(str, at))
        raise TargetError(f"{self._path}, line {line}: {name + ': ' if name else ''}{problem}")

    def dataclass(self, kind: Any, content: Any, at: tuple[Any, ...]) -> Any:
        if not isinstance(content, Mapping):
            self.fail(at, f"must be a mapping with fields, got {content!r}")
        hints = typing.get_type_hints(kind)
        fields = {item.name: item for item in dataclasses.fields(kind)}
        values = {}
        for key, value in content.items():
            if key not in fields:
                hint = did_you_mean(str(key), fields, before="; ")
                self.fail((*at, key), f"unknown field{hint}; fields: {', '.join(fields)}")
            if value is not None:
                values[key] = self.value(hints[key], value, (*at, key))
        for item in fields.values():
            required = item.default is dataclasses.MISSING
            required = required and item.default_factory is dataclasses.MISSING
            if required and item.name not in values:
                self.fail(at, f"{item.name} is missing")
        return kind(**values)

    def value(self, hint: Any, value: Any, at: tuple[Any, ...]) -> Any:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (types.UnionType, typing.Union):
            return self.value(next(a for a in arguments if a is not types.NoneType), value, at)
        if dataclasses.is_dataclass(hint):
            return self.dataclass(hint, value, at)
        if hint is Any:
            return value
        if origin is Mapping:
            if not isinstance(value, Mapping):
                self.fail(at, f"must map names to values, got {value!r}")
            return {
                str(key): self.value(arguments[1], item, (*at, key)) for key, item in value.items()
            }
        if origin is Sequence:
            if not isinstance(value, list):
                self.fail(at, f"must be a list, got {value!r}")
            return tuple(
                self.value(arguments[0], item, (*at, index)) for index, item in enumerate(value)
            )
        return self.scalar(hint, value, at)

    def scalar(self, hint: Any, value: Any, at: tuple[Any, ...]) -> Any:
        if hint is bool and not isinstance(value, bool):
            self.fail(at, f"must be true or false, got {value!r}")
        if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.fail(at, f"must be a number, got {value!r}")
        if hint in (int, float) and (value < 0 or (hint is int and value != int(value))):
            self.fail(
                at, f"must be a {'whole ' if hint is int else ''}number from 0, got {value!r}"
            )
        if hint is not str:
            return hint(value)
        if isinstance(value, bool | Mapping | list):
            self.fail(at, f'must be text, got {value!r}; write it in quotes, such as "true"')
        return str(value)

    def check(self, settings: ClusterSettings) -> None:
        self._check_names(settings, ())
        self._check_env(settings.env, ("env",))
        self._check_env(settings.frontend.env, ("frontend", "env"))
        for name, own in settings.engines.items():
            self._check_env(own.env, ("engines", name, "env"))
        for engine in settings.images:
            if engine not in ("vllm", "trtllm", "sglang"):
                self.fail(("images", engine), "must be vllm, trtllm or sglang")
        if settings.runtime_version and not _RUNTIME_VERSION.fullmatch(settings.runtime_version):
            self.fail(
                ("runtime_version",), f"{settings.runtime_version!r} is no release such as 1.6.1"
            )
        for role in settings.engines:
            if role not in _ROLES:
                self.fail(("engines", role), f"must be one of {', '.join(_ROLES)}")
        load = settings.load
        if load.source not in _SOURCES:
            self.fail(("load", "source"), f"must be one of {', '.join(_SOURCES)}")
        if load.source == "url" and not load.url:
            self.fail(("load",), "source: url needs url, the address of an ingress")
        if load.shards < 1:
            self.fail(("load", "shards"), "must be 1 or more")
        if load.shards > 1 and load.source != "cluster":
            self.fail(("load", "shards"), "needs source: cluster")

    def _check_env(self, env: Mapping[str, str], at: tuple[Any, ...]) -> None:
        for name in env:
            if SECRET_NAME.search(name):
                self.fail(
                    (*at, name),
                    "looks like a secret, and manifests are printed and stored; put it into a "
                    "Secret and set token_secret",
                )

    def _check_names(self, item: Any, at: tuple[Any, ...]) -> None:
        for part in dataclasses.fields(item):
            value = getattr(item, part.name)
            here = (*at, part.name)
            if dataclasses.is_dataclass(value):
                self._check_names(value, here)
            elif part.name in _NAMES and value and not _NAME.fullmatch(value):
                self.fail(here, f"{value!r} is not a valid Kubernetes name (a-z, 0-9, '-' and '.')")
            elif part.name in _QUANTITIES and value and not _QUANTITY.fullmatch(value):
                self.fail(here, f"{value!r} is not a quantity such as 4, 500m or 100Gi")
            elif part.name == "path" and not value.startswith("/"):
                self.fail(here, f"{value!r} must be an absolute path")

"""A configuration as a DynamoGraphDeployment, and a ConfigMap for its engines' files.

Pure functions from data to data: what would be deployed can be printed without a cluster.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.dynamo_options import OptionValue, option_arguments
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.plain_text import SECRET_NAME
from pytest_dynamo_bench.targets.kubernetes.engine_arguments import (
    EngineCommand,
    engine_command,
)
from pytest_dynamo_bench.targets.kubernetes.graph import (
    FORMS,
    GPU,
    GRAPH_LABEL,
    KIND,
    TYPE_LABEL,
    WORKER_TYPES,
    Component,
    Graph,
    Operator,
    given,
    operator_of_release,
    placement,
    tag_of,
    version_of,
)
from pytest_dynamo_bench.targets.kubernetes.model_settings import (
    ModelSettings,
    deep_merge,
    merged,
    model_settings,
)
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings, EngineSettings
from pytest_dynamo_bench.targets.kubernetes.yaml_files import dump

# Who made an object, of which run, and until when it can be needed: cleanup goes by these.
OWNER_LABEL = "app.kubernetes.io/managed-by"
OWNER = "pytest-dynamo-bench"
RUN_LABEL = "pytest-dynamo-bench/run"
CONFIGURATION_LABEL = "pytest-dynamo-bench/configuration"
FRONTEND = "Frontend"
FRONTEND_PORT = 8000
SERVICE_NAMES = {"aggregated": "agg", "prefill": "prefill", "decode": "decode"}
_IMAGES = {"vllm": "vllm-runtime", "trtllm": "tensorrtllm-runtime", "sglang": "sglang-runtime"}
# Grove limits resource names that are made of the deployment's, the service's and a suffix.
_LONGEST_NAME = 45 - len("-frontend") - len("-0-0")
T = TypeVar("T")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9-]+")
_HOST = "kubernetes.io/hostname"
_GPUS_OF_A_NODE = 8
_CONFIG_VOLUME = "engine-config"
_CONFIG_PATH = "/config"
_CLAIM = "compute-domain-channel"
_PROBE_PERIOD_SECONDS = 60


def deployment_name(benchmark: Benchmark, configuration: Configuration, run_id: str) -> str:
    """A name that is legal, short enough, and different for every benchmark, run, configuration."""
    digest = hashlib.sha256(f"{benchmark.name}/{configuration.name}/{run_id}".encode()).hexdigest()
    readable = _NOT_IN_NAMES.sub("-", configuration.name.replace(".", "-")).strip("-")
    if not readable[:1].isalpha():
        readable = f"b-{readable}"
    suffix = f"-{digest[:6]}"
    return readable[: _LONGEST_NAME - len(suffix)].rstrip("-") + suffix


def labels(configuration: Configuration, run_id: str) -> dict[str, str]:
    """What every object of a run is found by."""
    return {
        OWNER_LABEL: OWNER,
        RUN_LABEL: run_id,
        CONFIGURATION_LABEL: _NOT_IN_NAMES.sub("-", configuration.name)[:63].strip("-"),
    }


def image_of(
    benchmark: Benchmark,
    configuration: Configuration,
    settings: ClusterSettings,
    worker: Worker | None = None,
) -> str:
    """The engine's runtime image: that of the Dynamo of a worker, or of the frontend without one.

    Raises:
        TargetError: the Dynamo is no release and no image is named, or one whose tag is another
            release.
    """
    dynamo, whole = _dynamo(configuration, worker), settings.images.get(benchmark.engine)
    if dynamo and not version_of(dynamo) and not whole:
        raise TargetError(
            f"configuration {configuration.name!r}: dynamo {dynamo!r} is no release, and nothing "
            "is installed on a cluster: give its image with "
            f"--dynamo-image {configuration.name}=IMAGE"
        )
    if not whole:
        name = _IMAGES[benchmark.engine]
        return f"{settings.registry}/{name}:{dynamo or settings.image_tag}"
    said = version_of(tag_of(whole))
    if said and version_of(dynamo) and said != version_of(dynamo):
        raise TargetError(
            f"configuration {configuration.name!r} is of Dynamo {dynamo} and has image {whole}: "
            "name the image of that release, or leave one of the two out"
        )
    return whole


def _dynamo(configuration: Configuration, worker: Worker | None = None) -> str:
    """The Dynamo that a worker or the frontend names; empty where none is named."""
    return dynamo_of(worker) or dynamo_of(configuration) or ""


def dynamo_of(part: Configuration | Worker | None) -> str | None:
    """The Dynamo that is named for a configuration or its workers."""
    return part.dynamo if part is not None else None


def operator_of(
    benchmark: Benchmark, configuration: Configuration, settings: ClusterSettings
) -> Operator:
    """The operator that came with a configuration's Dynamo, where no cluster can be asked."""
    tag = tag_of(image_of(benchmark, configuration, settings))
    return operator_of_release(version_of(tag) or settings.runtime_version)


def given_for(
    values: Mapping[str, T], benchmark: Benchmark, configuration: Configuration
) -> T | None:
    """What is given for a configuration, by the benchmark's name and its own or by its own."""
    return values.get(f"{benchmark.name}/{configuration.name}") or values.get(configuration.name)


def with_image(
    settings: ClusterSettings,
    images: Mapping[str, str],
    benchmark: Benchmark,
    configuration: Configuration,
) -> ClusterSettings:
    """The settings with the image that is given for a configuration, or under "" for all."""
    image = given_for(images, benchmark, configuration) or images.get("")
    return replace(settings, images={benchmark.engine: image}) if image else settings


def render(
    benchmark: Benchmark,
    configuration: Configuration,
    settings: ClusterSettings,
    run_id: str,
    operator: Operator,
) -> list[dict[str, Any]]:
    """The documents of a configuration, in the order in which they are created.

    Raises:
        TargetError: the engine has no switch for a feature, the layout fits no nodes, or the
            operator has to be told which Dynamo is in the image and nothing says that.
    """
    known = model_settings(benchmark.model, benchmark.engine)
    name = deployment_name(benchmark, configuration, run_id)
    files: dict[str, str] = {}
    components: list[tuple[Worker | None, Component]]
    components = [(None, _frontend(configuration, settings, known))]
    components += [
        (worker, _worker(benchmark, configuration, worker, settings, known, name, files))
        for worker in configuration.workers
    ]
    env = {**known.graph_env, **settings.env, **_own_env(configuration.env, configuration)}
    graph = Graph(
        benchmark.engine,
        _env(env),
        [
            _with_image(benchmark, configuration, worker, settings, component, operator)
            for worker, component in components
        ],
    )
    found = labels(configuration, run_id)
    documents: list[dict[str, Any]] = []
    if files:
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": config_name(name), "labels": found},
                "data": files,
            }
        )
    documents.append(
        {
            "apiVersion": operator.api_version,
            "kind": KIND,
            "metadata": {"name": name, "labels": found},
            "spec": FORMS[operator.version](graph),
        }
    )
    for document in documents:
        document["metadata"]["namespace"] = settings.namespace
    return documents


def _with_image(
    benchmark: Benchmark,
    configuration: Configuration,
    worker: Worker | None,
    settings: ClusterSettings,
    component: Component,
    operator: Operator,
) -> Component:
    """The component with its image, and the Dynamo version for the operator if necessary."""
    image = image_of(benchmark, configuration, settings, worker)
    runtime = ""
    if operator.asks_runtime_version and not version_of(tag_of(image)):
        runtime = version_of(_dynamo(configuration, worker)) or settings.runtime_version
        if not runtime:
            raise TargetError(
                f"configuration {configuration.name!r}: the tag of image {image} is not a "
                "release of Dynamo, which the operator needs to know: set runtime_version in the "
                "cluster's settings, such as 'runtime_version: 1.6.1'"
            )
    container = {"image": image, **component.container}
    return replace(component, container=container, runtime_version=runtime)


def config_name(name: str) -> str:
    """The ConfigMap with the engine files of a deployment."""
    return f"{name}-config"


def _frontend(
    configuration: Configuration, settings: ClusterSettings, known: ModelSettings
) -> Component:
    args: dict[str, Any] = {"--router-mode": configuration.router}
    args |= known.frontend.args
    env = {**known.frontend.env, **settings.frontend.env}
    if settings.model_cache is not None:
        env = {"HF_HOME": settings.model_cache.path, **env}
    container = {
        "workingDir": "/workspace",
        "command": ["python3", "-m", "dynamo.frontend"],
        "args": _with_options(args, configuration.frontend_args),
        "env": _env(env),
    }
    amounts = given(cpu=settings.frontend.cpu, memory=settings.frontend.memory)
    return Component(
        FRONTEND,
        "frontend",
        1,
        given(**container),
        _pod(settings),
        requests=amounts,
        limits=amounts,
        model_cache=settings.model_cache,
    )


def _worker(
    benchmark: Benchmark,
    configuration: Configuration,
    worker: Worker,
    settings: ClusterSettings,
    known: ModelSettings,
    name: str,
    files: dict[str, str],
) -> Component:
    own = known.for_role(worker.mode)
    for role in ("all", worker.mode):
        own = merged(own, settings.engines.get(role, EngineSettings()))
    engine = engine_command(benchmark, configuration, worker)
    config = _engine_file(engine, own, worker)
    if config:
        files[f"{worker.mode}.yaml"] = dump(config)
    env = {**engine.env, **own.env, **_own_env(worker.env, configuration)}
    if settings.model_cache is not None:
        env = {"HF_HOME": settings.model_cache.path, **env}
    container: dict[str, Any] = {
        "workingDir": "/workspace",
        "command": list(engine.command),
        "args": _with_options({**engine.args, **own.args}, worker.engine_args),
        "env": _env(env),
    }
    if settings.run_as_root:
        container["securityContext"] = {"runAsUser": 0}
    if settings.startup_seconds:
        container["startupProbe"] = {
            "httpGet": {"path": "/live", "port": 9090},
            "periodSeconds": _PROBE_PERIOD_SECONDS,
            "timeoutSeconds": settings.probe_timeout_seconds,
            "failureThreshold": max(settings.startup_seconds // _PROBE_PERIOD_SECONDS, 1),
        }
    pod = _pod(settings)
    affinity = _affinity(configuration, name)
    if affinity:
        pod["affinity"] = affinity
    if config:
        container["volumeMounts"] = [
            {"name": _CONFIG_VOLUME, "mountPath": _CONFIG_PATH, "readOnly": True}
        ]
        pod["volumes"] = [{"name": _CONFIG_VOLUME, "configMap": {"name": config_name(name)}}]
    if settings.compute_domain:
        pod["resourceClaims"] = [
            {"name": _CLAIM, "resourceClaimTemplateName": settings.compute_domain}
        ]
    gpus = {GPU: str(worker.gpus_per_replica // worker.nodes)}
    return Component(
        SERVICE_NAMES[worker.mode],
        worker.mode,
        worker.replicas,
        given(**container),
        pod,
        nodes=worker.nodes,
        requests=gpus,
        limits={**gpus, **settings.custom_resources},
        claims=[_CLAIM] if settings.compute_domain else [],
        secret=settings.token_secret,
        shared_memory=own.shared_memory,
        model_cache=settings.model_cache,
        compilation_cache=settings.compilation_cache,
    )


def _engine_file(engine: EngineCommand, own: EngineSettings, worker: Worker) -> dict[str, Any]:
    """The engine's file: what the model needs under what the configuration says."""
    if not engine.config:
        if own.config:
            raise TargetError(
                f"engines: config is TensorRT-LLM's; {worker.mode} workers run "
                f"{engine.command[-1]}, which takes args"
            )
        return {}
    return deep_merge(own.config, engine.config)


def _pod(settings: ClusterSettings) -> dict[str, Any]:
    return placement(settings.node_selector, settings.tolerations, settings.image_pull_secret)


def _affinity(configuration: Configuration, name: str) -> dict[str, Any]:
    """Workers of a layout on several nodes apart, those of a split that fits one together."""
    workers = {
        "matchLabels": {GRAPH_LABEL: name},
        "matchExpressions": [{"key": TYPE_LABEL, "operator": "In", "values": list(WORKER_TYPES)}],
    }
    term = {"labelSelector": workers, "topologyKey": _HOST}
    if configuration.nodes > 1 and configuration.nodes == configuration.replicas:
        return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    preferred = {
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 100, "podAffinityTerm": term}
        ]
    }
    if configuration.nodes > 1:
        return {"podAntiAffinity": preferred}
    if configuration.disaggregated and configuration.gpus <= _GPUS_OF_A_NODE:
        return {"podAffinity": preferred}
    return {}


def _argv(args: Mapping[str, Any]) -> list[str]:
    found = []
    for flag, value in args.items():
        found.append(flag)
        if value is not None:
            found.append(str(value))
    return found


def _with_options(args: Mapping[str, Any], options: Mapping[str, OptionValue]) -> list[str]:
    """Arguments of ours, in which an option that the configuration gives is its own."""
    given = {f"--{prefix}{name}" for name in options for prefix in ("", "no-")}
    kept = {flag: value for flag, value in args.items() if flag not in given}
    return [*_argv(kept), *option_arguments(options)]


def _own_env(variables: Mapping[str, str], configuration: Configuration) -> Mapping[str, str]:
    for name in variables:
        if SECRET_NAME.search(name):
            raise TargetError(
                f"configuration {configuration.name!r}: env: {name} looks like a secret, and "
                "manifests are printed and stored; put it into a Secret and set token_secret in "
                "the cluster's settings"
            )
    return variables


def _env(variables: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in variables.items()]


def claims(settings: ClusterSettings) -> list[dict[str, Any]]:
    """Manifests of the volumes that have to exist, for those to create who may."""
    documents = []
    for volume in (settings.model_cache, settings.compilation_cache):
        if volume is None:
            continue
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": volume.size or "100Gi"}},
        }
        if settings.storage_class:
            spec["storageClassName"] = settings.storage_class
        documents.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": volume.claim, "namespace": settings.namespace},
                "spec": spec,
            }
        )
    return documents

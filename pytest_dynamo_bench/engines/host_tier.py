"""The host tier for KV blocks that some releases of Dynamo have in their mocker and replay."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Engine, WorkerMode
from pytest_dynamo_bench.dynamo.abilities import abilities
from pytest_dynamo_bench.dynamo.environment import dynamos_of
from pytest_dynamo_bench.engines.capacity import host_blocks
from pytest_dynamo_bench.engines.dimensions import model_dimensions
from pytest_dynamo_bench.errors import TargetError


@dataclass(frozen=True)
class HostTier:
    """A host tier as Dynamo takes it, per replica, or per rank with attention data parallelism.

    Attributes:
        blocks: KV blocks that it holds.
        bytes_per_token: KV cache of one token.
        to_host_gb_per_second, to_gpu_gb_per_second: 10^9 bytes per second; 0 takes no time.
    """

    blocks: int
    bytes_per_token: int
    to_host_gb_per_second: float
    to_gpu_gb_per_second: float


def host_tiers(
    benchmark: Benchmark, configuration: Configuration, engine: Engine
) -> dict[WorkerMode, HostTier]:
    """The host tiers that Dynamo itself has for a configuration, by the mode of the workers.

    Workers with KV offload that are missing here cannot have one: by their Dynamo, their engine,
    their drafts, or because they keep no blocks. Without KV offload no Dynamo is asked anything.

    Args:
        engine: whose scheduler the workers have.

    Raises:
        TargetError: a tier is too small for a block, or what its Dynamo can do is unknown.
    """
    found: dict[WorkerMode, HostTier] = {}
    for worker in configuration.workers:
        if worker.kv_offload is None or not worker.prefix_caching:
            continue
        able = abilities(dynamos_of(configuration)[worker.mode])
        drafts = worker.speculative is not None and worker.mode != "prefill"
        if engine not in able.host_offload or (drafts and not able.host_offload_with_drafts):
            continue
        blocks = host_blocks(benchmark, configuration, worker)
        if not blocks:
            raise TargetError(
                f"configuration {configuration.name!r}: the {worker.mode} workers' host_gib of "
                f"{worker.kv_offload.host_gib:g} holds no block of KV cache; give KvOffload more"
            )
        found[worker.mode] = HostTier(
            blocks,
            model_dimensions(benchmark.model).kv_bytes_per_token,
            worker.kv_offload.to_host_gb_per_second or 0.0,
            worker.kv_offload.to_gpu_gb_per_second or 0.0,
        )
    return found

"""How many tokens of KV cache a worker holds."""

from __future__ import annotations

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Engine, Worker
from pytest_dynamo_bench.engines.dimensions import gpu_memory_bytes, model_dimensions
from pytest_dynamo_bench.errors import TargetError

_GIB = 1 << 30
RUNTIME_BYTES = 4 * _GIB
_ACTIVATIONS_PER_TOKEN = 8
_DEFAULT_STEP_TOKENS = 8192
DEFAULT_MEMORY_FRACTION = 0.9


def kv_capacity_tokens(
    model: str,
    gpu: str,
    worker: Worker,
    engine: Engine,
    memory_fraction: float | None = None,
) -> int:
    """Tokens of KV cache that one replica holds, or one rank under attention data parallelism.

    A GPU's memory ``M`` holds its share of the weights ``W``, activations and the runtime
    ``R``, and the KV cache. ``memory_fraction`` ``f`` means, by each engine's documentation:

    * vLLM (``gpu_memory_utilization``) and SGLang (``mem_fraction_static``): the share of all
      memory that the engine may use, so that the cache gets ``f M - W - R``;
    * TensorRT-LLM (``free_gpu_memory_fraction``): the share of what is free once the model is
      loaded, so that it gets ``f (M - W - R)``.

    Tokens are that divided by the KV bytes of a token on one GPU
    (:meth:`ModelDimensions.kv_bytes_per_token_per_gpu`). Attention weights, dense MLPs and
    embeddings are divided by ``tp``, experts by all GPUs of the replica. ``R`` is 4 GiB for
    CUDA context, graphs and communication buffers, and eight BF16 activations of the hidden
    size for every token of a step, of all ranks under attention data parallelism, since the
    experts of a rank may be sent all of them; these are estimates.

    Args:
        memory_fraction: overrides ``worker.memory_fraction``; the default of both is 0.9.

    Raises:
        TargetError: model or GPU is not known, or the weights leave no room.
    """
    dimensions = model_dimensions(model)
    memory = gpu_memory_bytes(gpu)
    fraction = memory_fraction or worker.memory_fraction or DEFAULT_MEMORY_FRACTION
    weights = weights_bytes_per_gpu(model, worker)
    step_tokens = worker.max_num_batched_tokens or _DEFAULT_STEP_TOKENS
    step_tokens *= worker.attention_dp
    runtime = RUNTIME_BYTES + _ACTIVATIONS_PER_TOKEN * dimensions.hidden_size * 2 * step_tokens
    if engine == "trtllm":
        cache = fraction * (memory - weights - runtime)
    else:
        cache = fraction * memory - weights - runtime
    tokens = int(cache / dimensions.kv_bytes_per_token_per_gpu(worker.tp))
    if tokens <= 0:
        raise TargetError(
            f"{model} does not fit: {weights / _GIB:.1f} GiB of weights on each {gpu} "
            f"({memory / _GIB:.0f} GiB, memory fraction {fraction:g}) leave no room for a KV cache"
        )
    return tokens


def weights_bytes_per_gpu(model: str, worker: Worker) -> float:
    """Share of the model's weights that one GPU of the worker holds, bytes."""
    dimensions = model_dimensions(model)
    divided_by_tp = (
        dimensions.attention_weights_bytes
        + dimensions.dense_weights_bytes
        + dimensions.embedding_bytes
    )
    return divided_by_tp / worker.tp + dimensions.expert_weights_bytes / worker.gpus_per_replica


def device_blocks(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> int:
    """Blocks of KV cache in GPU memory, per replica or rank: as given, or as computed.

    Raises:
        TargetError: as for :func:`kv_capacity_tokens`.
    """
    if worker.kv_blocks is not None:
        return worker.kv_blocks
    tokens = kv_capacity_tokens(benchmark.model, benchmark.hardware.gpu, worker, benchmark.engine)
    return tokens // configuration.block_size


def host_blocks(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> int:
    """Blocks of KV cache that KV offload keeps in host memory, per replica or rank; 0 without.

    Raises:
        TargetError: the model's dimensions are not known.
    """
    if worker.kv_offload is None:
        return 0
    block_bytes = model_dimensions(benchmark.model).kv_bytes_per_token * configuration.block_size
    return int(worker.kv_offload.host_gib * _GIB / worker.attention_dp / block_bytes)

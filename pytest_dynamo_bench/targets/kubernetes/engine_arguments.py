"""A worker's data as the arguments of its engine: vLLM, TensorRT-LLM or SGLang.

Which flag switches which feature is Dynamo's documentation of the three engines; what a feature has
no switch for on an engine is an error and not left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.traffic import PooledImages, SlidingWindowImages

# vLLM's default changed between versions, and the published recipes that name one name this.
_VLLM_MEMORY = 0.9
_EVENTS_PORT = 20080
_GIB = 2**30
# TensorRT-LLM's priority from which on a block is worth copying to the host; default 35.
_OFFLOAD_PRIORITY = 35


@dataclass(frozen=True)
class EngineCommand:
    """How a worker's engine is started.

    Attributes:
        command: the program.
        args: flags with their values; None for a flag without one. A flag that is ``True`` or
            ``False`` does not occur: engines spell both out.
        config: the engine file of TensorRT-LLM, empty elsewhere.
        env: environment variables that a feature needs.
    """

    command: tuple[str, ...]
    args: dict[str, str | None]
    config: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


def engine_command(
    benchmark: Benchmark, configuration: Configuration, worker: Worker
) -> EngineCommand:
    """The command of a worker.

    Raises:
        TargetError: the engine has no switch for a feature of the configuration.
    """
    makers = {"vllm": _vllm, "trtllm": _trtllm, "sglang": _sglang}
    return makers[benchmark.engine](benchmark, configuration, worker)


def _unsupported(engine: str, feature: str, remedy: str) -> TargetError:
    return TargetError(f"{engine} has no {feature}: {remedy}")


def _image_flags(benchmark: Benchmark, worker: Worker) -> dict[str, str | None]:
    """What workers need for requests with images."""
    used = worker.frontend_decoding or worker.embedding_cache_gib is not None
    images = used or isinstance(benchmark.traffic, PooledImages | SlidingWindowImages)
    flags = {"--enable-multimodal": images, "--frontend-decoding": worker.frontend_decoding}
    return {flag: None for flag, wanted in flags.items() if wanted}


def _number(value: float) -> str:
    """As people write it: ``8``, ``0.092``."""
    return f"{value:.12g}"


def _share(value: float) -> str:
    """``0.90``, as the recipes write shares."""
    return f"{value:.2f}" if round(value, 2) == value else _number(value)


def _routes_by_events(configuration: Configuration, worker: Worker) -> bool:
    """Whether the KV router has to learn of this worker's cache; decode workers of a split and
    workers without a cache have nothing that it could use."""
    return configuration.router == "kv" and worker.mode != "decode" and worker.prefix_caching


def _vllm(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> EngineCommand:
    args: dict[str, str | None] = {"--model": benchmark.model}
    split, offload = worker.mode != "aggregated", worker.kv_offload
    if split:
        args["--disaggregation-mode"] = worker.mode
    if split and offload:
        args["--kv-transfer-config"] = _compact(
            {
                "kv_connector": "MultiConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": {
                    "connectors": [
                        {"kv_connector": "NixlConnector", "kv_role": "kv_both"},
                        {
                            "kv_connector": "OffloadingConnector",
                            "kv_role": "kv_both",
                            "kv_connector_extra_config": {
                                "cpu_bytes_to_use": round(offload.host_gib * _GIB)
                            },
                        },
                    ]
                },
            }
        )
    elif split:
        args["--kv-transfer-config"] = _compact(
            {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        )
    elif offload:
        args |= {
            "--kv-offloading-backend": "native",
            "--kv-offloading-size": _number(offload.host_gib),
        }
    args["--tensor-parallel-size"] = str(worker.tp)
    if worker.attention_dp > 1:
        args["--data-parallel-size"] = str(worker.attention_dp)
    if (worker.moe_ep or 1) > 1:
        args["--enable-expert-parallel"] = None
    args["--gpu-memory-utilization"] = _share(worker.memory_fraction or _VLLM_MEMORY)
    args["--block-size"] = str(configuration.block_size)
    args["--enable-prefix-caching" if worker.prefix_caching else "--no-enable-prefix-caching"] = (
        None
    )
    _limits(args, worker, "--max-num-seqs", "--max-num-batched-tokens")
    if worker.speculative is not None:
        draft = worker.speculative
        speculative = {"method": draft.method.lower(), "num_speculative_tokens": draft.draft_tokens}
        if draft.draft_model:
            speculative["model"] = draft.draft_model
        args["--speculative-config"] = _compact(speculative)
    if _routes_by_events(configuration, worker):
        args["--kv-events-config"] = _events()
    args |= _image_flags(benchmark, worker)
    env = {}
    if worker.embedding_cache_gib is not None:
        args["--multimodal-embedding-cache-capacity-gb"] = _number(worker.embedding_cache_gib)
        env["DYN_VLLM_EMBEDDING_TRANSFER_MODE"] = "nixl-write"
    return EngineCommand(("python3", "-m", "dynamo.vllm"), args, env=env)


def _trtllm(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> EngineCommand:
    args: dict[str, str | None] = {
        "--model-path": benchmark.model,
        "--served-model-name": benchmark.model,
        "--extra-engine-args": f"/config/{worker.mode}.yaml",
    }
    split = worker.mode != "aggregated"
    if split:
        args["--disaggregation-mode"] = worker.mode
    if configuration.router == "kv":
        args["--publish-kv-events"] = None
    args["--kv-block-size"] = str(configuration.block_size)
    cache: dict[str, Any] = {
        "enable_block_reuse": worker.prefix_caching,
        "tokens_per_block": configuration.block_size,
    }
    if worker.memory_fraction is not None:
        cache["free_gpu_memory_fraction"] = worker.memory_fraction
    if worker.kv_offload is not None:
        cache["host_cache_size"] = round(worker.kv_offload.host_gib * _GIB)
        cache["secondary_offload_min_priority"] = _OFFLOAD_PRIORITY
    config: dict[str, Any] = {
        # Ranks of attention data parallelism are counted here as well.
        "tensor_parallel_size": worker.gpus_per_replica,
        "pipeline_parallel_size": 1,
        "enable_attention_dp": worker.attention_dp > 1,
        "kv_cache_config": cache,
    }
    if worker.moe_ep is not None:
        config["moe_expert_parallel_size"] = worker.moe_ep
    if worker.wideep:
        config["moe_config"] = {"backend": "WIDEEP"}
    if worker.max_num_seqs is not None:
        config["max_batch_size"] = worker.max_num_seqs
    if worker.max_num_batched_tokens is not None:
        config["max_num_tokens"] = worker.max_num_batched_tokens
    if worker.mode != "decode":
        config["enable_chunked_prefill"] = True
    if worker.mode == "prefill":
        config["disable_overlap_scheduler"] = True
    if split:
        config["cache_transceiver_config"] = {"backend": "UCX"}
    if worker.speculative is not None:
        draft = worker.speculative
        config["speculative_config"] = {
            "decoding_type": draft.method,
            "max_draft_len": draft.draft_tokens,
            **({"speculative_model_dir": draft.draft_model} if draft.draft_model else {}),
            **({"allow_advanced_sampling": True} if draft.method.startswith("Eagle") else {}),
        }
    args |= _image_flags(benchmark, worker)
    if worker.embedding_cache_gib is not None:
        raise _unsupported(
            "TensorRT-LLM",
            "embedding cache for workers that encode and prefill",
            "use engine='vllm', or leave embedding_cache_gib out",
        )
    return EngineCommand(("python3", "-m", "dynamo.trtllm"), args, config)


def _sglang(benchmark: Benchmark, configuration: Configuration, worker: Worker) -> EngineCommand:
    args: dict[str, str | None] = {
        "--model-path": benchmark.model,
        "--served-model-name": benchmark.model,
        "--tp-size": str(worker.gpus_per_replica),
        "--page-size": str(configuration.block_size),
        "--trust-remote-code": None,
    }
    if worker.mode != "aggregated":
        args["--disaggregation-mode"] = worker.mode
        args["--disaggregation-transfer-backend"] = "nixl"
    if worker.attention_dp > 1:
        args["--dp-size"] = str(worker.attention_dp)
        args["--enable-dp-attention"] = None
    if (worker.moe_ep or 1) > 1:
        args["--ep-size"] = str(worker.moe_ep)
    if worker.wideep:
        args["--moe-a2a-backend"] = "deepep"
    if worker.memory_fraction is not None:
        args["--mem-fraction-static"] = _share(worker.memory_fraction)
    if not worker.prefix_caching:
        args["--disable-radix-cache"] = None
    _limits(args, worker, "--max-running-requests", "--chunked-prefill-size")
    if worker.kv_offload is not None:
        if worker.kv_offload.host_gib % 1:
            raise _unsupported(
                "SGLang", f"KV offload of {_number(worker.kv_offload.host_gib)} GiB",
                "its --hicache-size must be a whole number; use a whole number for host_gib",
            )  # fmt: skip
        args |= {
            "--enable-hierarchical-cache": None,
            "--hicache-size": _number(worker.kv_offload.host_gib),
            "--hicache-write-policy": "write_through",
        }
    if worker.speculative is not None:
        draft = worker.speculative
        args |= {
            "--speculative-algorithm": "EAGLE" if draft.method == "MTP" else draft.method.upper(),
            "--speculative-num-steps": str(draft.draft_tokens),
            "--speculative-eagle-topk": "1",
            "--speculative-num-draft-tokens": str(draft.draft_tokens + 1),
        }
        if draft.draft_model:
            args["--speculative-draft-model-path"] = draft.draft_model
    if _routes_by_events(configuration, worker):
        args["--kv-events-config"] = _events()
    if worker.embedding_cache_gib is not None:
        raise _unsupported(
            "SGLang", "embedding cache", "use engine='vllm', or leave embedding_cache_gib out"
        )
    args |= _image_flags(benchmark, worker)
    return EngineCommand(("python3", "-m", "dynamo.sglang"), args)


def _limits(args: dict[str, str | None], worker: Worker, requests: str, tokens: str) -> None:
    if worker.max_num_seqs is not None:
        args[requests] = str(worker.max_num_seqs)
    if worker.max_num_batched_tokens is not None:
        args[tokens] = str(worker.max_num_batched_tokens)


def _events() -> str:
    return _compact(
        {
            "publisher": "zmq",
            "topic": "kv-events",
            "endpoint": f"tcp://*:{_EVENTS_PORT}",
            "enable_kv_cache_events": True,
        }
    )


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))

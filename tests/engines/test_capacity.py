"""Model dimensions and KV capacity against numbers known from elsewhere."""

import pytest

from pytest_dynamo_bench import Worker
from pytest_dynamo_bench.engines import kv_capacity_tokens, model_dimensions
from pytest_dynamo_bench.errors import TargetError


@pytest.mark.parametrize(
    ("model", "kib"),
    [
        ("Qwen/Qwen3-32B", 256),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 320),
        ("nvidia/Kimi-K2.5-NVFP4", 61 * 576 / 1024),
        ("nvidia/DeepSeek-V3.2-NVFP4", 61 * (512 + 2 * 64 + 132) / 1024),
    ],
)
def test_kv_bytes_of_a_token(model, kib):
    assert model_dimensions(model).kv_bytes_per_token == kib * 1024


def test_tensor_parallelism_divides_heads_but_not_a_latent():
    qwen = model_dimensions("Qwen/Qwen3-32B")
    assert qwen.kv_bytes_per_token_per_gpu(2) == qwen.kv_bytes_per_token // 2
    assert qwen.kv_bytes_per_token_per_gpu(16) == qwen.kv_bytes_per_token // 8
    kimi = model_dimensions("nvidia/Kimi-K2.5-NVFP4")
    assert kimi.kv_bytes_per_token_per_gpu(8) == kimi.kv_bytes_per_token


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen/Qwen3-32B", 32.8),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 70.6),
        ("nvidia/DeepSeek-V3.2-NVFP4", 671),
        ("nvidia/Kimi-K2.5-NVFP4", 1026),
    ],
)
def test_weights_add_up_to_the_known_parameter_count(model, billions):
    dimensions = model_dimensions(model)
    mlp = dimensions.dense_weights_bytes + dimensions.expert_weights_bytes
    parameters = (
        dimensions.attention_weights_bytes / dimensions.attention_weight_bytes
        + mlp / dimensions.mlp_weight_bytes
        + dimensions.embedding_bytes / 2
    )
    assert parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_a_fraction_of_all_memory_and_of_free_memory_differ():
    worker = Worker(1, tp=2)
    of_total = kv_capacity_tokens("Qwen/Qwen3-32B", "H200", worker, "vllm", 0.5)
    of_free = kv_capacity_tokens("Qwen/Qwen3-32B", "H200", worker, "trtllm", 0.5)
    assert of_total < of_free


def test_the_workers_own_fraction_is_used():
    small = Worker(1, tp=2, memory_fraction=0.5)
    assert kv_capacity_tokens("Qwen/Qwen3-32B", "H200", small, "vllm") == kv_capacity_tokens(
        "Qwen/Qwen3-32B", "H200", Worker(1, tp=2), "vllm", 0.5
    )


def test_errors_say_what_would_be_right():
    with pytest.raises(TargetError, match=r"GPU 'H900'.*H200"):
        kv_capacity_tokens("Qwen/Qwen3-32B", "H900", Worker(1), "vllm")
    with pytest.raises(TargetError, match=r"'who/knows'.*Qwen/Qwen3-32B"):
        model_dimensions("who/knows")
    with pytest.raises(TargetError, match="does not fit"):
        kv_capacity_tokens("nvidia/Kimi-K2.5-NVFP4", "H100", Worker(1, tp=2), "vllm")

"""What a model's own numbers say: the size of its KV cache per token, and of its weights."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from pytest_dynamo_bench.errors import TargetError


@dataclass(frozen=True)
class ModelDimensions:
    """The dimensions of a model's text part, as in its ``config.json``.

    Attributes:
        model: model id.
        layers: transformer layers.
        hidden_size: width of the residual stream.
        attention: ``gqa`` (keys and values for each of ``kv_heads``), or ``mla`` (one latent
            vector of ``kv_lora_rank`` and a rotary part for all heads).
        attention_layers: layers that keep a KV cache; fewer than ``layers`` in hybrids.
        query_heads: attention heads.
        kv_heads: heads that keys and values are kept for; 1 for MLA.
        head_dim: elements of a key, or of a value; for MLA of the latent and rotary part.
        vocabulary: rows of the embedding and of the output projection.
        kv_element_bytes: bytes of an element of the KV cache.
        attention_weight_bytes: bytes of an attention weight, scales included.
        mlp_weight_bytes: bytes of an MLP or expert weight, scales included.
        dense_layers: layers with an MLP of ``intermediate_size`` instead of experts.
        experts: experts of each of the other layers, ``expert_intermediate_size`` wide.
        rope_element_bytes: MLA: bytes of an element of the rotary part.
        index_entry_bytes: bytes that a sparse-attention indexer keeps per token and layer.
        image_embedding_values: numbers that the vision encoder gives for one token of an image,
            0 for models without one; nothing else here counts the encoder.
        source: where the numbers are from.
    """

    model: str
    layers: int
    hidden_size: int
    attention: Literal["gqa", "mla"]
    attention_layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    kv_element_bytes: float
    attention_weight_bytes: float
    mlp_weight_bytes: float
    source: str
    dense_layers: int = 0
    intermediate_size: int = 0
    experts: int = 0
    expert_intermediate_size: int = 0
    shared_expert_intermediate_size: int = 0
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    v_head_dim: int = 0
    rope_element_bytes: float = 0
    index_heads: int = 0
    index_head_dim: int = 0
    index_entry_bytes: int = 0
    linear_attention_layers: int = 0
    linear_key_heads: int = 0
    linear_value_heads: int = 0
    linear_head_dim: int = 0
    image_embedding_values: int = 0

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers, bytes; what a prefill/decode split moves.

        Grouped-query attention (Ainslie et al., EMNLP 2023) keeps a key and a value for
        each KV head: ``2 * layers * kv_heads * head_dim * element``. Multi-head latent
        attention (DeepSeek-V2, section 2.1) keeps one latent vector and one rotary key for
        all heads together: ``layers * (kv_lora_rank * element + rope * element)``, to which
        DeepSeek-V3.2's indexer adds an entry.
        """
        if self.attention == "mla":
            per_layer = (
                self.kv_lora_rank * self.kv_element_bytes
                + self.qk_rope_head_dim * self.rope_element_bytes
                + self.index_entry_bytes
            )
        else:
            per_layer = 2 * self.kv_heads * self.head_dim * self.kv_element_bytes
        return round(self.attention_layers * per_layer)

    def kv_bytes_per_token_per_gpu(self, tp: int) -> int:
        """KV cache of one token on one GPU under tensor parallelism, bytes.

        Tensor parallelism divides KV heads, down to one a GPU. The latent vector of MLA
        belongs to all heads and is kept whole on every GPU.
        """
        if self.attention == "mla":
            return self.kv_bytes_per_token
        return self.kv_bytes_per_token // self.kv_heads * -(-self.kv_heads // tp)

    @property
    def attention_weights_bytes(self) -> float:
        """Weights of all attention layers, bytes: the projections, biases and norms left out."""
        hidden = self.hidden_size
        if self.attention == "mla":
            per_layer = (
                hidden * self.q_lora_rank
                + self.q_lora_rank
                * self.query_heads
                * (self.qk_nope_head_dim + self.qk_rope_head_dim)
                + hidden * (self.kv_lora_rank + self.qk_rope_head_dim)
                + self.kv_lora_rank * self.query_heads * (self.qk_nope_head_dim + self.v_head_dim)
                + self.query_heads * self.v_head_dim * hidden
                + self.q_lora_rank * self.index_heads * self.index_head_dim
                + hidden * self.index_head_dim
            )
        else:
            per_layer = 2 * hidden * self.head_dim * (self.query_heads + self.kv_heads)
        linear = (
            hidden
            * self.linear_head_dim
            * (2 * self.linear_key_heads + 3 * self.linear_value_heads)
        )
        weights = self.attention_layers * per_layer + self.linear_attention_layers * linear
        return weights * self.attention_weight_bytes

    @property
    def dense_weights_bytes(self) -> float:
        """Weights of the dense MLPs and shared experts, bytes: gate, up and down projection."""
        per_token = (
            self.dense_layers * self.intermediate_size
            + (self.layers - self.dense_layers) * self.shared_expert_intermediate_size
        )
        return 3 * self.hidden_size * per_token * self.mlp_weight_bytes

    @property
    def expert_weights_bytes(self) -> float:
        """Weights of all routed experts, bytes: gate, up and down projection of each."""
        experts = (self.layers - self.dense_layers) * self.experts
        return (
            3 * self.hidden_size * self.expert_intermediate_size * experts * self.mlp_weight_bytes
        )

    @property
    def embedding_bytes(self) -> float:
        """Embedding and output projection, bytes; they stay in BF16."""
        return 2 * self.vocabulary * self.hidden_size * 2.0


def model_dimensions(model: str) -> ModelDimensions:
    """The dimensions of a model by its id.

    Raises:
        TargetError: none are shipped; the message lists those that are.
    """
    found = _shipped().get(model)
    if found is None:
        raise TargetError(
            f"the dimensions of model {model!r} are unknown; known models: "
            f"{', '.join(sorted(_shipped()))}"
        )
    return found


@functools.cache
def _shipped() -> dict[str, ModelDimensions]:
    rows = read_data("models.json")
    known = {item.name for item in dataclasses.fields(ModelDimensions)}
    for model, row in rows.items():
        assert not set(row) - known, f"models.json, {model}: unknown {set(row) - known}"
    return {model: ModelDimensions(model=model, **row) for model, row in rows.items()}


def gpu_memory_bytes(gpu: str) -> int:
    """Memory of a GPU, bytes.

    Raises:
        TargetError: the GPU is not known; the message lists those that are.
    """
    rows = read_data("gpus.json")
    if gpu not in rows:
        raise TargetError(f"unknown GPU {gpu!r}; known: {', '.join(sorted(rows))}")
    return int(rows[gpu]["memory_bytes"])


@functools.cache
def read_data(name: str) -> dict[str, Any]:
    """A shipped JSON file of this package."""
    text = (resources.files("pytest_dynamo_bench.engines") / "data" / name).read_text("utf-8")
    data: dict[str, Any] = json.loads(text)
    return data

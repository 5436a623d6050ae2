"""Which profiles are shipped, and from what each is made.

Adding one is a row here and a run of ``python -m pytest_dynamo_bench.engines.make``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SYSTEMS: Mapping[str, str] = {
    "A100": "a100_sxm",
    "H100": "h100_sxm",
    "H200": "h200_sxm",
    "B200": "b200_sxm",
    "B300": "b300_sxm",
    "GB200": "gb200",
    "GB300": "gb300",
}


@dataclass(frozen=True)
class ProfileSpec:
    """A profile to be made.

    Attributes:
        model: model id as benchmarks name it.
        gpu: as in ``Hardware.gpu``.
        engine: ``vllm``, ``sglang`` or ``trtllm``.
        tp: tensor parallelism of the attention.
        attention_dp: attention data parallelism.
        moe_ep: GPUs over which experts are spread.
        draft_tokens: drafts that a decode step checks.
        source_model: model id that aiconfigurator is asked for; the model's own if empty.
        quantization: quantization modes that override aiconfigurator's choice.
        stand_in: what of it stands in for something else, and why.
    """

    model: str
    gpu: str
    engine: str
    tp: int = 1
    attention_dp: int = 1
    moe_ep: int = 1
    draft_tokens: int = 0
    source_model: str = ""
    quantization: Mapping[str, str] = field(default_factory=dict)
    stand_in: str = ""

    @property
    def name(self) -> str:
        """The file's name, without suffix: ``Qwen3-32B--H200-vllm-tp2``."""
        parts = [self.gpu, self.engine, f"tp{self.tp}"]
        parts += [f"dp{self.attention_dp}"] if self.attention_dp > 1 else []
        parts += [f"ep{self.moe_ep}"] if self.moe_ep > 1 else []
        parts += [f"draft{self.draft_tokens}"] if self.draft_tokens else []
        return f"{self.model.rpartition('/')[2]}--{'-'.join(parts)}"

    @property
    def moe_tp(self) -> int:
        """GPUs that each expert is split over."""
        return max(1, self.tp * self.attention_dp // self.moe_ep)


_QWEN3_32B = ProfileSpec("Qwen/Qwen3-32B", "H200", "vllm", tp=2)
_LLAMA = ProfileSpec(
    "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic",
    "H200",
    "vllm",
    tp=4,
    source_model="nvidia/Llama-3.1-70B-Instruct-FP8",
    quantization={"kvcache_quant_mode": "bfloat16", "fmha_quant_mode": "bfloat16"},
    stand_in=(
        "Llama-3.1-70B has the dimensions of Llama-3.3-70B; its FP8 is static per tensor, the "
        "recipe's is dynamic per token; KV cache and attention in BF16 as in the recipe"
    ),
)
_DEEPSEEK = ProfileSpec("nvidia/DeepSeek-V3.2-NVFP4", "GB200", "trtllm", attention_dp=8, moe_ep=8)
_KIMI = ProfileSpec(
    "nvidia/Kimi-K2.5-NVFP4",
    "GB200",
    "trtllm",
    tp=8,
    moe_ep=8,
    quantization={"fmha_quant_mode": "bfloat16"},
    stand_in="attention kernels in BF16: the source has none for the default, FP8",
)
_KIMI_DEP4 = replace(_KIMI, tp=1, attention_dp=4, moe_ep=4)
_KIMI_TEP4 = replace(_KIMI, tp=4, moe_ep=4)
_QWEN3_VL = ProfileSpec(
    "Qwen/Qwen3-VL-30B-A3B-Instruct-FP8",
    "GB200",
    "vllm",
    source_model="Qwen/Qwen3-VL-30B-A3B-Instruct",
    quantization={"gemm_quant_mode": "fp8", "moe_quant_mode": "fp8"},
    stand_in=(
        "per-tensor FP8 for block-wise FP8, whose rows in the source give an implausible 55 ms "
        "decode step; text part only"
    ),
)
_BLOCK_FP8 = {"gemm_quant_mode": "fp8_block", "moe_quant_mode": "fp8_block"}
_QWEN36 = ProfileSpec(
    "Qwen/Qwen3.6-35B-A3B-FP8",
    "H100",
    "vllm",
    source_model="Qwen/Qwen3.5-35B-A3B",
    quantization=_BLOCK_FP8,
    stand_in="Qwen3.5-35B-A3B has the dimensions of Qwen3.6-35B-A3B; text part only",
)

SHIPPED: tuple[ProfileSpec, ...] = (
    _QWEN3_32B,
    *(replace(_LLAMA, gpu=gpu, tp=tp) for gpu in ("H200", "H100") for tp in (2, 4, 8)),
    _DEEPSEEK,
    replace(_DEEPSEEK, attention_dp=16, moe_ep=16),
    *(
        replace(spec, draft_tokens=drafts)
        for spec in (_KIMI, _KIMI_DEP4, _KIMI_TEP4)
        for drafts in (0, 3)
    ),
    _QWEN3_VL,
    replace(_QWEN3_VL, gpu="H100", quantization=_BLOCK_FP8, stand_in="text part only"),
    _QWEN36,
    replace(
        _QWEN36,
        gpu="GB200",
        quantization=_QWEN3_VL.quantization,
        stand_in=f"{_QWEN36.stand_in}; per-tensor FP8 for block-wise FP8",
    ),
)

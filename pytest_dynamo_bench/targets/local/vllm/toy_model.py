"""A toy Qwen2-VL: what vLLM and Dynamo read of a model, and no weights, since vLLM makes them up.

Its vision tower is large beside its language model, so that encoding an image takes long enough
to be seen on a processor, and answering does not.
"""

from __future__ import annotations

from pathlib import Path

from pytest_dynamo_bench.targets.local.model_directory import (
    END_OF_TEXT,
    write_json_files,
    write_tokenizer,
)

ARCHITECTURE = "Qwen2VLForConditionalGeneration"
VISION_START, VISION_END, IMAGE, VIDEO = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# The frontend counts a place for each image and the two around it; the worker makes as many of
# the place as the image has tokens.
MARKS_OF_AN_IMAGE = 2
HIDDEN_SIZE = 64
ELEMENT_BYTES = 4
TOKEN_PIXELS = 28
TOWER_DEPTH, TOWER_WIDTH = 8, 512
_PATCH, _MERGE = 14, 2
_LEAST_IMAGE_TOKENS, MOST_IMAGE_TOKENS = 1, 256
CONTEXT_TOKENS = 4096
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}" + VISION_START + IMAGE + VISION_END + "{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def image_tokens(width: int, height: int) -> int:
    """Tokens that an image takes in the prompt: sides rounded to multiples of 28 pixels."""
    columns, rows = (max(1, round(side / TOKEN_PIXELS)) for side in (width, height))
    return columns * rows


def embedding_bytes(tokens: int) -> int:
    """Memory of the encoder's result for so many tokens, as Dynamo's cache counts it."""
    return tokens * HIDDEN_SIZE * ELEMENT_BYTES


def write_toy_model(directory: Path) -> None:
    """Write tokenizer, chat template and configuration; a prompt of n words is n tokens.

    Args:
        directory: made if it does not exist.
    """
    special = (VISION_START, VISION_END, IMAGE, VIDEO)
    tokens = write_tokenizer(directory, _CHAT_TEMPLATE, special)
    files = {
        "config.json": {
            "architectures": [ARCHITECTURE],
            "model_type": "qwen2_vl",
            "hidden_size": HIDDEN_SIZE,
            "intermediate_size": 2 * HIDDEN_SIZE,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": CONTEXT_TOKENS,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "vocab_size": len(tokens),
            "bos_token_id": None,
            "eos_token_id": tokens[END_OF_TEXT],
            "vision_start_token_id": tokens[VISION_START],
            "vision_end_token_id": tokens[VISION_END],
            "image_token_id": tokens[IMAGE],
            "video_token_id": tokens[VIDEO],
            "vision_config": {
                "model_type": "qwen2_vl",
                "depth": TOWER_DEPTH,
                "embed_dim": TOWER_WIDTH,
                "hidden_size": HIDDEN_SIZE,
                "num_heads": 8,
                "mlp_ratio": 4,
                "in_channels": 3,
                "patch_size": _PATCH,
                "spatial_merge_size": _MERGE,
                "temporal_patch_size": 2,
            },
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "min_pixels": _LEAST_IMAGE_TOKENS * TOKEN_PIXELS**2,
            "max_pixels": MOST_IMAGE_TOKENS * TOKEN_PIXELS**2,
            "patch_size": _PATCH,
            "merge_size": _MERGE,
            "temporal_patch_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }
    write_json_files(directory, files)

"""A model directory without weights: what Dynamo's frontend and mockers read of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_dynamo_bench.engines import ModelDimensions
from pytest_dynamo_bench.traffic.prompts import VOCABULARY_TOKENS, word

END_OF_TEXT = "<end>"
_UNKNOWN = "<unknown>"
_MAX_TOKENS = 262_144
# Text as it is; images leave nothing in the prompt, their tokens are the worker's.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def write_tokenizer(
    directory: Path, chat_template: str, special: Sequence[str] = ()
) -> dict[str, int]:
    """Write a tokenizer, and who ends an answer.

    It knows the words of :mod:`pytest_dynamo_bench.traffic.prompts`, one word one token.

    Args:
        directory: made if it does not exist.
        chat_template: what makes a prompt of messages.
        special: further tokens, found in a text without spaces around them too.

    Returns:
        All tokens with their ids.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word(token): token for token in range(VOCABULARY_TOKENS)}
    vocabulary |= {_UNKNOWN: VOCABULARY_TOKENS, END_OF_TEXT: VOCABULARY_TOKENS + 1}
    vocabulary |= {token: VOCABULARY_TOKENS + 2 + index for index, token in enumerate(special)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    files: dict[str, dict[str, object]] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": _UNKNOWN,
            "eos_token": END_OF_TEXT,
            "chat_template": chat_template,
        },
        "generation_config.json": {"eos_token_id": vocabulary[END_OF_TEXT]},
    }
    write_json_files(directory, files)
    return vocabulary


def write_model_directory(directory: Path, dimensions: ModelDimensions) -> None:
    """Write tokenizer and configuration.

    The chat template adds nothing, so that a prompt of n words is n tokens.

    Args:
        directory: made if it does not exist.
        dimensions: the model's; ``config.json`` says those that size a KV cache. It names an
            architecture that every reader of such files knows, since no weights are loaded.
    """
    vocabulary = write_tokenizer(directory, _CHAT_TEMPLATE)
    configuration: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dimensions.hidden_size,
        "num_hidden_layers": dimensions.layers,
        "num_attention_heads": dimensions.query_heads,
        "num_key_value_heads": dimensions.kv_heads,
        "head_dim": dimensions.head_dim,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": _MAX_TOKENS,
        "vocab_size": len(vocabulary),
        "eos_token_id": vocabulary[END_OF_TEXT],
    }
    write_json_files(directory, {"config.json": configuration})


def write_json_files(directory: Path, files: Mapping[str, Mapping[str, object]]) -> None:
    """Write the files of a model, by name."""
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")

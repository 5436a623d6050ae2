"""A model directory without weights: what Dynamo's frontend and mockers read of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.traffic.prompts import VOCABULARY_TOKENS, word

_END_OF_TEXT = "<end>"
_UNKNOWN = "<unknown>"


def write_model_directory(directory: Path, dimensions: Mapping[str, Any]) -> None:
    """Write tokenizer and configuration.

    The tokenizer knows the words of :mod:`pytest_dynamo_bench.traffic.prompts`, one word one
    token, and the chat template adds nothing, so that a prompt of n words is n tokens.

    Args:
        directory: made if it does not exist.
        dimensions: what ``config.json`` says of the model, in the keys of transformers.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    vocabulary = {word(token): token for token in range(VOCABULARY_TOKENS)}
    vocabulary |= {_UNKNOWN: VOCABULARY_TOKENS, _END_OF_TEXT: VOCABULARY_TOKENS + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    files = {
        "config.json": {
            **dimensions,
            "vocab_size": len(vocabulary),
            "eos_token_id": vocabulary[_END_OF_TEXT],
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": _UNKNOWN,
            "eos_token": _END_OF_TEXT,
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        },
        "generation_config.json": {"eos_token_id": vocabulary[_END_OF_TEXT]},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2), encoding="utf-8")

"""Run by AIPerf's own interpreter: what AIPerf refuses of what is written for it.

Reads ``{"arguments": [...], "dataset": [...], "records": [...], "summary": {...}}`` and writes
what is wrong with each; AIPerf takes fields that it does not know, so that those are named as well.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from aiperf.cli import app
from aiperf.common.models.export_models import JsonExportData
from aiperf.common.models.record_models import MetricRecordInfo, MetricRecordMetadata
from aiperf.config.flags.resolver import resolve_config
from aiperf.config.loader import build_benchmark_plan
from aiperf.dataset.loader.models import SingleTurn
from pydantic import ValidationError


def _command_line(arguments: list[str]) -> str:
    try:
        _, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
        config = bound.arguments["cli_config"]
        build_benchmark_plan(resolve_config(config, config.config_file))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _contents(model: Any, items: list[dict[str, Any]], part: str = "", of: Any = None) -> list[str]:
    found = []
    for item in items:
        try:
            model.model_validate(item)
        except ValidationError as error:
            found.append(str(error))
        inner, fields = (item[part], of.model_fields) if part else (item, model.model_fields)
        found += [f"no field {name}" for name in inner if name not in fields]
    return sorted(set(found))


def main() -> None:
    content = json.load(sys.stdin)
    answer = {
        "arguments": [_command_line(arguments) for arguments in content["arguments"]],
        "dataset": _contents(SingleTurn, content["dataset"]),
        "records": _contents(
            MetricRecordInfo, content["records"], "metadata", MetricRecordMetadata
        ),
        "summary": _contents(JsonExportData, [content["summary"]]),
    }
    sys.stdout.write("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()

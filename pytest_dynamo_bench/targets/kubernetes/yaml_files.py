"""YAML with line numbers, read and written through PyYAML, which is imported when needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.errors import TargetError

Lines = dict[tuple[Any, ...], int]
REMEDY = "install it with: pip install 'pytest-dynamo-bench[kubernetes]'"


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise TargetError(f"target 'kubernetes' needs PyYAML; {REMEDY}") from None
    return yaml


def read_documents(path: Path) -> list[tuple[Any, Lines]]:
    """All documents of a file, each with the line of every key and item by its path.

    Raises:
        TargetError: it cannot be read, or is not YAML; names file and line.
    """
    yaml = _yaml()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise TargetError(f"{path}: cannot be read: {reason}") from None
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        contents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise TargetError(f"{path}{where}: is not YAML: {problem}") from None
    documents = []
    for node, content in zip(nodes, contents, strict=True):
        lines: Lines = {}
        if node is not None:
            _note_lines(node, (), lines)
            documents.append((content, lines))
    return documents


def _note_lines(node: Any, path: tuple[Any, ...], lines: Lines) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if node.id == "mapping":
        for key, value in node.value:
            lines[(*path, key.value)] = key.start_mark.line + 1
            _note_lines(value, (*path, key.value), lines)
    elif node.id == "sequence":
        for index, value in enumerate(node.value):
            _note_lines(value, (*path, index), lines)


def dump(document: Any) -> str:
    """A document as block YAML, in the order of its keys; texts of several lines as blocks."""
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc,name-defined]
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, data: str) -> Any:
        style = "|" if "\n" in data else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    dumped: str = yaml.dump(
        document, Dumper=Dumper, sort_keys=False, default_flow_style=False, width=100
    )
    return dumped


def dump_all(documents: Sequence[Mapping[str, Any]]) -> str:
    """Documents separated by ``---``."""
    return "---\n".join(dump(document) for document in documents)

"""Every command that is published: what the documentation, the help and docstrings print."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

PROJECT = Path(__file__).parents[2]
_BEGINS = re.compile(
    r"(?:[A-Z_]+=\S+ +)*(?:\S*/)?(?:pytest|python3?|pip|aiperf|gh|ruff|mypy|lint-imports|\.ci/run)"
    r"(?: |$)"
)
# What a sentence names, rather than tells to run.
_ONLY_NAMES = {"pip"}
_MODULES_THAT_SAY_HOW = (PROJECT / "pytest_dynamo_bench" / "engines" / "make.py",)
_PROGRAMS_WITH_EXAMPLES = ("pytest_dynamo_bench", "calibration")


@functools.cache
def published() -> dict[str, list[str]]:
    """Every command, without comments and line breaks, and where it is printed."""
    found: dict[str, list[str]] = {}
    for place, command in (*_in_documents(), *_in_help(), *_in_docstrings()):
        found.setdefault(command, []).append(place)
    return found


@functools.cache
def blocks(language: str) -> tuple[tuple[str, str], ...]:
    """The fenced blocks in one language: document and content."""
    return tuple(
        (str(path.relative_to(PROJECT)), token.content)
        for path in documents()
        for token in _tokens(path)
        if token.type == "fence" and token.info == language
    )


@functools.cache
def outputs() -> tuple[tuple[str, str], ...]:
    """Blocks that are no commands: document and content."""
    return tuple(
        (str(path.relative_to(PROJECT)), token.content)
        for path in documents()
        for token in _tokens(path)
        if (token.type == "code_block" or (token.type == "fence" and token.info in ("", "text")))
        and not _BEGINS.match(token.content)
    )


def documents() -> list[Path]:
    """The pages for users."""
    samples = PROJECT / "reports" / "samples" / "README.md"
    return [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")), samples]


def steps(content: str) -> Iterator[dict[str, Any]]:
    """The steps of a workflow, or of a part of one, which have something to run."""
    loaded = yaml.safe_load(content)
    jobs = loaded.get("jobs", {}).values() if isinstance(loaded, dict) else [{"steps": loaded}]
    for job in jobs:
        yield from (step for step in job["steps"] if "run" in step)


def _tokens(path: Path) -> Iterator[Any]:
    for token in MarkdownIt().enable("table").parse(path.read_text(encoding="utf-8")):
        yield token
        yield from token.children or ()


def _in_documents() -> Iterator[tuple[str, str]]:
    for path in documents():
        name = str(path.relative_to(PROJECT))
        for token in _tokens(path):
            if token.type == "code_inline":
                if _BEGINS.match(token.content) and token.content not in _ONLY_NAMES:
                    yield name, token.content
            elif token.type == "fence" and token.info == "yaml":
                for step in steps(token.content) if "run:" in token.content else ():
                    yield name, step["run"].strip()
            elif token.type == "code_block" or token.type == "fence":
                every_line = token.info == "console"
                for command in _commands(token.content, every_line=every_line):
                    yield name, command


def _in_help() -> Iterator[tuple[str, str]]:
    for module in _PROGRAMS_WITH_EXAMPLES:
        shown = subprocess.run(
            [sys.executable, "-m", module, "--help"],
            cwd=PROJECT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        examples = shown.partition("examples:")[2]
        for command in _commands(examples, every_line=False):
            yield f"{module} --help", command


def _in_docstrings() -> Iterator[tuple[str, str]]:
    """Indented commands in the docstrings of what users read and run."""
    for path in (*sorted((PROJECT / "benchmarks").glob("*.py")), *_MODULES_THAT_SAY_HOW):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        for command in _commands("\n".join(re.findall(r"^    .*$", text, re.M)), every_line=False):
            yield str(path.relative_to(PROJECT)), command


def _commands(text: str, *, every_line: bool) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = " ".join(re.sub(r"(^|\s)#\s.*", "", line).split())
        if (every_line and command) or _BEGINS.match(command):
            yield command

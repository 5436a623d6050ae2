"""Pages, messages and help keep to plain English and to the terms of docs/glossary.md."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.published.commands import PROJECT, documents

# What is not written, and what is written instead or why.
BANNED = {
    r"arms?": "configuration",
    r"(?:bring|brings|brought|bringing)(?: \w+)? up": "start",
    r"(?:come|comes|came|coming) up": "start; 'did not come up' is 'failed to start'",
    r"in the place of": "instead of",
    r"anew": "again",
    r"round robin": "round-robin, as Dynamo writes it",
    r"the split": "disaggregation, or the disaggregated configuration",
    r"winners?": "promoted, or best: a role is given before anything is measured",
    r"confounds?(?!:)": "confounder",
    r"refuse[sd]?": "reject",
    r"the processors?|processor time|for processors": "CPU",
    r"there twice|(?:given|named) twice": "duplicate",
    r"flatter(?:s|ed|ing)?": "favor",
    r"told": "say what is reported, and where",
    r"whoever|nobody|somebody|anybody": "address the reader, or say what happens",
    r"all the same": "still, anyway",
    r"of (?:one's|a user's|its|their) own": "own, separate",
    r"that cannot be(?=[.,;:)])": "impossible, invalid",
    r"(?:can|not to|cannot) be had": "available",
    r"obituary|hopeful|in vain": "plain words",
    r"neighbours?|neighbouring|favours?|behaviour|licence|grey": "American spelling, as Dynamo's",
}  # fmt: skip
# Values that stored results have too.
_VALUES = ("words of their own",)
# Their tables have names and sentences of stored results.
_STORED = ("calibration.md", "claims.md")


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a page without blocks, code and tables, which have ids and stored sentences."""
    fenced = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        if not (fenced or line.startswith(("```", "    ", "|"))):
            yield number, re.sub(r"`[^`]*`", "", line)


def strings(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a module that are sentences: messages, help and labels, not docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in alone:
            continue
        if isinstance(node.value, str) and " " in node.value and node.value not in _VALUES:
            yield node.lineno, node.value


@functools.cache
def texts() -> tuple[tuple[str, str], ...]:
    return tuple(_texts())


def _texts() -> Iterator[tuple[str, str]]:
    pages = [*documents(), PROJECT / "CONTRIBUTING.md", PROJECT / "CHANGELOG.md"]
    modules = [
        *(PROJECT / "pytest_dynamo_bench").rglob("*.py"),
        *(PROJECT / "examples").rglob("*.py"),
        PROJECT / "calibration" / "page.py",
    ]
    for read, paths in ((prose, pages), (strings, modules)):
        for path in paths:
            if path.name not in _STORED:
                for line, text in read(path):
                    yield f"{path.relative_to(PROJECT)}:{line}", text


@pytest.mark.parametrize("words", BANNED)
def test_texts_do_without(words):
    pattern = re.compile(rf"\b(?:{words})(?!\w)", re.I)
    found = [f"{place}: {match[0]}" for place, text in texts() if (match := pattern.search(text))]
    assert not found, f"instead: {BANNED[words]}"

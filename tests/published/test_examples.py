"""What the documentation shows is made by a script, from stored results or by running."""

import re
import runpy
import sys

import pytest

from tests.published.commands import PROJECT, documents, outputs

SCRIPT = PROJECT / "docs" / "make_examples.py"
EXAMPLES = runpy.run_path(str(SCRIPT))


def test_every_block_of_output_says_what_makes_it():
    begins = {*EXAMPLES["BY_HAND"], *(where for made in EXAMPLES["MADE"] for where in made.blocks)}
    shown = outputs()
    for document, content in shown:
        assert any(name == document and content.lstrip().startswith(words)
                   for name, words in begins), f"{document}: {content[:80]}"  # fmt: skip
    for document, words in begins:
        assert any(name == document and content.lstrip().startswith(words)
                   for name, content in shown), f"{document} shows no {words!r}"  # fmt: skip


def test_every_figure_says_what_makes_it():
    shown = {
        name
        for path in documents()
        for name in re.findall(r"images/([\w.-]+)\)", path.read_text(encoding="utf-8"))
    }
    made = {name for made in EXAMPLES["MADE"] for name in made.figures.values()}
    assert shown == made | set(EXAMPLES["FIGURES_BY_HAND"])


def test_what_is_made_in_seconds_is_as_shown(monkeypatch, capsys):
    pytest.importorskip("dynamo.replay", reason="what traffic says of a KV cache needs ai-dynamo")
    monkeypatch.setattr(sys, "argv", ["make_examples.py", "--check"])
    assert EXAMPLES["main"]() == 0, f"{capsys.readouterr().out}run python docs/make_examples.py"

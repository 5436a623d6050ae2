"""Published commands that read, render, choose or are refused."""

import pytest

from tests.published.checking import check, commands

pytest.importorskip("dynamo.replay", reason="needs ai-dynamo")


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(lambda how: not (how.simulates or how.measures)))
def test_it_runs(workspace, command):
    check(workspace, command)

"""Published commands that bring up the real Dynamo."""

import pytest

from tests.published.checking import check, commands

pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("command", commands(lambda how: how.measures))
def test_it_runs(workspace, command):
    check(workspace, command)

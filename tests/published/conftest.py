"""The copy of the clone that published commands run in."""

import pytest

from tests.published.catalogue import HOW, Runs
from tests.published.workspace import Workspace


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    runs = {command: how for command, how in HOW.items() if isinstance(how, Runs)}
    return Workspace(tmp_path_factory.mktemp("clone"), runs)

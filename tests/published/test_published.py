"""Every command that is printed anywhere is known here, and every one known is printed."""

from tests.published.catalogue import HOW
from tests.published.commands import published


def test_every_published_command_has_its_way_to_run_in_ci():
    unknown = {command: places for command, places in published().items() if command not in HOW}
    assert not unknown, "say in tests/published/catalogue.py how these run in CI"


def test_no_command_is_known_that_is_not_published():
    assert not [command for command in HOW if command not in published()]

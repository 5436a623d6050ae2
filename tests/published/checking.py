"""What every published command that ran has to show."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.published.catalogue import HOW, Runs
from tests.published.workspace import Workspace


def commands(wanted: Callable[[Runs], bool]) -> list[str]:
    """Those that run, of one kind."""
    return [command for command, how in HOW.items() if isinstance(how, Runs) and wanted(how)]


def check(workspace: Workspace, command: str) -> None:
    """Run it, and look at how it ended and what it printed."""
    how = HOW[command]
    assert isinstance(how, Runs)
    ran = workspace.run(command)
    shown = f"{ran.stdout}\n{ran.stderr}"
    assert ran.returncode == how.code, shown
    assert "Traceback (most recent call last)" not in shown, shown
    assert re.search(how.says, shown), f"{how.says!r} is not in\n{shown}"

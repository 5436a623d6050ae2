"""``python -m tests.published``: every published command, and how it runs in CI."""

from tests.published.catalogue import HOW, CannotRun

for command, how in HOW.items():
    told = f"cannot run: {how.reason}" if isinstance(how, CannotRun) else how.words
    print(f"{' ; '.join(command.splitlines())}\n    {told}")  # noqa: T201

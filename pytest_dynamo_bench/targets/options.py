"""Options of the command line as data, and what may be written for them.

Only argparse's words are known here, and nothing is imported that measures: options are declared in
every pytest session.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Gives the value of an option by its name, such as ``dynamo_repeats``.
OptionValue = Callable[[str], Any]
LOCAL_EXECUTOR = "local"


@dataclass(frozen=True)
class Option:
    """An option of the command line.

    Attributes:
        flag: as it is written, such as ``--dynamo-endpoint``.
        settings: the keyword arguments of argparse's ``add_argument``.
        only_here: of a target's option that is a usage error where another target is chosen:
            what follows the flag in the message. Empty lets it be.
        shown: what reports show of a value that may be a secret.
    """

    flag: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    only_here: str = ""
    shown: Callable[[str], str] | None = None

    @property
    def name(self) -> str:
        """The name of its value, such as ``dynamo_endpoint``."""
        return self.flag.lstrip("-").replace("-", "_")


def option(
    flag: str, *, only_here: str = "", shown: Callable[[str], str] | None = None, **settings: Any
) -> Option:
    """An :class:`Option` with argparse's settings as keyword arguments."""
    return Option(flag, settings, only_here, shown)


@dataclass(frozen=True)
class OptionGroup:
    """Options that ``--help`` shows together; groups of one title are one."""

    title: str
    options: Sequence[Option]


def without_secrets(arguments: Iterable[str], options: Iterable[Option]) -> list[str]:
    """A command line as reports may show it: of values that may be secrets only what is not."""
    secret = {item.flag: item.shown for item in options if item.shown is not None}
    safe: list[str] = []
    shown: Callable[[str], str] | None = None
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if shown is not None:
            safe.append(shown(argument))
        elif equals and flag in secret:
            safe.append(f"{flag}={secret[flag](value)}")
        else:
            safe.append(argument)
        shown = secret.get(argument)
    return safe


def count(text: str) -> int:
    """A whole number from 1 to 1000, for argparse."""
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1000, got {text!r}")
    return int(text)


def number(text: str, possible: Callable[[float], bool], what: str) -> float:
    """A number for argparse.

    Args:
        possible: whether a number can be it; none can that is not finite.
        what: it must be, with the mark that follows in the error.
    """
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found) or not possible(found):
        raise argparse.ArgumentTypeError(f"must be {what} got {text!r}")
    return found


def seconds(text: str) -> float:
    """A number of seconds, at most a day, for argparse."""
    return number(text, lambda value: 0 < value <= 86_400, "between 0 and 86400 seconds,")


def executor(text: str) -> str:
    """Where simulations are made, for argparse: ``local``, or ``dask:`` and an address."""
    engine, _, address = text.partition(":")
    if text != LOCAL_EXECUTOR and not (engine == "dask" and address):
        raise argparse.ArgumentTypeError(
            f"must be {LOCAL_EXECUTOR}, or dask: and a scheduler's address, such as "
            f"dask:tcp://127.0.0.1:8786; got {text!r}"
        )
    return text

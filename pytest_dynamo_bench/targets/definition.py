"""What a target states of itself, so that nothing else has to know it by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_dynamo_bench.targets.options import Option, OptionGroup, OptionValue

if TYPE_CHECKING:
    from pytest_dynamo_bench.benchmark import Benchmark, Configuration
    from pytest_dynamo_bench.targets.base import Target

    Show = Callable[[Benchmark, Sequence[Configuration], argparse.Namespace], Iterator[str]]


def _enough(option: OptionValue) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class TargetDefinition:
    """A target, before one is made.

    The module of a definition is loaded in every pytest session, so it imports what measures
    in its functions, when they are called.

    Attributes:
        name: as in ``--dynamo-target``; claims write ``_`` for its ``-``.
        summary: what it is, to follow its name in ``--help``.
        make: makes the target; it is given the values of the options by their names, such as
            ``dynamo_repeats``, and raises TargetError for those that cannot be.
        options: its own; those that it shares with another target are the same objects.
        like: the name of the target whose claims are made on this one too, where they do not
            name this one; empty for none.
        too_little: why so little is measured that what it cannot decide is no failure but
            skipped; empty where it is enough. It is given values of options as ``make`` is.
        show: for ``show --target``: pieces of a text that says what would be deployed. It is
            given the values of ``show_options`` as attributes. None where there is nothing.
        show_options: further options of ``show``.
    """

    name: str
    summary: str
    make: Callable[[OptionValue], Target]
    options: Sequence[OptionGroup] = ()
    like: str = ""
    too_little: Callable[[OptionValue], str] = _enough
    show: Show | None = None
    show_options: Sequence[Option] = ()

    def has(self, option: Option) -> bool:
        """Whether this is one of its options."""
        return any(option in group.options for group in self.options)

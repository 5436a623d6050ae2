"""What a target declares about itself."""

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
    """A target as it is registered.

    The module of a definition is loaded in every pytest session. Import the measuring code
    inside its functions.

    Attributes:
        name: as in ``--dynamo-target``; claims write ``_`` for ``-``.
        summary: a description, shown after the name in ``--help``.
        make: makes the target. It gets a function that returns the value of an option by name,
            such as ``dynamo_repeats``, and raises TargetError for invalid values.
        options: its options; those shared with another target are the same objects.
        like: another target, whose claims are made on this one too unless they name this one;
            empty for none.
        too_little: a reason if the measurement is too small to decide claims; undecided claims
            are then skipped. Empty if it is large enough. It gets the same function as ``make``.
        show: for ``show --target``: pieces of text with what would be deployed. It gets the
            values of ``show_options`` as attributes. None if there is nothing to show.
        show_options: additional options of ``show``.
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

"""The targets that there are: those of the package, and those that users register."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pytest_dynamo_bench.benchmark import Benchmark, claimed_as
from pytest_dynamo_bench.errors import BenchmarkError, TargetError
from pytest_dynamo_bench.plain_text import did_you_mean
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.endpoint import ENDPOINT
from pytest_dynamo_bench.targets.kubernetes import KUBERNETES
from pytest_dynamo_bench.targets.local import LOCAL
from pytest_dynamo_bench.targets.options import Option, OptionGroup, OptionValue
from pytest_dynamo_bench.targets.replay import REPLAY

if TYPE_CHECKING:
    from pytest_dynamo_bench.targets.base import Target

OURS = (LOCAL, REPLAY, KUBERNETES, ENDPOINT)
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
HOOK = "pytest_dynamo_bench_targets"


def listed(found: object) -> Sequence[TargetDefinition]:
    """What an implementation of the hook gave, as a list; a single definition will do.

    Raises:
        TargetError: it gave something else.
    """
    definitions = []
    for item in found if isinstance(found, Sequence) else [found]:
        if not isinstance(item, TargetDefinition):
            raise TargetError(f"{HOOK}: {item!r} is not a TargetDefinition")
        definitions.append(item)
    return definitions


class TargetRegistry:
    """Targets by name.

    Args:
        general: options that are no target's.
    """

    def __init__(self, general: Iterable[OptionGroup] = ()) -> None:
        self._targets: dict[str, TargetDefinition] = {}
        self._options = {item.flag: item for group in general for item in group.options}

    def __iter__(self) -> Iterator[TargetDefinition]:
        return iter(self._targets.values())

    @property
    def options(self) -> Mapping[str, Option]:
        """All options by flag: the general ones, and those of all targets."""
        return self._options

    def add(self, definition: TargetDefinition) -> list[OptionGroup]:
        """Register a target; one of the same name is replaced.

        Returns:
            Those of its options that are not known yet, which have to be declared.

        Raises:
            TargetError: it cannot have this name, or an option of its is another one's already.
        """
        if not _NAME.fullmatch(definition.name):
            raise TargetError(
                f"target {definition.name!r}: its name must be lower-case words of letters and "
                "digits, joined by '-' or '_', so that claims can name it"
            )
        new = []
        for group in definition.options:
            for item in group.options:
                if self._options.get(item.flag, item) != item:
                    raise TargetError(
                        f"target {definition.name!r}: its option {item.flag} is another one's "
                        "already; give it another name"
                    )
            fresh = [item for item in group.options if item.flag not in self._options]
            self._options |= {item.flag: item for item in fresh}
            if fresh:
                new.append(OptionGroup(group.title, fresh))
        self._targets[definition.name] = definition
        return new

    def get(self, name: str) -> TargetDefinition | None:
        """The target of this name, if it is registered."""
        return self._targets.get(name)

    def make(self, name: str, option: OptionValue) -> Target:
        """Make the target of this name.

        Raises:
            TargetError: there is none, or the options cannot be.
        """
        definition = self._targets.get(name)
        if definition is None:
            raise TargetError(
                f"--dynamo-target: {name!r} is not a target; {_known(name, self._targets)}"
            )
        target = definition.make(option)
        if target.name != name:
            raise TargetError(
                f"target {name!r}: what it makes calls itself {target.name!r}; its 'name' must be "
                "the same, since results and claims go by it"
            )
        return target

    def check_options(self, name: str, option: OptionValue) -> None:
        """See that no option was given that only other targets have.

        Raises:
            TargetError: one was; with why, or what to do.
        """
        selected = self._targets.get(name)
        if selected is None:
            return
        for item in self._options.values():
            if item.only_here and not selected.has(item):
                value = option(item.name)
                if value != item.settings.get("default", False):
                    given = item.flag if value is True else f"{item.flag}={value}"
                    raise TargetError(f"{given} {item.only_here} (this is {name})")

    def claimed_on(self, name: str) -> tuple[str, ...]:
        """The names under which claims are made on a target: its own, then those it is like.

        Raises:
            TargetError: it says that it is like a target that is not registered.
        """
        names = [name]
        while (definition := self._targets.get(names[-1])) is not None and definition.like:
            if definition.like in names:
                break
            if definition.like not in self._targets:
                raise TargetError(
                    f"target {definition.name!r}: it is like {definition.like!r}, which is not a "
                    f"target; {_known(definition.like, self._targets)}"
                )
            names.append(definition.like)
        return tuple(names)

    def check_claims(self, benchmark: Benchmark) -> None:
        """See that claims name registered targets only, since others are never made.

        Raises:
            BenchmarkError: one names another.
        """
        known = [claimed_as(name) for name in self._targets]
        for claim in benchmark.claims:
            for name in claim.targets:
                if name not in known:
                    raise BenchmarkError(
                        f"Claim {claim.name!r}: {name!r} is not a target; {_known(name, known)}. A "
                        f"target of your own is registered by {HOOK}() in a conftest.py or a plugin"
                    )


def _known(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"targets: {', '.join(names)}{did_you_mean(name, names, before='; ')}"

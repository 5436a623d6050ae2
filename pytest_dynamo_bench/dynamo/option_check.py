"""What a Dynamo makes of the options of a configuration, before it is brought up."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import msgspec

from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.dynamo_options import OptionValue
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.plain_text import one_line


class ParsedCommand(msgspec.Struct, frozen=True):
    """A command line as a program of Dynamo takes it.

    Attributes:
        problem: what it rejects; empty where it takes all.
        options: its options as written, ``--no-x`` too, with the fields that they set.
        values: of the fields.
        replayed: the fields that Dynamo's replay has.
    """

    problem: str = ""
    options: dict[str, str] = {}
    values: dict[str, Any] = {}
    replayed: list[str] = []

    def known(self, options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
        """Those of the options that the program has."""
        return {n: value for n, value in options.items() if _spelled(n, value) in self.options}

    def without_effect(self, options: Mapping[str, OptionValue]) -> list[str]:
        """Those of the options that Dynamo's replay does not have."""
        return [name for name in options if not self.effect({name: options[name]})]

    def effect(self, options: Mapping[str, OptionValue]) -> dict[str, Any]:
        """The options as fields of Dynamo's replay, those of one engine as a separate part."""
        found: dict[str, Any] = {}
        for name, value in options.items():
            field = self.options.get(_spelled(name, value), "")
            part, _, rest = field.partition("_")
            if field in self.replayed:
                found[field] = self.values[field]
            elif rest and part in self.replayed:
                found.setdefault(part, {})[rest] = self.values[field]
        return found


def parse_command(
    dynamo: DynamoEnvironment, program: str, arguments: Sequence[str], variables: Mapping[str, str]
) -> ParsedCommand:
    """What a program of a Dynamo makes of its arguments.

    Args:
        dynamo: whose program it is.
        program: ``dynamo.frontend`` or ``dynamo.mocker``.
        variables: those of its environment that steer it.

    Raises:
        TargetError: it does not answer.
    """
    return _asked(dynamo, json.dumps([program, list(arguments), dict(variables)]))


@cache
def _asked(dynamo: DynamoEnvironment, question: str) -> ParsedCommand:
    try:
        answers = dynamo.ask("parsers.py", f"[{question}]".encode())
        (answer,) = msgspec.json.decode(answers, type=list[ParsedCommand])
    except (msgspec.DecodeError, ValueError) as error:
        raise TargetError(f"{dynamo}: what it takes cannot be found out: {error}") from None
    return answer


def refuse_unknown(
    owner: str, program: str, options: Mapping[str, OptionValue], parsed: ParsedCommand
) -> None:
    """Reject options that a program does not have, or whose values it does not take.

    Raises:
        TargetError: names the option, and what is close to it.
    """
    for name, value in options.items():
        written = _spelled(name, value)
        if parsed.options and written not in parsed.options:
            close = difflib.get_close_matches(written, parsed.options, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise TargetError(f"{owner}: {program} has no option {written}{hint}")
    if parsed.problem:
        raise TargetError(f"{owner}: {program} rejects its options: {one_line(parsed.problem)}")


def _spelled(name: str, value: OptionValue) -> str:
    return f"--no-{name}" if value is False else f"--{name}"

"""Says what programs of this Python's Dynamo make of command lines; a process of its own.

    echo '[["dynamo.frontend", ["--router-temperature", "0.5"], {}]]' | python -P parsers.py

Imports nothing but the standard library and Dynamo. Answers, in the order of the questions: what
the program rejects, its options with the fields that they set, the fields' values, and the fields
that Dynamo's replay has for them.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def _frontend(arguments: Sequence[str]) -> None:
    from dynamo.frontend.main import parse_args

    sys.argv = ["dynamo.frontend", *arguments]
    parse_args()


def _mocker(arguments: Sequence[str]) -> None:
    from dynamo.mocker.args import parse_args

    parse_args(list(arguments))


def _router_fields() -> list[str]:
    from dynamo import _core

    return list(inspect.signature(_core.KvRouterConfig).parameters)


def _engine_fields() -> list[str]:
    from dynamo import _core as core

    _core: Any = core
    if hasattr(_core, "MockEngineArgs"):
        return list(inspect.signature(_core.MockEngineArgs).parameters)
    every = _core._normalize_mocker_config({"engine": {}})
    return [*(every.keys() - {"engine", "dynamo"}), *every["engine"]]


_Parse = Callable[[Sequence[str]], None]
_PROGRAMS: Mapping[str, tuple[_Parse, Callable[[], list[str]]]] = {
    "dynamo.frontend": (_frontend, _router_fields),
    "dynamo.mocker": (_mocker, _engine_fields),
}


def _answer(program: str, arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    parse, replayed = _PROGRAMS[program]
    parsers: list[argparse.ArgumentParser] = []
    values: dict[str, Any] = {}
    original = argparse.ArgumentParser.parse_known_args

    def watched(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        parsers.append(self)
        found = original(self, *given, **named)
        values.update(vars(found[0]))
        return found

    before, said = dict(os.environ), io.StringIO()
    argparse.ArgumentParser.parse_known_args = watched  # type: ignore[method-assign]
    try:
        os.environ.update(variables)
        problem = _refused(parse, arguments, said)
    finally:
        argparse.ArgumentParser.parse_known_args = original  # type: ignore[method-assign]
        os.environ.clear()
        os.environ.update(before)
    options = parsers[0]._option_string_actions if parsers else {}
    return {
        "problem": problem,
        "options": {name: action.dest for name, action in options.items()},
        "values": values,
        "replayed": replayed(),
    }


def _refused(
    parse: Callable[[Sequence[str]], None], arguments: Sequence[str], said: io.StringIO
) -> str:
    try:
        with contextlib.redirect_stderr(said):
            parse(arguments)
    except SystemExit as error:
        lines = said.getvalue().strip().splitlines()
        return (lines[-1] if lines else "") or f"exit {error.code}"
    except Exception as error:  # whatever a parser raises ends the program
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    """Answer the questions on standard input."""
    answers = os.fdopen(os.dup(1), "w")
    # What Dynamo prints is no answer.
    os.dup2(2, 1)
    questions = json.load(sys.stdin)
    json.dump([_answer(*question) for question in questions], answers, default=str)
    answers.flush()


if __name__ == "__main__":
    main()

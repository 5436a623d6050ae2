"""What the real programs say of a command line: the parsers of the Dynamo that is installed.

:func:`problem` asks a process of its own, which imports Dynamo once and answers line by line, so
that what an import changes stays there. This file is that process too, and imports nothing of
ours. Where an engine is not installed, its part of a command line is asked of
``engine_flags.json``.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import importlib.util
import io
import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FLAGS = Path(__file__).with_name("engine_flags.json")


class Parsers:
    """The process, started when first asked."""

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._process: subprocess.Popen[str] | None = None

    def ask(self, module: str, arguments: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> str:
        """What a program would refuse of its arguments; empty where it takes them."""
        if self._process is None:
            # Nothing of this environment steers Dynamo's parsers.
            own = {k: v for k, v in os.environ.items() if not k.startswith("DYN_")}
            self._process = subprocess.Popen(
                [self._python, "-W", "ignore", __file__], env=own, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            atexit.register(self._process.kill)
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([module, arguments, dict(env)]) + "\n")
        self._process.stdin.flush()
        answer: str = json.loads(self._process.stdout.readline())
        return answer


PARSERS = Parsers()


@functools.cache
def _asked(module: str, arguments: tuple[str, ...], env: tuple[tuple[str, str], ...]) -> str:
    return PARSERS.ask(module, arguments, env)


def problem(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """What the program of ``python -m MODULE ARGUMENTS`` refuses; empty where it takes all.

    Args:
        command: an interpreter, ``-m``, a module of Dynamo, and arguments.
        env: variables of its container, from which Dynamo takes defaults.
    """
    assert command[1] == "-m", command
    return _asked(command[2], tuple(command[3:]), tuple(sorted((env or {}).items())))


def asked_of_dynamo(command: Sequence[str], env: Mapping[str, str]) -> str:
    """:func:`problem`, or nothing where the program is none of Dynamo's or Dynamo is not here."""
    known = len(command) > 2 and command[1] == "-m" and command[2] in _PROGRAMS
    if not known or not _there("dynamo.frontend"):
        return ""
    return problem(command, env)


# -- the process -----------------------------------------------------------------------------------


def _frontend(arguments: Sequence[str]) -> None:
    from dynamo.frontend.main import parse_args

    sys.argv = ["frontend", *arguments]
    parse_args()


def _mocker(arguments: Sequence[str]) -> None:
    from dynamo.mocker.args import parse_args

    parse_args(list(arguments))


def _vllm(arguments: Sequence[str]) -> None:
    if _there("vllm.engine.arg_utils"):
        from dynamo.vllm.args import parse_args

        parse_args(list(arguments))
        return
    from dynamo.vllm.backend_args import DynamoVllmArgGroup, DynamoVllmConfig

    rest = _dynamos_part(DynamoVllmArgGroup, DynamoVllmConfig, arguments, allow_abbrev=False)
    _engines_part("vllm", rest)


def _sglang(arguments: Sequence[str]) -> None:
    from dynamo.sglang.backend_args import DynamoSGLangArgGroup, DynamoSGLangConfig

    rest = _dynamos_part(DynamoSGLangArgGroup, DynamoSGLangConfig, arguments)
    _engines_part("sglang", rest)


def _trtllm(arguments: Sequence[str]) -> None:
    # Of TensorRT-LLM itself Dynamo's parser takes four defaults, and no flags.
    if not _there("tensorrt_llm.llmapi"):
        engine = types.ModuleType("tensorrt_llm.llmapi")
        fields = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width")
        nothing = {name: types.SimpleNamespace(default=None) for name in fields}
        engine.BuildConfig = types.SimpleNamespace(model_fields=nothing)  # type: ignore[attr-defined]
        sys.modules["tensorrt_llm"] = types.ModuleType("tensorrt_llm")
        sys.modules["tensorrt_llm.llmapi"] = engine
    from dynamo.trtllm.args import parse_args

    parse_args(list(arguments))


def _there(module: str) -> bool:
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def _dynamos_part(
    group: Any, config: Any, arguments: Sequence[str], allow_abbrev: bool = True
) -> list[str]:
    """Parse what is Dynamo's, as its ``parse_args`` begins; what is left is the engine's."""
    from dynamo.common.configuration.groups import DynamoRuntimeConfig
    from dynamo.common.configuration.groups.runtime_args import DynamoRuntimeArgGroup

    parser = argparse.ArgumentParser(allow_abbrev=allow_abbrev)
    DynamoRuntimeArgGroup().add_arguments(parser)
    group().add_arguments(parser)
    known, rest = parser.parse_known_args(list(arguments))
    both = type("Config", (DynamoRuntimeConfig, config), {}).from_cli_args(known)
    DynamoRuntimeConfig.validate(both)
    config.validate(both)
    return rest


def _engines_part(engine: str, arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog=engine, allow_abbrev=False)
    for flag in json.loads(FLAGS.read_text("utf-8"))[engine]["flags"]:
        if flag.get("values") == 0:
            parser.add_argument(*flag["names"], action="store_true", dest=flag["names"][0])
        else:
            parser.add_argument(
                *flag["names"], nargs=flag.get("values"), choices=flag.get("choices"),
                type=_TYPES.get(flag.get("type"), str), dest=flag["names"][0],
            )  # fmt: skip
    parser.parse_args(list(arguments))


_TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "json": json.loads}
_PROGRAMS = {
    "dynamo.frontend": _frontend,
    "dynamo.mocker": _mocker,
    "dynamo.vllm": _vllm,
    "dynamo.sglang": _sglang,
    "dynamo.trtllm": _trtllm,
}


@contextlib.contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _refused(module: str, arguments: Sequence[str], env: Mapping[str, str]) -> str:
    said = io.StringIO()
    logged = logging.StreamHandler(said)
    logging.getLogger().addHandler(logged)
    try:
        with _environment(env), contextlib.redirect_stderr(said):
            _PROGRAMS[module](arguments)
    except SystemExit as error:
        lines = said.getvalue().strip().splitlines()
        return (lines[-1] if lines else "") or f"exit {error.code}"
    except Exception as error:  # whatever a parser raises ends the program
        return f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger().removeHandler(logged)
    return ""


def _main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    # What Dynamo prints is no answer.
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(_refused(*json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    _main()

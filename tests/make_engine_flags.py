"""Write the flags of an engine, from its own parser, into ``engine_flags.json``.

Engines are too large to be installed wherever the tests run. Run this where one is::

    python tests/make_engine_flags.py vllm      # in the environment of install-vllm
    python tests/make_engine_flags.py sglang
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FLAGS = Path(__file__).with_name("engine_flags.json")


def _vllm() -> argparse.ArgumentParser:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: argparse.ArgumentParser = FlexibleArgumentParser(add_help=False)
    AsyncEngineArgs.add_cli_args(parser, async_args_only=False)
    return parser


def _sglang() -> argparse.ArgumentParser:
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    return parser


ENGINES: dict[str, tuple[str, Callable[[], argparse.ArgumentParser]]] = {
    "vllm": ("vllm.engine.arg_utils.AsyncEngineArgs.add_cli_args", _vllm),
    "sglang": ("sglang.srt.server_args.ServerArgs.add_cli_args", _sglang),
}


def _kind(convert: Callable[[str], Any]) -> str:
    """What texts a flag's type takes, whatever function it is; empty for any."""

    def takes(text: str) -> bool:
        try:
            convert(text)
        except Exception:
            return False
        return True

    if takes("x") or takes("1k"):
        return ""
    if takes("{}"):
        return "json"
    return ("float" if takes("1.5") else "int") if takes("1") else ""


def flags(actions: Iterable[argparse.Action]) -> list[dict[str, Any]]:
    """What a parser can be made of again that takes the same flags."""
    found = []
    for action in actions:
        names = [name for name in action.option_strings if name.startswith("--")]
        if not names:
            continue
        flag: dict[str, Any] = {"names": names}
        if action.nargs is not None:
            flag["values"] = action.nargs
        if action.choices is not None:
            flag["choices"] = sorted(map(str, action.choices))
        elif action.type is not None and (kind := _kind(action.type)):
            flag["type"] = kind
        found.append(flag)
    return found


def main(engine: str) -> None:
    where, parser = ENGINES[engine]
    content = json.loads(FLAGS.read_text("utf-8")) if FLAGS.exists() else {}
    source = f"{where} of {engine} {importlib.metadata.version(engine)}"
    content[engine] = {"source": source, "flags": flags(parser()._actions)}
    lines = []
    for name, entry in sorted(content.items()):
        rows = ",\n".join("  " + json.dumps(flag) for flag in entry["flags"])
        head = f'"{name}": {{"source": {json.dumps(entry["source"])}, "flags": ['
        lines.append(f"{head}\n{rows}\n]}}")
    FLAGS.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

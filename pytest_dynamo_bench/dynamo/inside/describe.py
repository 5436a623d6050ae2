"""Says which Dynamo this Python has: version and modules; a process of its own."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib import metadata
from importlib.machinery import ModuleSpec


def _there(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except ImportError:
        return None


def main() -> None:
    """Answer on standard output; the arguments are modules that may be there."""
    try:
        version = metadata.version("ai-dynamo")
    except metadata.PackageNotFoundError:
        version = ""
    found = {name: spec for name in sys.argv[1:] if (spec := _there(name)) is not None}
    places = {name: spec.origin or "" for name, spec in found.items()}
    json.dump({"version": version, "modules": places}, sys.stdout)


if __name__ == "__main__":
    main()

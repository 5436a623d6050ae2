"""Python files that the command line is given, and the targets that are registered beside them."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

from pytest_dynamo_bench.errors import BenchmarkError, DynamoBenchError
from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.registry import HOOK, OURS, TargetRegistry, listed

_PACKAGE = "pytest-dynamo-bench"


def load_module(path: Path) -> ModuleType:
    """Import a file.

    Raises:
        BenchmarkError: it cannot be imported; the message has file and line.
    """
    if not path.is_file():
        raise BenchmarkError(f"{path}: no such file")
    name = path.stem
    if name in sys.modules or name in sys.stdlib_module_names:
        name = f"benchmark_{name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchmarkError(f"{path}: not a Python module; give the .py file of a benchmark")
    module = importlib.util.module_from_spec(spec)
    # As pytest does, for imports from the same directory; simulation processes inherit it.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = Path(error.filename) if error.filename else path
        shown = path if where == path.resolve() else where
        raise BenchmarkError(f"{shown}, line {error.lineno}: {error.msg}") from None
    except Exception as error:
        raise BenchmarkError(f"{_place(path, error)}: {_message(error)}") from None
    except SystemExit as error:
        raise BenchmarkError(f"{_place(path, error)}: the module calls sys.exit()") from None
    return module


def _place(path: Path, error: BaseException) -> str:
    """File and line, in the module itself if the error passed through it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) in (path, path.resolve())]
    return f"{path}, line {own[-1].lineno}" if own else str(path)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, DynamoBenchError) else f"{type(error).__name__}: {error}"


def known_targets(modules: Iterable[Path]) -> TargetRegistry:
    """The targets of the package, of installed plugins, and of the conftest.py files of modules.

    Those are as pytest would find them: beside a module, and above it up to the current directory.

    Raises:
        BenchmarkError, TargetError: one cannot be loaded or registered.
    """
    targets = TargetRegistry()
    conftests = dict.fromkeys(path for module in modules for path in _conftests(module))
    found = [_of_plugins(), *map(_of_conftest, conftests)]
    for definition in (*OURS, *(item for each in found for item in each)):
        targets.add(definition)
    return targets


def _conftests(module: Path) -> Iterator[Path]:
    here, directory = Path.cwd(), module.resolve().parent
    above = directory.parents if directory.is_relative_to(here) else ()
    for parent in reversed([directory, *(path for path in above if path.is_relative_to(here))]):
        path = parent / "conftest.py"
        if path.is_file() and HOOK in path.read_text("utf-8", errors="replace"):
            yield path


@cache
def _of_conftest(path: Path) -> Sequence[TargetDefinition]:
    return _registered(load_module(path))


@cache
def _of_plugins() -> Sequence[TargetDefinition]:
    """Of plugins of pytest whose distribution needs this package; others are not loaded."""
    return [
        definition
        for entry in metadata.entry_points(group="pytest11")
        if entry.dist is not None
        and any(need.startswith(_PACKAGE) for need in entry.dist.requires or ())
        for definition in _registered(entry.load())
    ]


def _registered(plugin: object) -> Sequence[TargetDefinition]:
    hook = getattr(plugin, HOOK, None)
    return listed(hook()) if hook is not None else ()

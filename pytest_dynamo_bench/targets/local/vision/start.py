"""Starts the vision worker in a Python that has another Dynamo, and this package not at all."""

import importlib.util
import runpy
import sys
from pathlib import Path

_PACKAGE = Path(__file__).parents[3]


def main() -> None:
    """Make the package known, and nothing of the environment that it is installed in."""
    # The directory of this program, whose modules have names that others have too.
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    spec = importlib.util.spec_from_file_location(
        _PACKAGE.name, _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE.name] = package
    spec.loader.exec_module(package)
    runpy.run_module(f"{_PACKAGE.name}.targets.local.vision.worker", run_name="__main__")


if __name__ == "__main__":
    main()

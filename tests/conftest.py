"""Fixtures of all tests."""

import contextlib
import io
import os
import signal

# pytester forgets the modules that an inner session imported, and numpy, scipy and pyarrow
# cannot be imported twice, nor can httpcore, whose errors httpx then no longer knows: what an inner
# session imports late is imported here.
import httpcore  # noqa: F401
import pytest

import pytest_dynamo_bench.comparison
import pytest_dynamo_bench.reports.terminal
import pytest_dynamo_bench.reports.write
import pytest_dynamo_bench.targets.local.target  # noqa: F401

# Also read for `pytest --help` in a clone, where what only tests need may not be installed.
with contextlib.suppress(ModuleNotFoundError):
    import matplotlib.figure  # noqa: F401
    import pandas as pd

    pd.DataFrame({"period": [1]}).to_parquet(io.BytesIO())

    from hypothesis import settings

    # A slow machine is no failure; in CI the same commit gets the same examples.
    settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
    settings.load_profile("ours")

pytest_plugins = ["pytester"]

# A shell has its background jobs ignore Ctrl-C, which tests of Ctrl-C would then do too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config):
    """Make warnings errors here, and not where users run benchmarks with plugins of their own."""
    config.addinivalue_line("filterwarnings", "error")


@pytest.fixture
def anyio_backend():
    """Async tests run on asyncio, by the pytest plugin of anyio, which httpx brings along."""
    return "asyncio"

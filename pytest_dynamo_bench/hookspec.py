"""Hooks that a ``conftest.py`` or another plugin can implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_dynamo_bench.metric import Metric
    from pytest_dynamo_bench.targets.base import Target

hookspec = HookspecMarker("pytest")


@hookspec(firstresult=True)
def pytest_dynamo_bench_make_target(config: pytest.Config, name: str) -> Target | None:
    """Make the target that ``--dynamo-target=name`` asks for; the first result is taken.

    Implement it to measure where the plugin cannot by itself::

        def pytest_dynamo_bench_make_target(config, name):
            return MyTarget() if name == "my-cluster" else None
    """
    _ = (config, name)
    return None


@hookspec(historic=True)
def pytest_dynamo_bench_metrics() -> Sequence[Metric]:
    """Metrics of your own, before the modules beside the ``conftest.py`` are collected::

        def pytest_dynamo_bench_metrics():
            return [Metric.of_frame("slow_starts", slow_starts, unit="share", ...)]

    Claims, tolerances and options can name them, and all reports show them.
    """
    return ()


__all__: list[Any] = ["pytest_dynamo_bench_make_target", "pytest_dynamo_bench_metrics"]

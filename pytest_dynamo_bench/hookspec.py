"""Hooks that a ``conftest.py`` or another plugin can implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from pytest_dynamo_bench.metric import Metric
    from pytest_dynamo_bench.targets.base import Target
    from pytest_dynamo_bench.targets.definition import TargetDefinition

hookspec = HookspecMarker("pytest")


@hookspec(historic=True)
def pytest_dynamo_bench_targets() -> Sequence[TargetDefinition]:
    """Register targets of your own, beside or in place of those of the package.

    Implement it in the ``conftest.py`` of a project or in a plugin; docs/write-a-target.md::

        def pytest_dynamo_bench_targets():
            return [TargetDefinition(name="my-cluster", summary="our cluster",
                                     make=lambda option: MyTarget(), like="kubernetes")]
    """
    return ()


@hookspec(
    firstresult=True,
    warn_on_impl=DeprecationWarning(
        "pytest_dynamo_bench_make_target: implement pytest_dynamo_bench_targets() instead, whose "
        "targets claims can name and that have options of their own"
    ),
)
def pytest_dynamo_bench_make_target(config: pytest.Config, name: str) -> Target | None:
    """Make the target that ``--dynamo-target=name`` asks for; the first result is taken."""
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


__all__: list[Any] = [
    "pytest_dynamo_bench_make_target",
    "pytest_dynamo_bench_metrics",
    "pytest_dynamo_bench_targets",
]

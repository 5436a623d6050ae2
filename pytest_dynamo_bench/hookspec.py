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
    """Register your own targets, or replace shipped ones.

    Implement it in a project's ``conftest.py`` or in a plugin; see docs/write-a-target.md::

        def pytest_dynamo_bench_targets():
            return [TargetDefinition(name="my-cluster", summary="our cluster",
                                     make=lambda option: MyTarget(), like="kubernetes")]
    """
    return ()


@hookspec(
    firstresult=True,
    warn_on_impl=DeprecationWarning(
        "pytest_dynamo_bench_make_target is deprecated; implement pytest_dynamo_bench_targets() "
        "instead, so that claims can name the target and it can have options"
    ),
)
def pytest_dynamo_bench_make_target(config: pytest.Config, name: str) -> Target | None:
    """Return the target for ``--dynamo-target=name``; the first result is used. Deprecated."""
    _ = (config, name)
    return None


@hookspec(historic=True)
def pytest_dynamo_bench_metrics() -> Sequence[Metric]:
    """Register your own metrics, for the modules next to the ``conftest.py``::

        def pytest_dynamo_bench_metrics():
            return [Metric.of_frame("slow_starts", slow_starts, unit="share", ...)]

    Claims, tolerances and options can name them; all reports show them.
    """
    return ()


__all__: list[Any] = [
    "pytest_dynamo_bench_make_target",
    "pytest_dynamo_bench_metrics",
    "pytest_dynamo_bench_targets",
]

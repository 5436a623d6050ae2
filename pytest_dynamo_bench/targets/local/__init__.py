"""The real Dynamo on this machine: its frontend and router, and mockers as engines."""

from pytest_dynamo_bench.targets.local.target import LocalOptions, LocalTarget

__all__ = ["LocalOptions", "LocalTarget"]

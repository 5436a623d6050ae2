"""The endpoint target: what is already deployed, by its URL."""

from pytest_dynamo_bench.targets.endpoint.target import EndpointOptions, EndpointTarget

__all__ = ["EndpointOptions", "EndpointTarget"]

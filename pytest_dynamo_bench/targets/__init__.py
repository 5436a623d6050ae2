"""Where configurations are brought up and measured, and what a target states of itself."""

from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import Option, OptionGroup, option

__all__ = ["Option", "OptionGroup", "TargetDefinition", "option"]

"""Targets measure configurations; what a target declares about itself."""

from pytest_dynamo_bench.targets.definition import TargetDefinition
from pytest_dynamo_bench.targets.options import Option, OptionGroup, option

__all__ = ["Option", "OptionGroup", "TargetDefinition", "option"]

"""From what was measured to what may be said: effect, validity, confounders, verdict."""

from pytest_dynamo_bench.verdicts.confounds import Difference, confounds
from pytest_dynamo_bench.verdicts.effect import Effect, estimate_effect
from pytest_dynamo_bench.verdicts.gates import (
    GateResult,
    GateThresholds,
    check_pair,
    check_run,
)
from pytest_dynamo_bench.verdicts.regression import (
    DEFAULT_TOLERANCES,
    Regression,
    Tolerance,
    compare_with_stored,
    mismatches,
    parse_tolerances,
)
from pytest_dynamo_bench.verdicts.sequential import SequentialPlan
from pytest_dynamo_bench.verdicts.verdict import (
    Outcome,
    Verdict,
    control_false_discoveries,
    judge,
)

__all__ = [
    "DEFAULT_TOLERANCES",
    "Difference",
    "Effect",
    "GateResult",
    "GateThresholds",
    "Outcome",
    "Regression",
    "SequentialPlan",
    "Tolerance",
    "Verdict",
    "check_pair",
    "check_run",
    "compare_with_stored",
    "confounds",
    "control_false_discoveries",
    "estimate_effect",
    "judge",
    "mismatches",
    "parse_tolerances",
]

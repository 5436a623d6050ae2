"""What the evidence says about a claim: it holds, it fails, or it is inconclusive.

A claim holds when it is true of every change in the interval, fails when it is true of none,
and is inconclusive otherwise. It is invalid when a validity gate says that a run cannot carry any
verdict. It is provisional instead of holding where a part of the uncertainty was not measured.

For a claim that a change is within a margin either way this is the test of equivalence by two
one-sided tests (D. J. Schuirmann, J. Pharmacokinet. Biopharm. 15, 1987): both limits are
excluded, each at half of what the interval's confidence leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from pytest_dynamo_bench.benchmark import Bound, Claim
from pytest_dynamo_bench.metric_definitions import metric_of
from pytest_dynamo_bench.verdicts.effect import Effect
from pytest_dynamo_bench.verdicts.gates import GateResult

Outcome = Literal["holds", "provisional", "fails", "inconclusive", "invalid"]

_MOST_REPEATS = 200
_MOST_TIMES_THE_REQUESTS = 1000


@dataclass(frozen=True)
class Verdict:
    """A claim with the evidence for or against it.

    Attributes:
        claim: what was claimed.
        target: where it was measured.
        outcome: ``holds``, ``provisional``, ``fails``, ``inconclusive`` or ``invalid``.
        effect: the change with its interval; None when no run could be evaluated.
        bound: the limit of the change.
        statement: the claim in words, with the target's threshold.
        sentence: both values, the change, the interval and the outcome in one sentence.
        more_requests: about how many more requests per configuration would decide it, if the
            estimate stays as it is; None when decided, or beyond reason.
        more_repeats: likewise, how many more runs of each configuration.
        gates: every validity gate, passed or not.
        confounds: what else differs between the configurations, in words.
        not_measured: which uncertainty the interval lacks, and what measures it, so that a claim
            that would hold is provisional; empty where it lacks none.
    """

    claim: Claim
    target: str
    outcome: Outcome
    effect: Effect | None
    bound: Bound
    statement: str
    sentence: str
    more_requests: int | None = None
    more_repeats: int | None = None
    gates: tuple[GateResult, ...] = ()
    confounds: tuple[str, ...] = ()
    not_measured: str = ""


def judge(
    claim: Claim,
    target: str,
    effect: Effect | None,
    gates: Sequence[GateResult] = (),
    confounds: Sequence[str] = (),
    like: Sequence[str] = (),
    not_measured: str = "",
) -> Verdict:
    """Decide a claim.

    Args:
        claim: the claim; it must be made on ``target``.
        target: where the runs were measured.
        effect: of the claim's metric; None when there is nothing to estimate it from.
        gates: results of all validity gates; one that did not pass makes the verdict invalid.
        confounds: what differs between the configurations beside the feature.
        like: the targets that ``target`` is like, whose claims are made on it too.
        not_measured: which uncertainty the effect lacks, and what measures it; or empty.

    Raises:
        ValueError: the claim is not made on this target, or the effect is of another metric.
    """
    bound = claim.bound(target, *like)
    if bound is None:
        raise ValueError(f"claim {claim.name!r} is not made on {target}")
    if effect is not None and effect.metric != claim.metric:
        raise ValueError(f"claim {claim.name!r} is about {claim.metric}, not {effect.metric}")
    statement = claim.statement(target, *like)
    verdict = Verdict(claim, target, "invalid", None, bound, statement, "")
    verdict = dataclasses.replace(
        verdict, gates=tuple(gates), confounds=tuple(confounds), not_measured=not_measured
    )
    return _judged_by(effect, verdict)


def _judged_by(effect: Effect | None, verdict: Verdict) -> Verdict:
    """A verdict with another effect, and what follows from it."""
    outcome: Outcome = "invalid"
    more_requests = more_repeats = None
    if effect is not None and all(gate.passed for gate in verdict.gates):
        outcome = decide(verdict.bound, effect.low, effect.high)
        if outcome == "holds" and verdict.not_measured:
            outcome = "provisional"
        if outcome == "inconclusive":
            more_requests, more_repeats = _more_needed(effect, verdict.bound)
    verdict = dataclasses.replace(
        verdict,
        outcome=outcome,
        effect=effect,
        more_requests=more_requests,
        more_repeats=more_repeats,
    )
    return dataclasses.replace(verdict, sentence=_sentence(verdict))


def decide(bound: Bound, low: float, high: float) -> Literal["holds", "fails", "inconclusive"]:
    """Where the interval ``low`` … ``high`` of the change lies with respect to what is claimed."""
    if bound.lowest <= low and high <= bound.highest:
        return "holds"
    return "fails" if low > bound.highest or high < bound.lowest else "inconclusive"


def control_false_discoveries(verdicts: Sequence[Verdict], level: float = 0.05) -> list[Verdict]:
    """Decide several claims of one suite together, so that few decided ones are wrong.

    Of twenty claims about nothing, one is decided wrongly at 95 % each. Here the expected
    share of wrong ones among those decided (either way: "holds" and "fails" are both
    statements about the side of the limit) is at most ``level``: Benjamini & Hochberg's
    procedure (J. R. Statist. Soc. B 57, 1995) on the p-values of :func:`two_sided_p_value`. It
    selects the R of m claims for which p <= R level / m; that is the same as giving every claim
    the interval of confidence ``1 - R level / m`` and deciding by it as usual, and then the
    intervals of the decided claims have the false coverage-statement rate ``level`` (Benjamini &
    Yekutieli, J. Am. Statist. Ass. 100, 2005). These are the intervals in the result. With one
    claim nothing changes at ``level = 1 - confidence``.

    Claims on the same runs are positively dependent, which the procedure allows (Benjamini &
    Yekutieli, Ann. Statist. 29, 2001). Invalid verdicts are returned as they are and do not
    count among the m.

    Args:
        verdicts: of all claims, as :func:`judge` returned them.
        level: of the false discovery rate.

    Returns:
        The verdicts in the same order, with adjusted intervals, outcomes and sentences.

    Raises:
        ValueError: level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: must be between 0 and 1, such as 0.05; got {level!r}")
    p_values = [
        two_sided_p_value(verdict.effect, verdict.bound)
        for verdict in verdicts
        if verdict.outcome != "invalid" and verdict.effect is not None
    ]
    count = len(p_values)
    ranked = sorted(p_values)
    selected = max((i for i, p in enumerate(ranked, start=1) if p <= i * level / count), default=0)
    result = []
    for verdict in verdicts:
        if verdict.outcome == "invalid" or verdict.effect is None:
            result.append(verdict)
            continue
        confidence = 1 - max(selected, 1) * level / count
        low, high = verdict.effect.interval(confidence)
        effect = dataclasses.replace(verdict.effect, low=low, high=high, confidence=confidence)
        result.append(_judged_by(effect, verdict))
    return result


def two_sided_p_value(effect: Effect, bound: Bound) -> float:
    """The smallest p at which the interval of confidence ``1 - p`` decides the claim.

    With one limit that is the two-sided p of the change being exactly the limit. With two, it
    holds when both are excluded from within, and fails when one of them is from without.
    """
    if effect.standard_error == 0 and not effect.share_parts:
        return 0.0
    holds, fails = 0.0, 1.0
    if math.isfinite(bound.highest):
        holds = max(holds, effect.p_value("at most", bound.highest))
        fails = min(fails, effect.p_value("at least", bound.highest))
    if math.isfinite(bound.lowest):
        holds = max(holds, effect.p_value("at least", bound.lowest))
        fails = min(fails, effect.p_value("at most", bound.lowest))
    return min(1.0, 2 * min(holds, fails))


def _more_needed(effect: Effect, bound: Bound) -> tuple[int | None, int | None]:
    """Requests and repeats to add until the interval would no longer contain a limit.

    The half-width shrinks with the square root of the number of requests or repeats while
    the estimate is taken to stay where it is; so this is a guide, not a promise. Repeats of the
    same traffic lessen only what differs between runs.
    """
    margin = _margin(effect, bound)
    error, freedom = effect.standard_error, effect.degrees_of_freedom
    quantile = (1 + effect.confidence) / 2
    if effect.share_parts and math.isfinite(error):
        # At an edge the score interval is wider than the standard error makes it.
        half = max(effect.estimate - effect.low, effect.high - effect.estimate)
        error = max(error, half / float(special.stdtrit(freedom, quantile)))
    if not (math.isfinite(margin) and math.isfinite(error)) or margin == 0 or error == 0:
        return None, None
    times = _smallest(
        lambda k: float(special.stdtrit(freedom * k, quantile)) * error / math.sqrt(k) <= margin,
        _MOST_TIMES_THE_REQUESTS,
    )
    requests = None if times is None else max(1, math.ceil(effect.n_requests * (times - 1)))
    more_repeats = next(
        (
            more
            for more in range(1, _MOST_REPEATS + 1)
            if float(special.stdtrit(_freedom_with(effect, more), quantile))
            * _error_with(effect, more)
            <= margin
        ),
        None,
    )
    return requests, more_repeats


def _margin(effect: Effect, bound: Bound) -> float:
    """How far the estimate is from the nearest limit, on its scale."""
    return min(abs(effect.estimate - effect.on_scale(limit)) for limit in bound.limits)


def _freedom_with(effect: Effect, more: int) -> float:
    """Degrees of freedom with more repeats.

    From a single run on, the variation between runs comes in, half of the variance say: with
    two runs of each there are only two degrees of freedom for it.
    """
    runs = effect.repeats + more
    if effect.repeats == 1:
        return 1 / (1 / effect.degrees_of_freedom + 1 / (2 * (runs - 1)))
    return effect.degrees_of_freedom * (runs - 1) / (effect.repeats - 1)


def _error_with(effect: Effect, more: float) -> float:
    """Standard error with more repeats of the same traffic."""
    lasting = min(effect.traffic_error, effect.standard_error) ** 2
    return math.sqrt(lasting + (effect.standard_error**2 - lasting) / (1 + more / effect.repeats))


def repeats_are_futile(effect: Effect, bound: Bound, confidence: float) -> bool:
    """Whether no number of repeats of the same traffic can be expected to decide a claim.

    Even if the estimate moved away from the nearest limit by two standard errors of what differs
    between runs, the part of the uncertainty that is the traffic's would leave the limit inside the
    interval. To stop for that reason makes no decision, and so no wrong one.
    """
    margin = _margin(effect, bound)
    if not (math.isfinite(margin) and math.isfinite(effect.standard_error)):
        return False
    lasting = min(effect.traffic_error, effect.standard_error)
    runs = math.sqrt(effect.standard_error**2 - lasting**2)
    student = float(special.stdtrit(effect.degrees_of_freedom, (1 + confidence) / 2))
    return margin + 2 * runs < student * lasting


def _smallest(enough: Callable[[float], bool], most: float) -> float | None:
    """The smallest factor between 1 and ``most`` that is enough, by bisection."""
    if not enough(most):
        return None
    low, high = 1.0, float(most)
    for _ in range(40):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def quantity(value: float, unit: str) -> str:
    """A value with four significant digits and its unit; a share in percent.

    ``quantity(1234.5, "ms")`` is ``"1,234 ms"``.
    """
    if math.isnan(value):
        return "no value"
    if unit == "share":
        return f"{100 * value:.1f} %"
    size = abs(value)
    digits = 0 if size >= 1000 or size == 0 else max(0, 3 - math.floor(math.log10(size)))
    return f"{value:,.{min(digits, 6)}f} {unit}"


def change_in_words(change: float, is_share: bool) -> str:
    """``12.3 % lower``, ``4.0 points higher``, ``unchanged``."""
    if math.isnan(change):
        return "undefined change"
    unit = "points" if is_share else "%"
    if abs(change) < 0.0005:
        return "unchanged"
    return f"{abs(change) * 100:.1f} {unit} {'lower' if change < 0 else 'higher'}"


def interval_in_words(effect: Effect) -> str:
    """``95 % interval -31.0 % to -22.1 %``."""
    level = f"{effect.confidence * 100:.4g} % interval"
    if math.isinf(effect.low) and math.isinf(effect.high):
        return f"no {level}: {effect.method.removeprefix('no interval: ')}"
    unit = "points" if metric_of(effect.metric).is_share else "%"
    ends = [
        f"{end * 100:+.1f} {unit}" if math.isfinite(end) else "unlimited"
        for end in (effect.low, effect.high)
    ]
    return f"{level} {ends[0]} to {ends[1]}"


def _sentence(verdict: Verdict) -> str:
    claim, effect = verdict.claim, verdict.effect
    claimed = verdict.statement.removeprefix(f"{claim.metric} ")
    failed = [gate for gate in verdict.gates if not gate.passed]
    if failed:
        reasons = "; ".join(f"{gate.name}: {gate.saw}" for gate in failed)
        return f"{claim.metric} was not judged: the measurement is invalid ({reasons})."
    if effect is None:
        return f"{claim.metric} was not judged: there are no measurements."
    definition = metric_of(claim.metric)
    text = (
        f"{claim.metric} was {quantity(effect.treatment_value, definition.unit)} with "
        f"{claim.treatment} against {quantity(effect.baseline_value, definition.unit)} with "
        f"{claim.baseline}: {change_in_words(effect.change, definition.is_share)} "
        f"({interval_in_words(effect)}). The claim, {claimed},"
    )
    match verdict.outcome:
        case "holds":
            return f"{text} holds{_other_side(verdict)}."
        case "provisional":
            return f"{text} holds{_other_side(verdict)}. Provisional: {verdict.not_measured}."
        case "fails":
            return f"{text} fails."
    return f"{text} is inconclusive{_advice(verdict)}."


def _other_side(verdict: Verdict) -> str:
    """What a control that asks about one side does not say of the other."""
    bound, effect = verdict.bound, verdict.effect
    if verdict.claim.kind != "control" or bound.direction == "within" or effect is None:
        return ""
    if decide(Bound("within", abs(bound.limit)), effect.low, effect.high) != "fails":
        return ""
    return "; it covers one direction only, and the change is larger than that in the other"


def _advice(verdict: Verdict) -> str:
    ways = []
    if verdict.more_requests is not None:
        ways.append(f"about {verdict.more_requests:,} more requests")
    if verdict.more_repeats is not None:
        ways.append(f"{verdict.more_repeats} more repeat{'s' * (verdict.more_repeats > 1)}")
    if not ways:
        return (
            ": the change is so close to the limit that no reasonable amount of traffic decides it"
        )
    return f": {' or '.join(ways)} of each configuration would decide it"

"""How a comparison came out in one word: from everything that can go wrong in it, not one part.

A report has verdicts, findings against a stored baseline, configurations without a valid result,
and tests that failed for other reasons. Reading only one of them can make a failed session look
green.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pytest_dynamo_bench.reports.model import ComparisonReport, SessionReport
from pytest_dynamo_bench.reports.stored_types import Ended
from pytest_dynamo_bench.verdicts.regression import Change
from pytest_dynamo_bench.verdicts.verdict import Outcome

State = Literal["failed", "incomplete", "undecided", "passed", "nothing judged"]

# From the worst on: the first that something is counted under is the state of all.
STATES: tuple[State, ...] = ("failed", "incomplete", "undecided", "passed", "nothing judged")
_VERDICTS: dict[Outcome, State] = {
    "holds": "passed", "provisional": "passed", "fails": "failed", "inconclusive": "undecided",
    "invalid": "incomplete",
}  # fmt: skip
_REGRESSIONS: dict[Change, State] = {
    "regression": "failed", "inconclusive": "undecided",
    "improvement": "passed", "unchanged": "passed",
}  # fmt: skip
_TESTS: dict[Ended, tuple[str, State]] = {
    "failed": ("failed", "failed"), "error": ("in error", "failed"),
    "not run": ("not run", "incomplete"), "passed": ("passed", "passed"),
}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """So many of one kind, in words, and what they make of the whole."""

    text: str
    state: State


def tally(report: ComparisonReport) -> list[Counted]:
    """Everything that decides how a comparison came out, counted."""
    verdicts = Counter(verdict.outcome for verdict in report.verdicts)
    found = [
        Counted(f"{verdicts[outcome]} {outcome}", state)
        for outcome, state in _VERDICTS.items()
        if verdicts[outcome]
    ]
    gate = Counter(regression.outcome for _, regression in report.regressions)
    found += [
        Counted(f"{gate[outcome]} {outcome} against the stored baseline", state)
        for outcome, state in _REGRESSIONS.items()
        if gate[outcome]
    ]
    states = Counter(item.state for item in report.without_result)
    found += [Counted(f"{_many(n, 'configuration')}: {state}", "incomplete")
              for state, n in states.items()]  # fmt: skip
    if damaged := len(report.problems) - states["unreadable"]:
        found.append(Counted(f"{_many(damaged, 'file')} damaged", "incomplete"))
    every = report.entry.tests.values()
    tests = Counter(test.outcome for test in report.unexplained.values())
    tests["passed"] = sum(test.outcome == "passed" and not test.explained for test in every)
    tests["not run"] = sum(test.outcome == "not run" for test in every)
    found += [
        Counted(f"{_many(tests[outcome], 'test')} {words}", state)
        for outcome, (words, state) in _TESTS.items()
        if tests[outcome]
    ]
    return found


def state_of(report: ComparisonReport) -> State:
    """How a comparison came out: the worst of what :func:`tally` counts.

    A session whose test failed has failed, also where the user could have chosen otherwise for
    what it failed of, such as an inconclusive verdict.
    """
    if any(test.outcome in ("failed", "error") for test in report.entry.tests.values()):
        return "failed"
    return _worst(item.state for item in tally(report))


def state_of_session(session: SessionReport) -> State:
    """How a session came out: the worst of its comparisons."""
    states = [state_of(report) for report in session.comparisons]
    return _worst([*states, "incomplete"] if session.problems else states)


def tally_in_words(report: ComparisonReport) -> str:
    """``failed: 1 holds, 1 regression against the stored baseline``."""
    counted = ", ".join(item.text for item in tally(report))
    state = state_of(report)
    return f"{state}: {counted}" if counted else state


def _worst(states: Iterable[State]) -> State:
    return min(states, key=STATES.index, default="nothing judged")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"

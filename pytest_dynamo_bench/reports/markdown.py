"""The report for a pull request: Markdown as GitHub renders it, short enough for a comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from pytest_dynamo_bench.plain_text import one_line, printable
from pytest_dynamo_bench.reports.model import (
    ATTRIBUTION_VIEWS,
    Column,
    ComparisonReport,
    ConfigurationReport,
    SessionReport,
    attribution_rows,
    change_text,
)
from pytest_dynamo_bench.reports.state import state_of, state_of_session, tally_in_words

LONGEST = 65_000
"""Characters; GitHub rejects a comment of 65,536 or more."""

_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~^$&])")
_STATE_MARKS = {"failed": "❌", "incomplete": "⚠️", "undecided": "❔", "passed": "✅"}
_MARKS = {
    "holds": "✅", "provisional": "☑️", "fails": "❌", "inconclusive": "❔", "invalid": "⚠️",
}  # fmt: skip
_GATE_MARKS = {"regression": "❌", "improvement": "✅", "unchanged": "✅", "inconclusive": "❔"}
_LONGEST_NAME, _LONGEST_SENTENCE, _LONGEST_ERROR = 120, 700, 400
_NOTICE = "\n\n_Cut here; the whole report is among the files of the run._\n"


def render_markdown(session: SessionReport) -> str:
    """Verdicts, results and how to reproduce; never longer than :data:`LONGEST`.

    What does not fit is left out in this order: limitations, what differs, tables of results,
    sentences of the verdicts, and whole comparisons from the end.
    """
    text = ""
    for detail in (4, 3, 2, 1, 0):
        text = _page(session, detail)
        if len(text) <= LONGEST:
            return text
    kept = text[: LONGEST - len(_NOTICE)]
    return kept[: kept.rfind("\n")] + _NOTICE


def _page(session: SessionReport, detail: int) -> str:
    state = state_of_session(session)
    parts = [
        f"## {_STATE_MARKS.get(state, '')} Dynamo benchmarks on {_escaped(session.target)}: {state}"
    ]
    parts += [f"⚠️ {_escaped(problem, _LONGEST_ERROR)}" for problem in session.problems]
    parts += [_comparison(report, detail) for report in session.comparisons]
    parts.append(_reproduce(session))
    return "\n\n".join(part for part in parts if part) + "\n"


def _comparison(report: ComparisonReport, detail: int) -> str:
    mark = _STATE_MARKS.get(state_of(report), "")
    parts = [
        f"### {mark} {_escaped(report.name)}: {_escaped(tally_in_words(report))}",
        f"{_escaped(report.question, _LONGEST_SENTENCE)} Measured on **{_escaped(report.where)}**.",
    ]
    if detail >= 1:
        parts.append(_verdicts(report))
    if detail >= 2 and report.measured:
        parts.append(_results(report))
        parts.append(_published(report))
        parts.append(_folded("Features at work", _features(report)))
    if detail >= 1:
        parts.append(_regressions(report))
        parts.append(_attribution(report))
    parts += [
        f"⚠️ **{_escaped(item.name, _LONGEST_NAME)}**: {item.state}: "
        f"{_escaped(item.why, _LONGEST_ERROR)}"
        for item in report.without_result
    ]
    parts += [
        f"❌ **{_escaped(test.outcome)}** {_escaped(name, _LONGEST_NAME)}: "
        f"{_escaped(test.message, _LONGEST_ERROR)}"
        for name, test in report.unexplained.items()
    ]
    if detail >= 3:
        parts.append(_folded("What differs between the configurations", _confounds(report)))
    if detail >= 4:
        limits = [_escaped(limit, _LONGEST_SENTENCE) for limit in report.limitations]
        parts.append(_folded(f"What {report.target} models, simplifies or leaves out", limits))
    return "\n\n".join(part for part in parts if part)


def _features(report: ComparisonReport) -> list[str]:
    return [
        f"{_escaped(item.name)}, {_escaped(feature)}: {_escaped(text, _LONGEST_SENTENCE)}"
        for item in report.measured
        for feature, text in item.features_at_work
    ]


def _verdicts(report: ComparisonReport) -> str:
    lines = []
    for verdict in report.verdicts:
        mark = _MARKS.get(verdict.outcome, "")
        lines.append(
            f"* {mark} **{_escaped(verdict.outcome)}** "
            f"{_escaped(verdict.claim.name, _LONGEST_NAME)}: "
            f"{_escaped(verdict.sentence, _LONGEST_SENTENCE)}"
        )
    return "\n".join(lines)


def _results(report: ComparisonReport) -> str:
    header = ["configuration", "GPUs", *(f"{c.heading.title}, {c.unit}" for c in report.columns)]
    rows = [
        [
            _escaped(item.name, _LONGEST_NAME),
            str(item.gpus),
            *(_cell(report, item, column) for column in report.columns),
        ]
        for item in report.measured
    ]
    rows += [
        [_escaped(item.name, _LONGEST_NAME), str(item.gpus), f"_{item.state}_"]
        + ["-"] * (len(report.columns) - 1)
        for item in report.without_result
    ]
    assert report.baseline is not None
    note = f"Bold: best. Changes are from {_escaped(report.baseline.name)}, with 95 % intervals" + (
        f"; means over {report.repeats} runs." if report.repeats > 1 else "."
    )
    return _table(header, rows) + f"\n\n<sub>{note}</sub>"


def _cell(report: ComparisonReport, item: ConfigurationReport, column: Column) -> str:
    text = column.text(item.value(column.metric))
    if report.best(column) is item:
        text = f"**{text}**"
    effect = report.effect(item, column.metric)
    if effect is None:
        return text
    change, interval = change_text(effect, column.definition.is_share)
    return f"{text}<br><sub>{change} ({interval})</sub>"


def _published(report: ComparisonReport) -> str:
    published = report.entry.published
    if not published:
        return ""
    columns = published.columns
    rows = [
        [
            _escaped(name, _LONGEST_NAME),
            *(f"{row[what]:,g}" if what in row else "-" for what in columns),
        ]
        for name, row in published.values.items()
    ]
    caption = (
        f"Published by others, not measured here: {_escaped(published.source)}; on "
        f"{_escaped(published.hardware)}. {_escaped(published.note)}".strip()
    )
    header = ["published", *(_escaped(what, _LONGEST_NAME) for what in columns)]
    return f"{_table(header, rows)}\n\n<sub>{caption}</sub>"


def _regressions(report: ComparisonReport) -> str:
    lines = [
        f"* {_GATE_MARKS.get(item.outcome, '')} **{_escaped(item.outcome)}** "
        f"{_escaped(configuration, _LONGEST_NAME)}: {_escaped(item.sentence, _LONGEST_SENTENCE)}"
        for configuration, item in report.regressions
    ]
    return "\n".join(["Against the stored baseline:", "", *lines]) if lines else ""


def _attribution(report: ComparisonReport) -> str:
    study = report.attribution
    if not study:
        return ""
    rows = [[_escaped(cell, _LONGEST_NAME) for cell in row] for row in attribution_rows(study)]
    caption = (
        f"What each feature brings of the change of {study.metric} from {study.baseline} to "
        f"{study.treatment}, in % of the baseline's value, simulated, 95 % intervals"
    )
    header = ["feature", *ATTRIBUTION_VIEWS.values()]
    return f"{_escaped(caption)}:\n\n{_table(header, rows)}"


def _confounds(report: ComparisonReport) -> list[str]:
    pairs = {
        (verdict.claim.treatment, verdict.claim.baseline): verdict.confounds
        for verdict in report.verdicts
    }
    return [
        f"{_escaped(treatment)} against {_escaped(baseline)}: "
        f"{_escaped('; '.join(found), _LONGEST_SENTENCE)}"
        for (treatment, baseline), found in pairs.items()
        if found
    ]


def _reproduce(session: SessionReport) -> str:
    command = one_line(session.command, 1000).replace("`", "'")
    packages = session.environment.packages
    versions = ", ".join(f"{name} {value}" for name, value in packages.items() if value)
    code = f"```console\n{command}\n```" if command else ""
    return f"{code}\n\n<sub>{_escaped(session.started_at)} · {_escaped(versions)}</sub>".strip()


def _folded(title: str, lines: Iterable[str]) -> str:
    listed = "\n".join(f"* {line}" for line in lines)
    if not listed:
        return ""
    return f"<details><summary>{_escaped(title)}</summary>\n\n{listed}\n\n</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escaped(text: str, longest: int = 300) -> str:
    """Text that stays text: no markup, no mention, no automatic link."""
    plain = _MARKUP.sub(r"\\\1", one_line(printable(text, 4 * longest), longest))
    plain = plain.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")
    return plain.replace("@", "&#64;").replace("://", "&#58;//").replace("www\\.", "www&#46;")

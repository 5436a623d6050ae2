"""Writes the reports of a session beside its results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pytest_dynamo_bench.errors import ReportError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.reports.html import render_html
from pytest_dynamo_bench.reports.markdown import render_markdown
from pytest_dynamo_bench.reports.model import SessionReport

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
_STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def write_reports(
    session: SessionReport, environment: Mapping[str, str], directory: Path | None = None
) -> list[Path]:
    """Write ``report.html`` and ``report.md``.

    In a step of GitHub Actions the Markdown is also added to the step's summary.

    Args:
        environment: of this process; ``GITHUB_STEP_SUMMARY`` is used of it.
        directory: of the results by default.

    Returns:
        The files in the directory.

    Raises:
        ReportError: a file cannot be written.
    """
    directory = directory or session.directory
    markdown = render_markdown(session)
    contents = {HTML_FILE: render_html(session), MARKDOWN_FILE: markdown}
    for name, text in contents.items():
        path = directory / name
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_whole(path, text.encode("utf-8", errors="replace"))
        except OSError as error:
            raise ReportError(f"{path}: cannot be written ({error.strerror or error})") from None
    if summary := environment.get(_STEP_SUMMARY):
        add_to_step_summary(Path(summary), markdown)
    return [directory / name for name in contents]


def add_to_step_summary(path: Path, markdown: str) -> None:
    """Append to the summary of a step of GitHub Actions.

    Raises:
        ReportError: it cannot be written to.
    """
    try:
        with path.open("a", encoding="utf-8", errors="replace") as summary:
            summary.write(markdown)
    except OSError as error:
        raise ReportError(
            f"{_STEP_SUMMARY}: {path} cannot be written to ({error.strerror})"
        ) from None

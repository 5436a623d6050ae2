"""What a session shows and writes, whatever pytest was told about its own output."""

from __future__ import annotations

import json
import re

import pytest

from tests.reports.making import HOSTILE, LONG
from tests.test_plugin import project, report_directory  # noqa: F401

WRITTEN = ("report.html", "report.md", "summary.json", "environment.json")


def written(pytester):
    directory = report_directory(pytester)
    return directory, [name for name in WRITTEN if (directory / name).is_file()]


@pytest.mark.parametrize(
    "arguments",
    [("-q",), ("-v", "-s"), ("--no-header", "-p", "no:xdist"), ("-n", "0", "--color=yes")],
    ids=" ".join,
)
def test_tables_and_reports_are_there(project, arguments):  # noqa: F811
    pytester = project()
    result = pytester.runpytest(*arguments)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert written(pytester)[1] == list(WRITTEN)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", result.stdout.str())
    for pattern in (
        r"configuration +GPUs",
        r"kv +16 +50\.\d\* ",
        r"change from agg, with 95 % intervals",
        r"kv +-5\d\.\d \[-5\d\.\d, -4\d\.\d\]",
        r"provisional  KV routing is faster",
        r"report: reports.*report\.html",
        r"report: reports.*report\.md",
    ):
        assert re.search(pattern, shown), pattern


def test_reports_are_written_without_a_terminal(project):  # noqa: F811
    pytester = project()
    result = pytester.runpytest("-p", "no:terminal", "--dynamo-save-baseline=kept", "-k", "kv-")
    assert result.stdout.str() == ""
    assert written(pytester)[1] == list(WRITTEN)
    assert (pytester.path / "kept" / "summary.json").is_file()


def test_under_xdist_nothing_is_measured_and_that_is_said(project):  # noqa: F811
    pytester = project()
    result = pytester.runpytest_subprocess("-n", "2")
    result.stdout.fnmatch_lines(["*benchmarks cannot run under xdist*"])
    assert not (pytester.path / "reports").exists()


def test_progress_goes_line_by_line_into_a_log(project):  # noqa: F811
    result = project().runpytest("-k", "kv-routing")
    lines = [line for line in result.stdout.lines if line.startswith("example: agg")]
    assert lines == [
        "example: agg: starting",
        "example: agg: measuring",
        "example: agg: 200 of 200 requests",
    ]


def test_the_step_summary_of_github_gets_the_markdown(project, monkeypatch):  # noqa: F811
    pytester = project()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "step.md"))
    pytester.runpytest()
    directory = report_directory(pytester)
    assert (pytester.path / "step.md").read_text() == (directory / "report.md").read_text()


def test_a_step_summary_that_cannot_be_written_costs_nothing_else(project, monkeypatch):  # noqa: F811
    pytester = project()
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path / "nowhere" / "step.md"))
    result = pytester.runpytest()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["provisional  KV routing*", "ERROR: reports: GITHUB_STEP_SUMMARY: *"]
    )
    assert written(pytester)[1] == list(WRITTEN)


@pytest.mark.parametrize("text", [HOSTILE, LONG], ids=["hostile", "long"])
def test_a_hostile_error_of_a_server_leaves_all_reports_intact(project, text):  # noqa: F811
    pytester = project(error=text)
    result = pytester.runpytest("-k", "kv-routing")
    result.assert_outcomes(errors=1)
    output = result.stdout.str()
    assert len(output) < 100_000
    assert "\x1b[31mred" not in output and "\x07" not in output and "\u202e" not in output
    directory, names = written(pytester)
    assert names == list(WRITTEN)
    for name in WRITTEN:
        content = (directory / name).read_text(encoding="utf-8")
        assert len(content) < 5_000_000 and "\x1b" not in content
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page and "&lt;/script&gt;&lt;script&gt;" in page
    json.loads((directory / "summary.json").read_text(encoding="utf-8"))


def test_published_numbers_are_shown_beside_and_named(project):  # noqa: F811
    from tests.test_plugin import BENCHMARK

    published = (
        'published=PublishedResults(source="A page", hardware="24 GB200", '
        'values={"agg": {"tok/s/GPU": 1700}}, note="one run"),\n    claims=['
    )
    result = project(BENCHMARK.replace("claims=[", published, 1)).runpytest("-k", "kv-routing")
    result.stdout.fnmatch_lines(
        ["published, not measured here: A page; on 24 GB200; one run", "agg *1,700"]
    )

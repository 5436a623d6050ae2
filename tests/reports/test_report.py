"""HTML and Markdown made from stored results, also where texts are hostile."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import duckdb
import jsonschema
import msgspec
import pandas as pd
import polars as pl
import pytest
from markdown_it import MarkdownIt

from pytest_dynamo_bench.benchmark import Bound
from pytest_dynamo_bench.errors import ReportError, ResultsError
from pytest_dynamo_bench.reports import markdown, stored_types
from pytest_dynamo_bench.reports.charts import charts
from pytest_dynamo_bench.reports.html import render_html
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.store import StoredResults
from pytest_dynamo_bench.reports.terminal import render_comparison
from pytest_dynamo_bench.reports.write import write_reports
from tests.reports.making import HOSTILE, LONG, make_session


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return make_session(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    return make_session(tmp_path_factory.mktemp("hostile"), HOSTILE)


def session(directory):
    return load_session(StoredResults(directory))


class Page(HTMLParser):
    """Tags, text and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def rendered(text):
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_the_page_says_everything_that_a_reader_needs(plain):
    text = " ".join(Page(render_html(session(plain))).texts)
    for told in (
        "Is it faster?", "Held constant", "everything else", "200 requests", "TTFT ≤ 110 ms",
        "8 aggregated × TP2; round-robin router", "KV routing (on against off)", "64 B300",
        "Published, not measured here", "A note.", "recipes/example", "everything is made up",
        "The claim, lower by at least 20 %, holds.", "--deselect=",
    ):  # fmt: skip
        assert told in text, told


def test_every_figure_is_there_with_its_data(plain):
    page = render_html(session(plain))
    for key in (
        "cdf-time_to_first_token", "cdf-inter_token_latency", "time-time_to_first_token",
        "effects-percent", "effects-points", "pareto", "goodput", "hit-rate", "attribution",
    ):  # fmt: skip
        assert f'id="f1-{key}"' in page, key


@pytest.mark.parametrize(
    ("bound", "limits"),
    [(Bound("at most", 0.1), (0.1,)), (Bound("within", 0.1), (-0.1, 0.1))],
)
def test_every_limit_of_a_claim_is_marked(plain, bound, limits):
    (report,) = session(plain).comparisons
    verdicts = [msgspec.structs.replace(report.verdicts[0], bound=bound)]
    (chart, *_) = charts(dataclasses.replace(report, verdicts=verdicts))
    assert chart.key.startswith("effects-")
    assert chart.data[-1]["x"] == pytest.approx([100 * limit for limit in limits])


def test_a_page_does_not_grow_with_the_number_of_requests(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.fake_target.REQUESTS", 4000)
    large = render_html(session(make_session(tmp_path)))
    assert len(large) < 1.05 * len(render_html(session(plain)))
    assert len(large) < 5_000_000


@pytest.mark.parametrize("text", [HOSTILE, LONG], ids=["hostile", "long"])
def test_hostile_texts_stay_text_in_the_page(text, tmp_path):
    page = render_html(session(make_session(tmp_path, text)))
    parsed = Page(page)
    assert "img" not in parsed.tags
    assert parsed.tags.count("script") == 2 + page.count('type="application/json"')
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    assert not {"src", "href"} & {name for name, _ in parsed.attributes}
    assert len(page) < 5_000_000
    assert "\x1b" not in page and "\u202e" not in page
    assert "{{ 7*7 }}" in " ".join(parsed.texts)
    page.encode("utf-8")


@pytest.mark.parametrize("text", ["", HOSTILE, LONG], ids=["plain", "hostile", "long"])
def test_markdown_is_rendered_as_meant(text, tmp_path):
    source = markdown.render_markdown(session(make_session(tmp_path, text)))
    assert len(source) < 65_536
    page = Page(rendered(source))
    assert set(page.tags) <= {
        "h2", "h3", "p", "strong", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "br",
        "sub", "details", "summary", "pre", "code",
    }  # fmt: skip
    assert page.tags.count("table") == 3
    shown = " ".join(page.texts)
    assert "agg" in shown and "The claim, " in shown
    # Nobody is mentioned and nothing becomes a link; in a code block neither happens.
    prose = source.split("```")[0]
    assert "@someone" not in prose and "http://" not in prose
    assert "\x1b" not in source
    source.encode("utf-8")


def test_a_cell_is_one_cell_whatever_is_in_it(hostile):
    source = markdown.render_markdown(session(hostile))
    tables = [
        [line for line in block.splitlines() if line.startswith("|")]
        for block in source.split("\n\n")
        if block.startswith("|")
    ]
    for table in tables:
        counts = {line.replace("\\|", "").count("|") for line in table}
        assert len(counts) == 1


def test_markdown_fits_whatever_happens(tmp_path):
    for number in range(30):
        make_session(tmp_path / str(number), "word " * 200, f"example-{number}")
    summaries = [json.loads((tmp_path / str(n) / "summary.json").read_text()) for n in range(30)]
    for number, summary in enumerate(summaries[1:], start=1):
        summaries[0]["benchmarks"] |= summary["benchmarks"]
        name = f"example-{number}"
        (tmp_path / str(number) / name).rename(tmp_path / "0" / name)
    (tmp_path / "0" / "summary.json").write_text(json.dumps(summaries[0]))
    source = markdown.render_markdown(session(tmp_path / "0"))
    assert 20_000 < len(source) < 65_536
    rendered(source)


def test_hostile_texts_do_not_reach_the_terminal(hostile):
    for report in session(hostile).comparisons:
        for color in (False, True):
            text = render_comparison(report, 100, color)
            assert "\x1b[31mred" not in text and "\x07" not in text and "\u202e" not in text
            text.encode("utf-8")


def test_a_narrow_terminal_loses_columns_and_no_names(tmp_path):
    report = load_session(StoredResults(make_session(tmp_path))).comparisons[0]

    def table(width):
        lines = render_comparison(report, width, False).splitlines()
        assert all(len(line) <= width for line in lines)
        first = next(n for n, line in enumerate(lines) if line.startswith("configuration  GPUs"))
        return [line.split() for line in lines[first : first + 4]]

    whole = table(100)
    for width in range(60, 100):
        rows = table(width)
        # What is left is whole.
        assert [row[: len(part)] for row, part in zip(whole, rows, strict=True)] == rows
    assert len(table(60)[0]) < len(whole[0])


def test_a_configuration_that_did_not_come_up_is_in_every_report(tmp_path):
    found = session(make_session(tmp_path, error=LONG))
    page = Page(render_html(found))
    assert (
        "class",
        "notice bad",
    ) in page.attributes and "No configuration has a valid result." in page.texts
    text = markdown.render_markdown(found)
    assert "no result: " in text and len(text) < 65_536
    assert "no result of agg" in render_comparison(found.comparisons[0], 100, False)


def test_an_invalid_run_is_no_result_in_any_report(tmp_path):
    # The baseline's survivors are the fastest of all.
    settings = {"factors": {"agg": 0.234, "kv": 0.5}, "failing": ["agg"]}
    found = session(make_session(tmp_path, **settings))
    (report,) = found.comparisons
    assert [item.name for item in report.measured] == ["kv", "split"]
    shown = render_comparison(report, 120, False)
    assert re.search(r"^agg +16 +invalid +- +-", shown, re.MULTILINE)
    assert "change from kv" in shown and "change from agg" not in shown
    text = markdown.render_markdown(found)
    assert re.search(r"^\| agg \| 16 \| _invalid_ \| - \|", text, re.MULTILINE)
    assert "agg**: invalid: requests succeeded: 20 failed and 0 missing of 200" in text
    page = render_html(found)
    assert '<span class="bad">invalid</span>: requests succeeded: 20 failed' in page
    for chart in charts(report):
        if not chart.key.startswith("attribution"):
            assert "agg" not in {trace["name"] for trace in chart.data}
    assert not re.search(r"\b23\.\d\b", shown + text)


def test_what_must_not_be_compared_has_no_change_and_no_best(plain, tmp_path):
    directory = tmp_path / "results"
    shutil.copytree(plain, directory)
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    verdicts = summary["benchmarks"]["example"]["verdicts"]
    pair, single = verdicts["KV routing is faster "], verdicts["The split is faster"]
    pair["outcome"] = single["outcome"] = "invalid"
    gate = {"passed": False, "saw": "5", "threshold": "9"}
    pair["gates"] = [gate | {"name": "same requests", "configuration": "kv, agg"}]
    single["gates"] = [gate | {"name": "enough requests", "configuration": "split"}]
    path.write_text(json.dumps(summary))
    (report,) = session(directory).comparisons
    _, kv, split = report.measured
    assert report.effect(kv, "request_latency.mean") is None
    assert report.effect(split, "time_to_first_token.mean") is None
    assert report.effect(split, "request_latency.mean") is not None
    assert not any(report.best(column) for column in report.columns)
    assert "best of" not in render_comparison(report, 100, False)


@pytest.mark.parametrize(
    ("changes", "state", "told"),
    [
        ({}, "passed", "passed: 1 holds"),
        ({"verdict": "fails"}, "failed", "failed: 1 fails"),
        ({"verdict": "inconclusive"}, "undecided", "undecided: 1 inconclusive"),
        ({"verdict": "invalid"}, "incomplete", "incomplete: 1 invalid"),
        ({"regression": "unchanged"}, "passed", "1 unchanged against the stored baseline"),
        ({"regression": "regression"}, "failed", "1 regression against the stored baseline"),
        ({"regression": "inconclusive"}, "undecided", "1 inconclusive against the stored baseline"),
        ({"error": "split"}, "incomplete", "1 configuration: no result"),
        ({"error": "kv", "invalid": True}, "incomplete", "1 configuration: invalid"),
        ({"error": "kv", "invalid": "in an older file"}, "incomplete", "1 configuration: invalid"),
        ({"damaged": "kv/run.json"}, "incomplete", "1 configuration: unreadable"),
        ({"damaged": "attribution.json"}, "incomplete", "1 file damaged"),
        ({"test": "passed"}, "passed", "1 test passed"),
        ({"test": "failed"}, "failed", "1 test failed"),
        ({"test": "error"}, "failed", "1 test in error"),
        ({"test": "not run"}, "incomplete", "1 test not run"),
        ({"test": "skipped"}, "passed", "passed: 1 holds"),
        ({"verdict": "inconclusive", "test": "failed", "explained": True}, "failed",
         "failed: 1 inconclusive"),
    ],
)  # fmt: skip
def test_one_thing_that_is_not_green_is_enough(plain, tmp_path, changes, state, told):
    directory = tmp_path / "results"
    shutil.copytree(plain, directory)
    path = directory / "summary.json"
    summary = json.loads(path.read_text())
    entry = summary["benchmarks"]["example"]
    name, verdict = next(iter(entry["verdicts"].items()))
    entry["verdicts"] = {name: verdict | {"outcome": changes.get("verdict", "holds")}}
    if outcome := changes.get("regression"):
        entry["regressions"] = {"kv": {"m": {"outcome": outcome, "sentence": "TTFT is so."}}}
    if configuration := changes.get("error"):
        entry["errors"] = {configuration: "It is broken."}
        if not changes.get("invalid"):
            del entry["runs"][configuration]
        elif changes["invalid"] == "in an older file":
            del entry["runs"][configuration][0]["invalid"]
        else:
            entry["runs"][configuration][0]["invalid"] = ["requests succeeded: 1 failed"]
    if damaged := changes.get("damaged"):
        (directory / "example" / damaged).write_text("{")
    if outcome := changes.get("test"):
        explained = changes.get("explained", False)
        entry["tests"] = {
            "a.py::t": {"outcome": outcome, "message": "4 < 3", "explained": explained}
        }
    path.write_text(json.dumps(summary))
    found = session(directory)
    (report,) = found.comparisons
    shown, text, page = (
        render_comparison(report, 100, False), markdown.render_markdown(found), render_html(found)
    )  # fmt: skip
    assert told in shown and told in text
    assert f"Dynamo benchmarks on local: {state}" in text
    assert f'<li class="state {state}"><b>{state}</b></li>' in page
    assert ("✅" in text.splitlines()[0]) == (state == "passed")
    if changes.get("test") in ("failed", "error") and not changes.get("explained"):
        assert "4 < 3" in shown and "a.py::t" in shown
        assert "4 &lt; 3" in page and "a.py::t" in page
        assert "a\\.py::t: 4 &lt; 3" in text


def test_what_the_regression_gate_found_is_in_every_report(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "results")
    path = tmp_path / "results" / "summary.json"
    summary = json.loads(path.read_text())
    found = {"outcome": "regression", "sentence": "TTFT is worse."}
    summary["benchmarks"]["example"]["regressions"] = {"kv": {"time_to_first_token.p50": found}}
    path.write_text(json.dumps(summary))
    gated = session(path)
    assert "Against the stored baseline" in Page(render_html(gated)).texts
    assert "**regression** kv: TTFT is worse" in markdown.render_markdown(gated)
    shown = render_comparison(gated.comparisons[0], 100, False)
    assert "regression  kv" in shown
    assert "1 inconclusive, 1 regression against the stored baseline" in shown


def test_results_of_an_older_version_can_be_reported(plain, tmp_path):
    shutil.copytree(plain, tmp_path / "results")
    path = tmp_path / "results" / "summary.json"
    summary = json.loads(path.read_text())
    for name in ("configurations", "held_constant", "notes", "published", "errors", "engine",
                 "how_judged", "regressions"):  # fmt: skip
        del summary["benchmarks"]["example"][name]
    path.write_text(json.dumps(summary))
    (tmp_path / "results" / "environment.json").unlink()
    old = session(path)
    assert "KV routing is faster" in render_html(old)
    assert "holds" in markdown.render_markdown(old)
    assert "kv" in render_comparison(old.comparisons[0], 100, False)


@pytest.mark.parametrize("benchmarks", [[], {"a": []}, {"a": {"goodput": {"x": 1}}}, 3])
def test_what_is_no_summary_is_refused(plain, tmp_path, benchmarks):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"version": 1, "benchmarks": benchmarks}))
    with pytest.raises(ResultsError, match="is not a summary of results"):
        session(path)


def test_the_step_summary_is_added_to(plain, tmp_path):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    files = write_reports(session(plain), {"GITHUB_STEP_SUMMARY": str(summary)}, tmp_path / "out")
    assert [path.name for path in files] == ["report.html", "report.md"]
    assert summary.read_text() == "before\n" + files[1].read_text()
    with pytest.raises(ReportError, match="GITHUB_STEP_SUMMARY"):
        write_reports(session(plain), {"GITHUB_STEP_SUMMARY": str(tmp_path)}, tmp_path / "out")


@pytest.mark.parametrize("text", ["", HOSTILE], ids=["plain", "hostile"])
def test_the_summary_is_as_its_schema_says(text, tmp_path):
    schema = stored_types.schema("summary.json")
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    directory = make_session(tmp_path, text, broken=["split"], failing=["kv"])
    summary = json.loads((directory / "summary.json").read_text())
    assert [error.message for error in validator.iter_errors(summary)] == []
    assert summary["benchmarks"]["example"]["errors"].keys() == {"split", "kv"}
    (run,) = summary["benchmarks"]["example"]["runs"]["kv"]
    assert len(run["invalid"]) == 1 and "20 failed" in run["invalid"][0]
    del summary["benchmarks"]["example"]["model"]
    assert not validator.is_valid(summary)


def test_records_open_in_pandas_duckdb_and_polars(plain):
    path = plain / "example" / "kv" / "requests.parquet"
    frame = pd.read_parquet(path)
    expected = (frame["chunk_ms"].str[0] - frame["sent_ms"]).mean()
    (count, mean), = duckdb.sql(
        f"select count(*), avg(chunk_ms[1] - sent_ms) from '{path}' where error is null"
    ).fetchall()  # fmt: skip
    first = pl.col("chunk_ms").list.first()
    ttft = pl.scan_parquet(path).select((first - pl.col("sent_ms")).mean()).collect().item()
    assert count == len(frame) == 200
    assert mean == pytest.approx(expected) == pytest.approx(ttft)
    assert session(plain).comparisons[0].measured[1].value("time_to_first_token.mean") == (
        pytest.approx(expected)
    )

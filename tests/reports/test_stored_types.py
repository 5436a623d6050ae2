"""Stored files against their one definition: written, read, described, and of an older release."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.reports.markdown import render_markdown
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.store import StoredResults, write_json
from pytest_dynamo_bench.reports.stored_types import FILES, Effect, Point, number, schema, taken
from tests.reports.making import HOSTILE, make_session

PROJECT = Path(__file__).parents[2]
# What the first release that kept a sample wrote, with the first 40 requests of each run.
OLDEST = Path(__file__).parent / "version_1"


def assert_valid(directory):
    """Every file is as its schema says; returns how many there are."""
    paths = [path for path in directory.rglob("*.json") if path.name in FILES]
    for path in paths:
        jsonschema.validate(json.loads(path.read_text("utf-8")), schema(path.name))
    return len(paths)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fresh")
    return make_session(directory, HOSTILE, broken=["split"], failing=["kv"])


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_one_and_says_what_each_field_means(name, capsys):
    assert main(["schema", name]) == 0
    printed = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(printed)
    assert printed == json.loads(json.dumps(schema(name)))
    parts = printed["$defs"].values()
    assert all(part["description"] and "Attributes" not in part["description"] for part in parts)
    assert any("description" in field for part in parts for field in part["properties"].values())


def test_files_of_every_age_are_as_the_schemas_say(fresh):
    assert assert_valid(OLDEST) == 5
    assert assert_valid(PROJECT / "reports" / "samples") == 8
    assert assert_valid(fresh) == 5


def test_what_is_no_result_is_not_as_its_schema_says(fresh):
    for path in (path for path in fresh.rglob("*.json") if path.name in FILES):
        content = json.loads(path.read_text("utf-8"))
        for name in FILES[path.name].__struct_fields__:
            damaged = content | {name: [[]]}
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(damaged, schema(path.name))


def test_results_of_the_oldest_release_are_reported():
    (report,) = load_session(StoredResults(OLDEST)).comparisons
    assert [item.name for item in report.measured] == [
        "agg-round-robin", "agg-kv-router", "disagg-kv-router",
    ]  # fmt: skip
    assert [item.role for item in report.measured] == ["baseline", "treatment", "winner"]
    assert report.measured[2].deployment.in_words == (
        "6 prefill × TP2; 2 decode × TP2 (no prefix caching); kv router"
    )
    assert report.measured[0].features == () and report.entry.tests == {}
    text = render_markdown(load_session(StoredResults(OLDEST)))
    assert "5 holds" in text and "29\\.3 % lower" in text and "goodput, req/s" in text


def test_what_a_newer_release_adds_is_ignored(fresh, tmp_path):
    def add(value):
        if isinstance(value, dict):
            return {key: add(item) for key, item in value.items()} | {"new": {"more": [1, None]}}
        return [add(item) for item in value] if isinstance(value, list) else value

    directory = tmp_path / "newer"
    shutil.copytree(fresh, directory)
    summary = json.loads((fresh / "summary.json").read_text("utf-8"))
    entry = summary["benchmarks"]["example"]
    for name in ("hardware", "goodput"):
        entry[name] = add(entry[name])
    entry["runs"] = {name: add(runs) for name, runs in entry["runs"].items()}
    for run in (run for runs in entry["runs"].values() for run in runs):
        del run["metrics"]["new"]
    entry["verdicts"] = {name: add(verdict) for name, verdict in entry["verdicts"].items()}
    entry["new"] = summary["new"] = "x"
    (directory / "summary.json").write_text(json.dumps(summary))
    for path in [directory / "environment.json", *directory.rglob("run.json")]:
        content = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(content | {"new": [{}]}))
    before, after = (StoredResults(path).summary for path in (fresh, directory))
    assert after == before
    assert load_session(StoredResults(directory)).problems == []


@pytest.mark.parametrize("name", ["environment.json", "example/attribution.json"])
def test_a_newer_version_of_what_had_none_is_named(fresh, tmp_path, name):
    directory = tmp_path / "newer"
    shutil.copytree(fresh, directory)
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"version": 2}))
    session = load_session(StoredResults(directory))
    (problem,) = [*session.problems, *session.comparisons[0].problems]
    assert f"{name}: was written by a newer version" in problem


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "1" * 400])
def test_a_number_that_is_none_is_refused(fresh, tmp_path, text):
    shutil.copytree(fresh, tmp_path / "odd")
    path = tmp_path / "odd" / "summary.json"
    kept = path.read_text("utf-8")
    path.write_text(kept.replace('"duration_seconds": ', f'"duration_seconds": {text}, "was": '))
    with pytest.raises(ResultsError, match=r"summary\.json: is not JSON: .* no finite number"):
        StoredResults(path)


def test_what_is_read_is_written_again_as_it_was(fresh, tmp_path):
    for path in (
        path for path in fresh.rglob("*.json") if path.name in ("summary.json", "run.json")
    ):
        again = tmp_path / "again.json"
        write_json(again, msgspec.json.decode(path.read_bytes(), type=FILES[path.name]))
        assert json.loads(again.read_bytes()) == json.loads(path.read_bytes())


NUMBERS = st.floats() | st.none()


@given(st.lists(NUMBERS, min_size=6, max_size=6))
def test_numbers_that_json_does_not_have_are_null(tmp_path_factory, numbers):
    names = ("treatment_value", "baseline_value", "change", "low", "high", "confidence")
    effect = Effect(metric="goodput", method="m", **dict(zip(names, numbers, strict=True)))
    path = tmp_path_factory.getbasetemp() / "effect.json"
    write_json(path, effect)
    found = msgspec.json.decode(path.read_bytes(), type=Effect)
    for name, value in zip(names, numbers, strict=True):
        known = value is not None and math.isfinite(value)
        assert getattr(found, name) == (value if known else None)
        assert number(getattr(found, name), -1.0) == (value if known else -1.0)


def test_a_stored_form_takes_every_field_or_says_which_is_missing():
    class Odd:
        configuration = "agg"

    with pytest.raises(AttributeError, match="gpus"):
        taken(Point, Odd())

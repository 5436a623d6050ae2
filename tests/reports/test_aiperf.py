"""AIPerf's files in and out, with files that a real ``aiperf profile`` 0.13 wrote.

``aiperf_example/`` holds three runs of 40 requests against tests/reference_server.py on loopback:
``agg`` (about 50 ms to the first token), ``kv`` (about 25 ms) and ``broken`` (every tenth request
is answered by HTTP 500). Only the path of the working directory was replaced in them.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from pytest_dynamo_bench import Goodput
from pytest_dynamo_bench.aiperf_results import read_aiperf_results
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.reports.aiperf import aiperf_summary, write_aiperf_results

EXAMPLE = Path(__file__).parent / "aiperf_example"
LIMITS = Goodput(time_to_first_token_ms=60, inter_token_latency_ms=25)
NAMES = ("agg", "kv", "broken")


def as_run(results, schedule="fixed schedule"):
    return Run(
        "example", "agg", "endpoint", 1, results.records, results.started_at,
        traffic={"schedule": schedule},
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_metrics_of_aiperfs_records_are_those_that_aiperf_reports(name):
    results = read_aiperf_results(EXAMPLE / name)
    metrics = Metrics(as_run(results), LIMITS)
    for metric in (
        "time_to_first_token", "inter_token_latency", "request_latency", "inter_chunk_latency",
        "output_token_throughput_per_user",
    ):  # fmt: skip
        for ours, theirs in (("mean", "avg"), ("p50", "p50"), ("p99", "p99"), ("max", "max")):
            reported = results.summary[metric][theirs]
            assert metrics.value(f"{metric}.{ours}") == pytest.approx(reported, rel=1e-6)
    for metric in ("request_throughput", "output_token_throughput", "goodput"):
        # AIPerf takes the end of its duration from the last content, not from the last byte.
        reported = results.summary[metric]["avg"]
        assert metrics.value(metric) == pytest.approx(reported, rel=5e-3)
    assert len(results.records) == 40
    assert results.schedule == "fixed" and results.problems == ()


def test_runs_of_one_dataset_are_paired():
    first, second = (read_aiperf_results(EXAMPLE / name) for name in ("agg", "kv"))
    assert [r.request_id for r in first.records] == [r.request_id for r in second.records]
    assert [r.output_tokens for r in first.records] == [4 + i % 5 for i in range(40)]


def test_failed_requests_are_records_with_status_and_reason():
    failed = [r for r in read_aiperf_results(EXAMPLE / "broken").records if not r.succeeded]
    assert len(failed) == 4
    assert {r.status for r in failed} == {500}
    assert all("worker <b>lost</b>" in r.error and "\n" not in r.error for r in failed)
    assert all(r.chunk_ms == () for r in failed)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(tmp_path, name):
    results = read_aiperf_results(EXAMPLE / name)
    write_aiperf_results(tmp_path, as_run(results), LIMITS)
    again = read_aiperf_results(tmp_path)
    assert len(again.records) == len(results.records)
    assert again.schedule == "fixed"
    write_aiperf_results(tmp_path, as_run(results, "concurrency 12"), LIMITS)
    assert read_aiperf_results(tmp_path).concurrency == 12
    for before, after in zip(results.records, again.records, strict=True):
        for field in dataclasses.fields(before):
            old, new = getattr(before, field.name), getattr(after, field.name)
            if field.name == "error" and old is not None:
                assert old in new
            elif field.name == "chunk_ms" or isinstance(old, float):
                assert new == pytest.approx(old, abs=2e-3)
            elif field.name not in ("decode_worker", "input_tokens"):
                assert new == old, field.name


@pytest.mark.parametrize("name", NAMES)
def test_aggregates_have_the_names_units_and_values_of_aiperfs(name):
    results = read_aiperf_results(EXAMPLE / name)
    ours = aiperf_summary(as_run(results), LIMITS)
    json.dumps(ours, allow_nan=False)
    compared = 0
    for metric, theirs in results.summary.items():
        if metric not in ours or not isinstance(theirs, dict) or "unit" not in theirs:
            continue
        assert ours[metric]["unit"] == theirs["unit"], metric
        for statistic, value in theirs.items():
            if statistic != "unit":
                found = ours[metric][statistic]
                assert found == pytest.approx(value, rel=5e-3), (metric, statistic)
                compared += 1
    assert compared > 80


def test_records_have_the_fields_of_aiperfs(tmp_path):
    write_aiperf_results(tmp_path, as_run(read_aiperf_results(EXAMPLE / "agg")), LIMITS)
    ours, theirs = (
        json.loads((directory / "profile_export.jsonl").read_text().splitlines()[0])
        for directory in (tmp_path, EXAMPLE / "agg")
    )
    assert ours["metadata"].keys() <= theirs["metadata"].keys()
    assert ours["metrics"].keys() <= theirs["metrics"].keys()
    for name, value in ours["metrics"].items():
        assert value["unit"] == theirs["metrics"][name]["unit"], name
        if not isinstance(value["value"], list):
            assert math.isclose(value["value"], theirs["metrics"][name]["value"], rel_tol=1e-6)


def copy_with(tmp_path, change):
    lines = (EXAMPLE / "agg" / "profile_export.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    change(rows)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "profile_export.jsonl").write_text(text)
    return tmp_path


def test_warm_up_is_left_out(tmp_path):
    def change(rows):
        for row in rows[:5]:
            row["metadata"]["benchmark_phase"] = "warmup"

    results = read_aiperf_results(copy_with(tmp_path, change))
    assert len(results.records) == 35
    assert results.records[0].scheduled_ms == 0


def test_a_dataset_that_is_cycled_through_has_unique_ids(tmp_path):
    def change(rows):
        for row in rows:
            row["metadata"]["conversation_id"] = "same"

    ids = [r.request_id for r in read_aiperf_results(copy_with(tmp_path, change)).records]
    assert len(set(ids)) == 40


def test_results_that_were_not_streamed_are_refused(tmp_path):
    def change(rows):
        del rows[3]["metrics"]["time_to_first_token"]

    with pytest.raises(ResultsError, match=r"line 4: .*run AIPerf with --streaming"):
        read_aiperf_results(copy_with(tmp_path, change))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        '{"metadata": 3}',
        '{"metadata": {}}',
        '{"metadata": {"request_start_ns": "x"}}',
    ],
)
def test_a_line_that_is_not_a_record_is_named(tmp_path, line):
    path = tmp_path / "profile_export.jsonl"
    path.write_text(f"\n{line}\n")
    with pytest.raises(ResultsError, match="line 2: not an AIPerf record"):
        read_aiperf_results(path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ResultsError, match="give the directory that `aiperf profile"):
        read_aiperf_results(tmp_path)
    (tmp_path / "profile_export_aiperf.json").write_text("{}")
    with pytest.raises(ResultsError, match="--export-level records"):
        read_aiperf_results(tmp_path)
    with pytest.raises(ResultsError, match="give one of: agg, broken, kv"):
        read_aiperf_results(EXAMPLE)

"""What is written for AIPerf, as AIPerf itself reads it. Skipped where AIPerf is not installed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from pytest_dynamo_bench.aiperf_results import read_aiperf_results
from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.aiperf import arguments, dataset_lines, find_aiperf
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.reports.aiperf import aiperf_summary, write_aiperf_results
from pytest_dynamo_bench.traffic import Concurrency
from tests.load.test_load import request, traffic
from tests.reports.test_aiperf import EXAMPLE, LIMITS, as_run

ASKED = Path(__file__).with_name("asked_of_aiperf.py")


@pytest.fixture
def ask():
    """Ask the interpreter that the program ``aiperf`` starts with."""
    try:
        program = find_aiperf()
    except LoadError as missing:
        pytest.skip(str(missing))
    python = program.read_text("utf-8").splitlines()[0].removeprefix("#!")

    def asked(**content):
        nothing = {"arguments": [], "dataset": [], "records": [], "summary": {}}
        done = subprocess.run(
            [python, "-W", "ignore", str(ASKED)], input=json.dumps(nothing | content),
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])

    return asked


def test_aiperf_takes_its_command_line_and_dataset(ask, tmp_path):
    requests = [request(1, at=5.0, session="a"), request(2, session="a", turn=1, delay=60)]
    server = Server("http://127.0.0.1:8000/v1/chat/completions")
    lines, rows = [], []
    for load in (traffic(requests), traffic(requests, Concurrency(2))):
        dataset = tmp_path / f"{len(lines)}.jsonl"
        dataset.write_text("".join(line + "\n" for line in dataset_lines(load)), "utf-8")
        rows += [json.loads(line) for line in dataset_lines(load)]
        lines.append(
            arguments(Path("aiperf"), server, "m", load, dataset, tmp_path / "results", 600)[1:]
        )
    found = ask(arguments=[*lines, [*lines[0], "--bogus"]], dataset=rows)
    assert found["arguments"][:2] == ["", ""]
    assert "--bogus" in found["arguments"][2]
    # Ours: AIPerf counts the prompt's tokens itself.
    assert found["dataset"] == ["no field input_length"]


def test_results_that_are_written_in_aiperfs_form_are_that(ask, tmp_path):
    run = as_run(read_aiperf_results(EXAMPLE / "broken"))
    write_aiperf_results(tmp_path, run, LIMITS)
    lines = (tmp_path / "profile_export.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    assert any("error" in record for record in records)
    found = ask(records=records, summary=aiperf_summary(run, LIMITS))
    assert found["records"] == []
    # What AIPerf has no place for: where the results come from.
    ours = ("schedule", "simulated", "slos", "written_by")
    assert found["summary"] == [f"no field {name}" for name in ours]
    wrong = [{**records[0], "metrics": {"request_latency": 3}}]
    assert ask(records=wrong)["records"]

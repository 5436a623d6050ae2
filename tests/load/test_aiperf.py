"""AIPerf as the load generator: what it is given, and what is made of its records."""

from __future__ import annotations

import dataclasses
import json
import stat

import pytest

from pytest_dynamo_bench.aiperf_results import read_aiperf_results
from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load import aiperf
from pytest_dynamo_bench.load.chat import request_bodies
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.traffic import Concurrency
from tests.load.test_load import request, traffic

pytestmark = pytest.mark.anyio
SECOND = 1_000_000_000


def entry(session, start, *, turn=0, end=None, **more):
    record = {
        "metadata": {
            "conversation_id": session, "turn_index": turn, "benchmark_phase": "profiling",
            "request_start_ns": int(start * SECOND),
            "request_end_ns": int((end or start + 0.2) * SECOND),
        },
        "metrics": {
            "time_to_first_token": {"value": 50.0},
            "inter_chunk_latency": {"value": [10.0, 12.0]},
            "usage_prompt_tokens": {"value": 40},
            "usage_completion_tokens": {"value": 3},
            "input_sequence_length": {"value": 40},
            "output_sequence_length": {"value": 3},
        },
    }  # fmt: skip
    return json.dumps(record | more)


def test_the_dataset_has_the_prompts_lengths_and_times_of_the_traffic():
    requests = [
        request(1, at=5.0, session="a", isl=33, osl=4),
        request(2, session="a", turn=1, delay=60),
        request(3, at=2.0),
    ]
    rows = [json.loads(line) for line in aiperf.dataset_lines(traffic(requests))]
    assert [row["session_id"] for row in rows] == ["a", "a", "003"]
    assert rows[0]["timestamp"] == 5.0
    assert rows[1]["delay"] == 60
    assert "timestamp" not in rows[1]
    prompt = json.loads(request_bodies("m", requests[:1], 512)[0])["messages"][0]["content"]
    assert rows[0]["text"] == prompt
    assert rows[0]["output_length"] == rows[0]["extra"]["min_tokens"] == 4
    closed = aiperf.dataset_lines(traffic(requests, Concurrency(2)))
    assert not any("timestamp" in json.loads(line) for line in closed)


def results(tmp_path, *lines):
    (tmp_path / "profile_export.jsonl").write_text("\n".join(lines))
    return read_aiperf_results(tmp_path)


def test_records_are_those_of_the_traffic(tmp_path):
    requests = [
        request(1, session="a"), request(2, session="a", turn=1, delay=60), request(3, at=100.0),
    ]  # fmt: skip
    found = results(
        tmp_path, entry("a", 1000.0), entry("003", 1000.103), entry("a", 1000.27, turn=1)
    )
    records, start_ms = aiperf.records_of(found, traffic(requests))
    assert start_ms == 0
    by_id = {record.request_id: record for record in records}
    first, second, third = by_id["001"], by_id["002"], by_id["003"]
    assert list(first.chunk_ms) == pytest.approx([50, 60, 72])
    assert (first.prompt_tokens, first.completion_tokens) == (40, 3)
    assert first.receive_clock == "user space"
    assert (third.scheduled_ms, third.sent_ms) == pytest.approx((100, 103))
    assert second.scheduled_ms == pytest.approx(first.end_ms + 60)
    assert second.sent_ms == pytest.approx(270)


def test_no_request_is_sent_before_it_is_due(tmp_path):
    requests = [request(1, at=0.0), request(2, at=500.0)]
    found = results(tmp_path, entry("001", 1000.2), entry("002", 1000.6))
    records, start_ms = aiperf.records_of(found, traffic(requests))
    assert start_ms == pytest.approx(-100)
    assert [r.sent_ms - r.scheduled_ms for r in records] == pytest.approx([100, 0], abs=1e-6)


def test_a_request_of_another_traffic_is_refused(tmp_path):
    with pytest.raises(LoadError, match="has an unknown request"):
        aiperf.records_of(results(tmp_path, entry("who", 1.0)), traffic([request(1)]))


@pytest.fixture
def program(tmp_path, monkeypatch):
    """An ``aiperf`` that does what a test says."""

    def make(script):
        path = tmp_path / "bin" / "aiperf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(aiperf, "find_aiperf", lambda: path)
        return path

    return make


async def test_a_program_that_fails_is_an_error_with_the_end_of_its_log(program, tmp_path):
    program("echo cannot do this >&2; exit 3")
    generator = aiperf.AiperfGenerator(Server("http://127.0.0.1:9/v1"), "m", tmp_path / "out")
    with pytest.raises(LoadError, match="code 3") as error:
        await generator.send(traffic([request(1)]), id)
    assert "cannot do this" in str(error.value)
    assert not (tmp_path / "out" / "aiperf-dataset.jsonl").exists()


async def test_nothing_is_left_when_sending_is_given_up(program, tmp_path):
    import asyncio

    import psutil

    program("sleep 600 & echo $! > $0.pid; wait")
    generator = aiperf.AiperfGenerator(Server("http://127.0.0.1:9/v1"), "m", tmp_path / "out")
    sending = asyncio.create_task(generator.send(traffic([request(1)]), id))
    pid = tmp_path / "bin" / "aiperf.pid"
    while not (pid.exists() and pid.read_text().strip()):
        await asyncio.sleep(0.02)
    sleeper = psutil.Process(int(pid.read_text()))
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert not sleeper.is_running() or sleeper.status() == "zombie"
    assert generator.records() == []


def test_sessions_that_the_server_must_be_told_of_are_refused():
    told = dataclasses.replace(traffic([request(1)]), session_header="x-session")
    with pytest.raises(LoadError, match="does not send session ids"):
        list(aiperf.dataset_lines(told))


def test_it_says_how_to_get_aiperf(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    with pytest.raises(LoadError, match="pip install aiperf"):
        aiperf.find_aiperf()


def test_secrets_are_not_put_on_a_command_line(program, tmp_path):
    program("true")
    server = Server("http://127.0.0.1:9/v1", {"Authorization": "Bearer secret"})
    with pytest.raises(LoadError, match="headers") as error:
        aiperf.AiperfGenerator(server, "m", tmp_path)
    assert "secret" not in str(error.value)

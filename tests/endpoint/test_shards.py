"""Several processes that send one traffic: nothing is lost, nothing counted twice, one clock."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.columns import Columns
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.load.chat import Dialect
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.targets.base import RECENT
from pytest_dynamo_bench.targets.service.address import Address
from pytest_dynamo_bench.targets.service.coordinate import clock_of, run_shards
from pytest_dynamo_bench.targets.service.measure import salted
from pytest_dynamo_bench.targets.service.probe import Service
from pytest_dynamo_bench.targets.service.shards import (
    Clock,
    ShardResult,
    merge,
    pack_brief,
    pack_order,
    pack_result,
    split,
    unpack_order,
    unpack_record,
    unpack_result,
)
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest
from pytest_dynamo_bench.traffic.images import ImageFiles, NoiseImages
from tests.dynamo_by_hand import dynamo
from tests.servers import FAST, serving

TOKEN = "t0k3n"


class Silent:
    latest = ()

    def stage(self, name):
        pass

    def requests(self, done, failed, total):
        pass

    def latency(self, records):
        self.latest = records


def traffic(sessions=20, turns=1, schedule=FixedSchedule(), spacing_ms=20.0, tokens=100):  # noqa: B008
    blocks = -(-tokens // 64)
    requests = [
        TrafficRequest(f"{s}.{t}", f"{s}", t, spacing_ms * s, 5.0 * t, tokens, 5,
                       (*range(blocks - 1), 100 + 10 * s + t))
        for s in range(sessions)
        for t in range(turns)
    ]  # fmt: skip
    return Traffic(requests, schedule, 64, ("made up",))


def record(request: TrafficRequest, shift=0.0):
    sent = request.timestamp_ms + shift
    return RequestRecord(
        request.request_id, request.session_id, request.turn, request.timestamp_ms, sent,
        (sent + 10, sent + 20), sent + 21, request.input_tokens, request.output_tokens,
    )  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 4), st.integers(1, 6), st.booleans(),
    st.integers(6, 40),
)  # fmt: skip
def test_dealing_out_loses_nothing_and_keeps_sessions_together(
    sessions, turns, count, closed, in_flight
):
    whole = traffic(sessions, turns, Concurrency(in_flight) if closed else FixedSchedule())
    if sessions < count:
        with pytest.raises(TargetError, match="use fewer"):
            split(whole, count)
        return
    parts = split(whole, count)
    assert sorted(r.request_id for part in parts for r in part.requests) == sorted(
        r.request_id for r in whole.requests
    )
    owners = [{r.session_id for r in part.requests} for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners)) == sessions
    for part in parts:
        assert list(part.requests) == [r for r in whole.requests if r in part.requests]
    if closed:
        assert sum(part.schedule.sessions for part in parts) == in_flight
    else:
        assert all(part.schedule == whole.schedule for part in parts)


@given(
    st.lists(st.floats(-5000, 5000), min_size=3, max_size=3),
    st.lists(st.floats(0, 50), min_size=3, max_size=3),
)
def test_merging_takes_the_clocks_and_the_late_starts_out(offsets, late):
    whole, start = traffic(9), 1_700_000_000.0
    results = []
    for index, part in enumerate(split(whole, 3)):
        # The shard started late, and its clock shows another time.
        started = start + late[index] / 1000 + offsets[index] / 1000
        # Its own times count from its own start: everything seems early by how late it was.
        records = [record(request, -late[index]) for request in part.requests]
        results.append(ShardResult(index, records, started, Clock(offsets[index], 0.1)))
    merged = merge(results, whole, start)
    expected = {request.request_id: record(request) for request in whole.requests}
    assert merged.problems == []
    for found in merged.records:
        right = expected[found.request_id]
        assert found.scheduled_ms == right.scheduled_ms
        assert found.sent_ms == pytest.approx(right.sent_ms, abs=0.01)
        assert found.chunk_ms == pytest.approx(right.chunk_ms, abs=0.01)
        assert found.end_ms == pytest.approx(right.end_ms, abs=0.01)
    assert [s["clock_offset_ms"] for s in merged.shards] == pytest.approx(offsets, abs=0.001)
    assert [s["start_late_ms"] for s in merged.shards] == pytest.approx(late, abs=0.01)


def test_requests_that_are_missing_or_doubled_are_problems():
    whole = traffic(4)
    records = [record(request) for request in whole.requests[:3]]
    results = [ShardResult(0, [*records, records[0]], 1.0, Clock(0, 0))]
    assert merge(results, whole, 1.0).problems == [
        "1 requests of the shards are missing (3.0, …)",
        "1 requests of the shards were returned twice (0.0, …)",
    ]


@given(st.lists(st.integers(0, 2**64), max_size=30), st.booleans())
def test_orders_and_results_survive_the_way(ids, closed):
    schedule = Concurrency(3) if closed else FixedSchedule()
    requests = [
        dataclasses.replace(request, hash_ids=tuple(ids)) for request in traffic(3).requests
    ]
    whole = Traffic(requests, schedule, 64, ("made up",), session_header="x-session")
    service = Service(Address("http://h:1"), "m", Dialect(template_tokens=3), True)
    found_service, found, rest = unpack_order(pack_order(service, whole, {"token": "x"}))
    assert (found_service, rest) == (service, {"token": "x"})
    assert list(found.requests) == list(whole.requests)
    assert (found.schedule, found.block_tokens, found.history) == (schedule, 64, ("made up",))
    assert found.session_header == "x-session"
    if len({request.session_id for request in requests}) > 1 and schedule == FixedSchedule():
        assert {part.session_header for part in split(whole, 2)} == {"x-session"}
    records = [record(request) for request in requests]
    data = pack_result(records, 5.5, {"a": 1}, {"f": "text"})
    result = unpack_result(data, 1, Clock(0, 0))
    assert (result.records, result.started_unix) == (records, 5.5)
    assert (result.observed, result.files) == ({"a": 1}, {"f": "text"})


def test_what_another_version_shows_is_an_error_that_says_so():
    packed = pack_brief(record(traffic(1).requests[0]))
    assert unpack_record(packed).request_id == traffic(1).requests[0].request_id
    with pytest.raises(TargetError, match="another version of pytest-dynamo-bench"):
        unpack_record(packed[:-1])


def test_images_that_are_made_go_along_and_those_of_files_do_not():
    made = dataclasses.replace(traffic(4), images=NoiseImages(8, 8, seed=3))
    service = Service(Address("http://h:1"), "m", Dialect(), True)
    for part in split(made, 2):
        assert unpack_order(pack_order(service, part, {}))[1].images == NoiseImages(8, 8, seed=3)
    assert salted(made, 5).images != salted(made, 6).images != made.images
    files = dataclasses.replace(made, images=ImageFiles(("a.png",)))
    assert salted(files, 5).images == files.images
    with pytest.raises(TargetError, match="image files are not in the cluster"):
        pack_order(service, files, {})


# -- processes ---------------------------------------------------------------------------------


class Process:
    """A shard as a process on this machine, reached by its own port."""

    def __init__(self, directory: Path, index: int, clock_ahead: float = 0.0) -> None:
        import socket

        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.clock_ahead = clock_ahead
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pytest_dynamo_bench.targets.service.shard_server",
             str(directory), "--port", str(self.port), "--host", "127.0.0.1"],
            env={**os.environ, "JOB_COMPLETION_INDEX": str(index)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def get(self, path):
        return self._ask(path, None)

    def post(self, path, body):
        return self._ask(path, body)

    def _ask(self, path, body):
        url = f"http://127.0.0.1:{self.port}/{TOKEN}/{path}"
        return urllib.request.urlopen(urllib.request.Request(url, body), timeout=30).read()


@contextlib.contextmanager
def shards(tmp_path, service, whole, count, **more):
    tmp_path.mkdir(parents=True, exist_ok=True)
    order = {"token": TOKEN, "request_timeout_seconds": 60, **more}
    for index, part in enumerate(split(whole, count)):
        data = pack_order(service, part, order)
        middle = len(data) // 2
        (tmp_path / f"order-{index}-000").write_bytes(data[:middle])
        (tmp_path / f"order-{index}-001").write_bytes(data[middle:])
    found = []
    try:
        for index in range(count):
            found.append(Process(tmp_path, index))
        yield found
    finally:
        for item in found:
            item.process.kill()
            item.process.wait()


def test_shards_against_a_server_that_is_not_dynamo(tmp_path):
    whole = traffic(12, turns=2)
    with serving(FAST) as server:
        service = Service(Address(server.base_url), "m", Dialect(), False)
        with shards(tmp_path, service, whole, 3, ask=True, answer_seconds=20) as processes:
            progress = Silent()
            merged = run_shards(processes, whole, progress, prepare_seconds=60)
            assert [item.process.wait(10) for item in processes] == [0, 0, 0]
    assert merged.problems == []
    assert {record.request_id for record in merged.records} == {
        request.request_id for request in whole.requests
    }
    assert [record.error for record in merged.records] == [None] * 24
    assert [entry["requests"] for entry in merged.shards] == [8, 8, 8]
    for entry in merged.shards:
        # One machine, one clock: what is measured is the error of the measuring.
        assert abs(entry["clock_offset_ms"]) <= entry["clock_uncertainty_ms"] + 1
        assert -2 < entry["start_late_ms"] < 1000
    assert merged.observed["is_dynamo"] is False
    # A display showed what latencies were like, of the requests that ended last.
    assert len(progress.latest) == RECENT
    by_id = {record.request_id: record for record in merged.records}
    for brief in progress.latest:
        whole_record = by_id[brief.request_id]
        for metric in ("time_to_first_token", "inter_token_latency"):
            shown, whole_value = (Columns([r]).of(metric)[0] for r in (brief, whole_record))
            assert shown == pytest.approx(whole_value)


def test_the_clock_of_another_machine_is_found(tmp_path):
    class Ahead:
        def get(self, path):
            time.sleep(0.002)
            told = f'{{"unix": {time.time() + 7.5}}}'
            time.sleep(0.002)
            return told.encode()

    clock = clock_of(Ahead())
    assert clock.offset_ms == pytest.approx(7500, abs=clock.uncertainty_ms)
    assert clock.uncertainty_ms < 200


def test_a_shard_that_fails_is_an_error_with_its_reason(tmp_path):
    service = Service(Address("http://127.0.0.1:1"), "m", Dialect(), False)
    with (
        shards(tmp_path, service, traffic(4), 2, ask=True, answer_seconds=0) as processes,
        pytest.raises(DeploymentError, match=r"load shard \d failed: .*did not list a mod"),
    ):
        run_shards(processes, traffic(4), Silent(), prepare_seconds=60)


class Scripted:
    """A shard in words: how it is getting on each time that it is asked, and what it measured."""

    def __init__(self, stages, part):
        self.stages, self.part, self.posted = list(stages), part, []

    def get(self, path):
        if path == "clock":
            return json.dumps({"unix": time.time()}).encode()
        if path == "status":
            stage = self.stages.pop(0) if len(self.stages) > 1 else self.stages[0]
            return json.dumps({"stage": stage, "shard": 1, "error": "out of memory"}).encode()
        if self.stages[0] != "done":
            raise OSError("HTTP 404")
        return pack_result([record(r) for r in self.part.requests], 5.5, {}, {})

    def post(self, path, body):
        self.posted.append(path)
        return b"{}"


def test_a_shard_that_fails_while_it_sends_costs_its_own_requests(tmp_path):
    whole = traffic(6)
    parts = split(whole, 2)
    found = [
        Scripted(["waiting", "measuring", "measuring", "done"], parts[0]),
        Scripted(["waiting", "measuring", "failed"], parts[1]),
    ]
    merged = run_shards(found, whole, Silent(), prepare_seconds=5)
    assert {r.request_id for r in merged.records} == {r.request_id for r in parts[0].requests}
    missing, why = merged.problems
    assert "3 requests of the shards are missing" in missing
    assert why == "load shard 1 failed: out of memory"
    assert found[0].posted == ["start", "quit"]


def test_a_deployment_that_dies_costs_only_what_had_not_been_measured(tmp_path):
    whole = traffic(6)
    parts = split(whole, 2)
    found = [
        Scripted(["waiting", "done"], parts[0]), Scripted(["waiting", "measuring"], parts[1])
    ]  # fmt: skip
    asked = []

    def still_there():
        asked.append(1)
        if len(asked) > 3:
            raise DeploymentError("the frontend is gone")

    merged = run_shards(found, whole, Silent(), prepare_seconds=5, still_there=still_there)
    assert len(merged.records) == 3 and "the frontend is gone" in merged.problems


def test_a_shard_that_nobody_asks_ends_by_itself(tmp_path):
    service = Service(Address("http://127.0.0.1:1"), "m", Dialect(), False)
    with shards(tmp_path, service, traffic(4), 1, silence_seconds=0.5) as (process,):
        assert process.process.wait(30) == 1


def test_who_does_not_know_the_way_is_told_nothing(tmp_path):
    service = Service(Address("http://127.0.0.1:1"), "m", Dialect(), False)
    with shards(tmp_path, service, traffic(4), 1) as (process,):
        deadline = time.monotonic() + 30
        while True:
            try:
                process.get("status")
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        for path in ("/status", "/wrong/status", f"/{TOKEN}/results"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{process.port}{path}", timeout=5)


@pytest.mark.alone
@pytest.mark.slow
def test_three_shards_measure_what_one_does(tmp_path):
    """Against a real frontend: the same requests at the same times, and comparable metrics."""
    pytest.importorskip("dynamo.mocker", reason="needs ai-dynamo")
    whole = traffic(60, spacing_ms=80.0, tokens=400)
    found = {}
    with dynamo(tmp_path / "dynamo", workers=2) as (url, model):
        service = Service(Address(url), model, Dialect(), True)
        for name, count in (("one", 1), ("three", 3)):
            with shards(tmp_path / name, service, whole, count, warm_up_requests=4) as processes:
                merged = run_shards(processes, whole, Silent(), prepare_seconds=120)
            assert merged.problems == []
            run = Run("b", "c", "kubernetes", 1, merged.records, "2026-01-01T00:00:00+00:00")
            found[name] = Metrics(run)
            assert {r.request_id for r in merged.records if r.succeeded} == {
                r.request_id for r in whole.requests
            }
            # Sent as the schedule says, whoever sent it.
            delays = [r.sent_ms - r.scheduled_ms for r in merged.records]
            assert np.median(delays) < 50
    ids = [[r.request_id for r in sorted(m.run.records, key=lambda r: r.request_id)]
           for m in found.values()]  # fmt: skip
    assert ids[0] == ids[1]
    one, three = found["one"].time_to_first_token, found["three"].time_to_first_token
    for statistic in ("p50", "mean"):
        a, b = getattr(one, statistic), getattr(three, statistic)
        # Two busy cores: a factor, not a few percent. What is sent is what must be the same.
        assert 0.4 < a / b < 2.5, (statistic, a, b)

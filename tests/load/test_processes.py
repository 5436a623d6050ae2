"""The processes of the load generator: one clock, one result, nothing left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pytest_dynamo_bench.errors import LoadError
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule
from tests.load.test_load import request, traffic
from tests.reference_server import Script, reference_server

pytestmark = [pytest.mark.anyio, pytest.mark.alone]


def workers():
    """Processes of load generators that this process has."""
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "pytest_dynamo_bench.load.worker" in " ".join(child.cmdline())
    ]


async def test_two_processes_send_one_traffic_on_one_clock():
    requests = [request(i, at=30.0 * i, isl=30 + i) for i in range(8)]
    requests += [request(20 + i, session="a", turn=i, delay=20, isl=50 + i) for i in range(3)]
    requests.sort(key=lambda r: r.timestamp_ms)
    async with reference_server(Script(0.01, 0.002)) as server:
        generator = LoadGenerator(Server(server.url), "m", processes=2)
        ended = []
        await generator.send(traffic(requests, FixedSchedule()), ended.append)
    records = {record.request_id: record for record in generator.records()}
    assert len(records) == len(ended) == len(requests)
    assert all(record.error is None for record in records.values())
    late = [r.sent_ms - r.scheduled_ms for r in records.values()]
    assert min(late) >= 0
    measured = generator.measured
    assert measured.processes == 2
    assert measured.cpu_seconds > 0
    assert workers() == []
    # Between sending and arriving at the server there is next to nothing, in either process.
    arrived = {
        len(seen.body["messages"][0]["content"].split()): 1000 * seen.arrived
        for seen in server.seen
    }
    apart = [arrived[record.input_tokens] - record.sent_ms for record in records.values()]
    assert max(apart) - min(apart) < 100


async def test_the_concurrency_is_divided_and_kept():
    async with reference_server(Script(0.02, 0.001)) as server:
        generator = LoadGenerator(Server(server.url), "m", processes=2)
        await generator.send(traffic([request(i) for i in range(12)], Concurrency(3)), id)
    assert server.most_in_flight == 3
    assert len(generator.records()) == 12


async def test_it_measures_itself():
    async with reference_server(Script(0.01, 0.001)) as server:
        generator = LoadGenerator(Server(server.url), "m")
        await generator.send(traffic([request(i, at=10.0 * i) for i in range(10)]), id)
    health = generator.health()
    assert health["name"] == "own"
    assert health["schedule_delay_ms"]["p99"] >= health["schedule_delay_ms"]["p50"] >= 0
    assert 0 < health["cpu_share"] < 2
    if sys.platform == "linux":
        assert health["kernel_timestamp_share"] == 1
        assert {record.receive_clock for record in generator.records()} == {"kernel"}


async def test_a_process_that_dies_is_an_error_and_what_had_ended_is_kept():
    def script(index, body):
        return Script(0, 0) if index < 2 else Script(0, 0, stall_after=1)

    async with reference_server(script) as server:
        generator = LoadGenerator(Server(server.url), "m")
        sending = asyncio.create_task(
            generator.send(traffic([request(i) for i in range(4)], Concurrency(1)), id)
        )
        while len(generator.records()) < 2:
            await asyncio.sleep(0.02)
        (worker,) = workers()
        worker.kill()
        with pytest.raises(LoadError, match="exited early with code -9"):
            await sending
    assert len(generator.records()) == 2
    assert workers() == []


PROGRAM = """
import asyncio, sys
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from tests.load.test_load import request, traffic
generator = LoadGenerator(Server(sys.argv[1]), "m", processes=2)
asyncio.run(generator.send(traffic([request(i) for i in range(4)]), id))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_nothing_is_left_when_the_caller_is_killed(number):
    async with reference_server(Script(0, 0, stall_after=1)) as server:
        caller = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, server.url],
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        while server.in_flight < 4:
            await asyncio.sleep(0.02)
        children = psutil.Process(caller.pid).children(recursive=True)
        assert len(children) >= 2
        os.kill(caller.pid, number)
        caller.wait()
        until = time.monotonic() + 5
        while any(child.is_running() and child.status() != "zombie" for child in children):
            assert time.monotonic() < until, "the processes of the load generator stay"
            await asyncio.sleep(0.05)

"""A user's own traffic: told apart by content, errors with the line."""

import gzip
import json
import lzma

import pytest

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, TraceFile, read_traffic

MOONCAKE = {"timestamp": 5, "input_length": 700, "output_length": 20, "hash_ids": [3, 4]}


def dynamo(request_id, received, hashes, length=100, session=None, took=10, **changes):
    request = {
        "request_id": request_id, "request_received_ms": received, "output_tokens": 7,
        "total_time_ms": took,
        "replay": {"trace_block_size": 64, "input_length": length,
                   "input_sequence_hashes": hashes},
    } | changes  # fmt: skip
    record = {
        "schema": "dynamo.request.trace.v1", "event_type": "request_end",
        "event_time_unix_ms": received + took, "request": request,
    }  # fmt: skip
    return record | ({"agent_context": {"session_id": session}} if session else {})


def read(tmp_path, rows, schedule=None, **options):
    path = tmp_path / "trace"
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    return read_traffic(path, schedule or FixedSchedule(), **options)


def test_a_mooncake_trace(tmp_path):
    traffic = read(tmp_path, [MOONCAKE])
    assert traffic.requests[0].hash_ids == (3, 4) and traffic.block_tokens == 512
    assert "Mooncake trace" in traffic.history[0]


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_compression_is_told_by_content(compress, tmp_path):
    (tmp_path / "x").write_bytes(compress(json.dumps(MOONCAKE).encode()))
    assert len(read_traffic(tmp_path / "x", FixedSchedule()).requests) == 1


def test_turns_that_repeat_and_turns_that_add_are_the_same_traffic(tmp_path):
    first = {"session_id": "s", "timestamp": 0, "input_length": 500, "output_length": 24,
             "hash_ids": [1]}  # fmt: skip
    adds = {"session_id": "s", "delay": 9, "input_length": 600, "output_length": 5,
            "hash_ids": [2, 3]}  # fmt: skip
    repeats = adds | {"input_length": 1124, "hash_ids": [1, 2, 3]}
    one = read(tmp_path, [first, adds]).requests
    assert one == read(tmp_path, [first, repeats]).requests
    assert one[1].input_tokens == 1124 and one[1].hash_ids == (1, 2, 3)


def test_a_turn_cannot_be_shorter_than_what_came_before(tmp_path):
    first = {"session_id": "s", "timestamp": 0, "input_length": 500, "output_length": 24,
             "hash_ids": [1]}  # fmt: skip
    again = first | {"input_length": 510}
    with pytest.raises(TrafficError, match="must be longer than these together"):
        read(tmp_path, [first, again])


def test_a_dynamo_request_trace(tmp_path):
    rows = [
        dynamo("b", 1_000_500, [2**63 + 5, 9], session="s"),
        {"event": dynamo("a", 1_000_000, [2**63 + 5, 8], session="s", took=100)},
        dynamo("c", 1_000_200, [77], length=64, session="t"),
        {"schema": "dynamo.request.trace.v1", "event_type": "tool_end"},
    ]
    traffic = read(tmp_path, rows)
    assert traffic.block_tokens == 64
    by_id = {request.request_id: request for request in traffic.requests}
    assert by_id["a"].hash_ids[0] == by_id["b"].hash_ids[0] < 10
    assert (by_id["a"].turn, by_id["b"].turn) == (0, 1)
    # b came 500 ms after a, which took 100.
    assert by_id["b"].delay_ms == 400 and by_id["c"].timestamp_ms == 200
    assert by_id["c"].output_tokens == 7


def test_dynamo_requests_without_a_session_are_independent(tmp_path):
    traffic = read(tmp_path, [dynamo("a", 10, [1, 2]), dynamo("b", 30, [1, 3])])
    assert [request.turn for request in traffic.requests] == [0, 0]
    assert [request.timestamp_ms for request in traffic.requests] == [0, 20]


def test_aiperf_inputs(tmp_path):
    system = "You are helpful. " * 300
    first = [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
    second = [*first, {"role": "assistant", "content": "Yes?"},
              {"role": "user", "content": [{"type": "text", "text": "More"}]}]  # fmt: skip
    document = {
        "data": [
            {"session_id": "s", "payloads": [
                {"messages": first, "max_tokens": 10},
                {"messages": second, "max_completion_tokens": 11},
            ]},
            {"session_id": "t", "payloads": [{"messages": first, "max_tokens": 12}]},
        ]
    }  # fmt: skip
    traffic = read(tmp_path, json.dumps(document, indent=1), Concurrency(2))
    one, two, other = sorted(traffic.requests, key=lambda r: (r.session_id, r.turn))
    assert one.hash_ids == other.hash_ids and two.hash_ids[:2] == one.hash_ids[:2]
    assert one.input_tokens == pytest.approx(len(system) / 4, rel=0.02)
    assert [r.output_tokens for r in (one, two, other)] == [10, 11, 12]
    assert "estimated" in traffic.history[1]


def test_aiperf_datasets(tmp_path):
    rows = [
        {"session_id": "s", "turns": [
            {"text": "a" * 4000, "timestamp": 100, "output_length": 50},
            {"text": "b" * 400, "delay": 30, "output_length": 50},
        ]},
        {"text": "a" * 4000, "timestamp": 150, "output_length": 5},
    ]  # fmt: skip
    one, two, other = sorted(
        read(tmp_path, rows).requests, key=lambda r: (r.session_id != "s", r.turn)
    )
    assert (one.input_tokens, two.input_tokens) == (1000, 1000 + 50 + 100)
    assert two.delay_ms == 30 and other.timestamp_ms - one.timestamp_ms == 50
    assert one.hash_ids == other.hash_ids and two.hash_ids[0] == one.hash_ids[0]


def test_without_times_a_concurrency_is_needed(tmp_path):
    with pytest.raises(TrafficError, match=r"has no times.*Concurrency"):
        read(tmp_path, [{"text": "Hi", "output_length": 5}])


def test_output_lengths_can_be_given(tmp_path):
    with pytest.raises(TrafficError, match=r"line 1: has no output length"):
        read(tmp_path, [{"text": "Hi"}], Concurrency(1))
    assert (
        read(tmp_path, [{"text": "Hi"}], Concurrency(1), output_tokens=9).requests[0].output_tokens
        == 9
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "unknown format"),
        ("hello\n", "starts with 'hello'"),
        ('{"a": 1}\n', "known formats are"),
        ('{"data": [\n  1,\n', r"line 3: is not JSON"),
        ([MOONCAKE, MOONCAKE | {"input_length": -1}], "line 2, field 'input_length'"),
        ([MOONCAKE, MOONCAKE | {"hash_ids": [1]}], "line 2, field 'hash_ids'"),
        (json.dumps(MOONCAKE) + "\n{oops\n", "line 2: is not JSON"),
        ([dynamo("a", 1, [1, 2]), dynamo("a", 2, [1, 2])], "line 2, field 'request_id'"),
        ([dynamo("a", 1, [1])], "line 1, field 'input_sequence_hashes': 1 hashes for 100"),
        ([dynamo("a", 1, [1, 2], replay=None)], "line 1, field 'request.replay'"),
        ([dynamo("a", 1, [1, 2], output_tokens="x")], "line 1, field 'output_tokens'"),
        ([{"schema": "dynamo.request.trace.v1", "event_type": "tool_end"}], "no request_end"),
        ([{"schema": "dynamo.request.trace.v9", "event_type": "request_end"}], "field 'schema'"),
        ([{"text": 5, "output_length": 1}], "line 1, field 'text'"),
        ([{"turns": [], "output_length": 1}], "line 1, field 'turns'"),
        ([{"text": "a", "output_length": 0}], "must be a whole number from 1"),
        ('{"data": [{"session_id": "s"}]}', r"data\[0\]: must be an object"),
        ('{"data": [{"payloads": [{"max_tokens": 1}]}]}', r"data\[0\].payloads\[0\]: has neither"),
    ],
)  # fmt: skip
def test_errors_say_where(rows, message, tmp_path):
    with pytest.raises(TrafficError, match=message):
        read(tmp_path, rows, Concurrency(1))


def test_damaged_compression_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(TrafficError, match="cannot be read"):
        read_traffic(tmp_path / "x", FixedSchedule())


def test_a_missing_file_is_found_when_the_benchmark_is_imported():
    with pytest.raises(TrafficError, match="no file 'nowhere'"):
        TraceFile("nowhere")


def test_as_a_source(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(MOONCAKE))
    source = TraceFile(str(path))
    assert source.description == "mine.jsonl, fixed schedule"
    assert source.load() is source.load()

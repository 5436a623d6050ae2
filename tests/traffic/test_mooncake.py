"""Reading and writing traces, and what the errors say."""

from __future__ import annotations

import io
import json
import lzma
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.errors import TrafficError
from pytest_dynamo_bench.traffic import (
    FixedSchedule,
    MooncakeTrace,
    Traffic,
    TrafficRequest,
    describe,
    ideal_cached_tokens,
    read_mooncake,
    write_mooncake,
)
from pytest_dynamo_bench.traffic.model import BLOCK_TOKENS


def row(**changes):
    fields = {"timestamp": 0, "input_length": 700, "output_length": 20, "hash_ids": [1, 2]}
    return json.dumps({**fields, **changes})


def test_the_shipped_trace_is_the_published_one():
    figures = describe(MooncakeTrace("conversation").load())
    assert figures.requests == 12_031
    assert round(figures.mean_isl) == 12_035
    assert round(figures.mean_osl) == 343
    assert figures.duration_seconds == pytest.approx(3537, abs=1)
    assert figures.reusable_share == pytest.approx(0.3664, abs=0.0001)
    assert figures.working_set_tokens == 182_790 * 512


def test_later_turns_extend_the_prompt_by_the_previous_output_and_the_new_tokens():
    lines = [
        row(session_id="s", input_length=1000, output_length=24, hash_ids=[1, 2]),
        row(timestamp=5),
        json.dumps({"session_id": "s", "delay": 40, "input_length": 512, "output_length": 7,
                    "hash_ids": [9]}),
    ]  # fmt: skip
    first, second, single = read_mooncake(lines, "t")
    assert (first.turn, second.turn, single.turn) == (0, 1, 0)
    assert second.input_tokens == 1000 + 24 + 512
    assert second.hash_ids == (1, 2, 9)
    assert second.delay_ms == 40
    assert second.timestamp_ms == first.timestamp_ms


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", r"t.jsonl, line 2: is not JSON .*column 2.*a line is"),
        ("[1]", "t.jsonl, line 2: must be a JSON object, got list"),
        (row(input_length="many"), "line 2, field 'input_length': must be a number, got 'many'"),
        (row(input_length=0), "line 2, field 'input_length': must be 1 or more, got 0"),
        (row(output_length=None), "line 2, field 'output_length': is missing"),
        (row(timestamp=-1), "line 2, field 'timestamp': must be 0 or more"),
        (row(hash_ids="12"), "line 2, field 'hash_ids': must be a list of whole numbers"),
        (
            row(hash_ids=[1]),
            "line 2, field 'hash_ids': 1 ids for a prompt of 700 tokens; must be 2",
        ),
        (row(hash_ids=[1, -2]), "line 2, field 'hash_ids': must be a list of whole numbers"),
    ],
)
def test_errors_name_file_line_and_field(line, message):
    with pytest.raises(TrafficError, match=message):
        read_mooncake([row(), line], "t.jsonl")


def test_an_empty_trace_is_an_error():
    with pytest.raises(TrafficError, match=r"t\.jsonl: has no requests"):
        read_mooncake(["", "  "], "t.jsonl")


def test_a_file_that_is_not_text_is_an_error(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_bytes(row().encode() + b"\n\xff\xfe\x00")
    with pytest.raises(TrafficError, match=r"t.jsonl, after line \d: cannot be read"):
        MooncakeTrace(str(path)).load()


def test_a_file_that_changed_is_read_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "t.jsonl"
    path.write_text(row())
    assert len(MooncakeTrace("t.jsonl").load().requests) == 1
    path.write_text(row() + "\n" + row())
    os.utime(path, ns=(1, 1))
    assert len(MooncakeTrace("t.jsonl").load().requests) == 2


def test_compressed_files_are_read_and_damaged_ones_are_an_error(tmp_path):
    good, bad = tmp_path / "good.jsonl.xz", tmp_path / "bad.jsonl.xz"
    good.write_bytes(lzma.compress(row().encode()))
    bad.write_bytes(lzma.compress(row().encode() * 50)[:-20])
    assert len(MooncakeTrace(str(good)).load().requests) == 1
    with pytest.raises(TrafficError, match="cannot be read"):
        MooncakeTrace(str(bad)).load()


@st.composite
def traces(draw):
    """Sessions of one to three turns, as lines."""
    lines = []
    for session in range(draw(st.integers(1, 5))):
        context = blocks = 0
        for turn in range(draw(st.integers(1, 3))):
            new, out = draw(st.integers(1, 3000)), draw(st.integers(1, 500))
            total = context + new
            needed = -(-total // BLOCK_TOKENS) - blocks
            ids = draw(st.lists(st.integers(0, 10**6), min_size=needed, max_size=needed))
            line = {"session_id": f"s{session}", "input_length": new, "output_length": out,
                    "hash_ids": ids}  # fmt: skip
            line |= {"delay": draw(st.integers(0, 99))} if turn else {"timestamp": 10 * session}
            lines.append(json.dumps(line))
            context, blocks = total + out, blocks + needed
    return lines


@given(traces())
def test_what_is_written_reads_back_unchanged(lines):
    requests = read_mooncake(lines, "t")
    written = io.StringIO()
    write_mooncake(requests, written)
    assert read_mooncake(written.getvalue().splitlines(), "t") == requests


def test_a_cache_of_infinite_size_holds_prefixes_and_nothing_behind_a_new_block():
    prompts = [(1, 2, 3), (1, 2, 9), (1, 8, 3), (1, 2)]
    requests = [
        TrafficRequest(str(i), str(i), 0, 0.0, 0.0, 512 * len(ids) - 100, 1, ids)
        for i, ids in enumerate(prompts)
    ]
    traffic = Traffic(requests, FixedSchedule(), BLOCK_TOKENS, ())
    assert ideal_cached_tokens(traffic) == [0, 1024, 512, 924]

"""Requests as columns have the same numbers as records, and the same left out."""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import columns as columns_module
from pytest_dynamo_bench import request_table
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.record_files import RECORDS_FILE, read_records, write_records
from pytest_dynamo_bench.records import POSSIBLE, RequestRecord, Run, possible
from pytest_dynamo_bench.request_table import RequestTable, odd_notes, possible_table
from pytest_dynamo_bench.traffic import FixedSchedule
from pytest_dynamo_bench.verdicts import check_pair, check_run
from tests.test_metric_definitions import GPUS, LIMITS, RECORDS


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """A few requests make several pieces, so that what is cut is put together again."""
    monkeypatch.setattr(request_table, "_CHUNKS_A_PIECE", 10)
    monkeypatch.setattr(request_table, "_ROWS_AT_A_TIME", 2)
    monkeypatch.setattr(columns_module, "_CHUNKS_AT_A_TIME", 4)


def run_of(records):
    return Run("b", "c", "local", GPUS, records, "2026-01-01T00:00:00Z")


def numbers_of(records):
    """Everything that is computed of a run, request by request where it is."""
    metrics = Metrics(run_of(records), LIMITS)
    found = [metrics.duration_seconds, metrics.as_dict()]
    for name, metric in METRICS.items():
        sample = metrics.sample(f"{name}.mean" if metric.distribution else name)
        arrays = (sample.values, sample.weights, sample.time_ms, sample.end_ms)
        found += [sample.request_ids, [None if a is None else a.tobytes() for a in arrays]]
    gates = check_run(run_of(records), FixedSchedule(), "ttft.p99")
    return repr([*found, gates, check_pair(run_of(records), run_of(records[1:]))])


def plain(record):
    """The record with its chunks in tuples, which are equal where arrays are."""
    return dataclasses.replace(record, chunk_ms=tuple(record.chunk_ms))


@settings(max_examples=6)
@given(RECORDS)
def test_columns_have_the_numbers_that_records_have(records):
    records = list(map(possible, records))
    expected = numbers_of(records)
    with tempfile.TemporaryDirectory() as name:
        written = write_records(Path(name), records)
        read = read_records(Path(name) / RECORDS_FILE)
        for table in (possible_table(records), written, read):
            assert numbers_of(table) == expected
            assert [plain(row) for row in table] == list(map(plain, records))
            assert all(table[i] == row for i, row in enumerate(table))
            assert table[1:] == list(table)[1:] and table[-2:] == list(table)[-2:]


TEXTS = st.text(max_size=4) | st.sampled_from(
    ["worker-1", "é", "\x1b[31mred", "\x7f", "a\nb", "\ud800", "\u200b", "x" * 500, "x" * 501, ""]
)
NUMBERS = st.sampled_from(
    [0, 1, 5, -1, 2**16, 2**16 + 1, 2**40, 2**40 + 1, 2**53, 2**53 + 1, 2**54, 2**70, True, 0.5,
     1.0, 1.5, -0.0, -0.5, math.nan, math.inf, -math.inf, np.float64(0.5), np.int64(3)]
)  # fmt: skip


@st.composite
def an_odd_record(draw):
    values = {
        name: draw(st.none() | (NUMBERS | TEXTS if draw(st.integers(0, 9)) == 0 else
                                TEXTS if limits.max_length else NUMBERS))
        for name, limits in POSSIBLE.items() if draw(st.integers(0, 3)) == 0
    }  # fmt: skip
    return RequestRecord(
        draw(TEXTS), draw(TEXTS), 0, 0.0, 0.0, array("d", [1.0, 2.0]), 3.0, 5, 2,
        error=draw(st.none() | TEXTS), odd=draw(st.sampled_from([(), ("status='?'",)])), **values,
    )  # fmt: skip


@settings(max_examples=40)
@given(st.lists(an_odd_record(), max_size=5))
def test_what_cannot_be_is_found_in_columns_as_in_records(records):
    expected = list(map(possible, records))
    table = possible_table(records)
    assert list(table) == expected
    assert possible_table(table) is table
    assert repr(odd_notes(table)).count("impossible") == len(
        {text.partition("=")[0] for record in expected for text in record.odd}
    )


def records(count=20):
    return [
        RequestRecord(
            f"{i:02d}", "s", i, float(i), float(i), array("d", [i + 1.0, i + 2.0]), i + 3.0, 5, 2,
            completion_tokens=2,
        )
        for i in range(count)
    ]  # fmt: skip


def test_a_file_is_written_in_pieces_and_its_chunks_are_left_there(tmp_path):
    written = write_records(tmp_path, records())
    assert pq.ParquetFile(tmp_path / RECORDS_FILE).num_row_groups == 4
    assert isinstance(written, RequestTable) and written == records()
    metrics = Metrics(run_of(written))
    assert metrics.inter_chunk_latency.count == 20
    again = write_records(tmp_path, records())
    shutil.rmtree(tmp_path)
    assert Metrics(run_of(again)).time_to_first_token.mean == 1.0
    with pytest.raises(ResultsError, match=RECORDS_FILE):
        Metrics(run_of(again)).inter_chunk_latency  # noqa: B018


def test_gaps_are_gone_through_once_for_all_their_metrics(tmp_path, monkeypatch):
    written = write_records(tmp_path, records(), keep_chunks=True)
    shutil.rmtree(tmp_path)
    asked = []
    lists = type(written).lists
    monkeypatch.setattr(
        type(written), "lists", lambda *given: (asked.append(given[1]), lists(*given))[1]
    )
    metrics = Metrics(run_of(written))
    found = metrics.as_dict()
    assert found["inter_chunk_latency"] == found["inter_token_gap"]
    assert metrics.value("inter_token_gap.p99") == metrics.inter_chunk_latency.p99 == 1.0
    assert asked.count("chunk_ms") == len(list(metrics.columns.parts()))
    written.leave_chunks()
    with pytest.raises(ResultsError, match=RECORDS_FILE):
        Metrics(run_of(written)).inter_chunk_latency  # noqa: B018


def test_a_time_that_is_no_double_is_stored_as_the_nearest(tmp_path):
    odd = dataclasses.replace(records(1)[0], sent_ms=2**53 + 1, encoder_ms=2**53 + 1, end_ms=7)
    write_records(tmp_path, [odd])
    (read,) = read_records(tmp_path / RECORDS_FILE)
    assert (read.sent_ms, read.encoder_ms, read.end_ms) == (2.0**53, 2.0**53, 7.0)
    assert not read.odd


def test_files_of_earlier_versions_are_read(tmp_path):
    write_records(tmp_path, records())
    table = pq.read_table(tmp_path / RECORDS_FILE)
    later = table.append_column("later", pa.nulls(len(table)))
    for changed in (table.drop(["odd", "coalesced_chunks", "chunk_tokens", "host_tokens"]), later):
        # One group of rows, as they were written.
        pq.write_table(changed, tmp_path / RECORDS_FILE)
        assert read_records(tmp_path / RECORDS_FILE) == records()
    for name in ("turn", "chunk_ms"):
        pq.write_table(table.drop([name]), tmp_path / RECORDS_FILE)
        with pytest.raises(KeyError, match=name):
            read_records(tmp_path / RECORDS_FILE)
    for name in ("scheduled_ms", "chunk_ms"):
        empty = pa.nulls(len(table), table.schema.field(name).type)
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, empty), tmp_path / RECORDS_FILE)
        with pytest.raises(ValueError, match=name):
            read_records(tmp_path / RECORDS_FILE)

"""Requests on disk, ``requests.parquet``: a row per request, times in milliseconds."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pytest_dynamo_bench.arrays import IntArray
from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.files import whole_file
from pytest_dynamo_bench.plain_text import one_line
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.request_table import CHUNKS, ArrowTable, columns, possible_table

if TYPE_CHECKING:
    import pyarrow as pa

RECORDS_FILE = "requests.parquet"


@dataclasses.dataclass(frozen=True, eq=False)
class _OnDisk:
    """Chunks in a file, in its groups of rows."""

    path: Path
    starts: IntArray
    names: Sequence[str]

    def lists(self, name: str, piece: int) -> pa.ListArray:
        return _read_group(self, name, piece)


@lru_cache(maxsize=4)
def _read_group(file: _OnDisk, name: str, piece: int) -> pa.ListArray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name not in file.names:
        return pa.nulls(int(np.diff(file.starts)[piece]), columns()[name])
    try:
        with pq.ParquetFile(file.path, page_checksum_verification=True) as opened:
            read = opened.read_row_group(piece, columns=[name])
    except (OSError, pa.ArrowException) as error:
        raise ResultsError(f"{file.path}: cannot be read: {one_line(str(error))}") from None
    return read.column(0).combine_chunks()


def write_records(
    directory: Path, records: Sequence[RequestRecord], *, keep_chunks: bool = False
) -> ArrowTable:
    """Write the records of a run in one step; whatever cannot be in one is left empty.

    Args:
        keep_chunks: in memory too, until the table is asked to leave them.

    Returns:
        What was written; its chunks are on disk only, unless they are to be kept.

    Raises:
        ResultsError: they cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = possible_table(records)
    path = directory / RECORDS_FILE
    starts = table.pieces.starts
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (
            whole_file(path) as file,
            pq.ParquetWriter(
                file, pa.schema(columns()), compression="zstd", write_page_checksum=True,
                # What arrives at its own time has no value twice.
                use_dictionary=[n for n, kind in columns().items() if kind == pa.string()],
                use_byte_stream_split=["chunk_ms.list.element"],
            ) as writer,
        ):  # fmt: skip
            for piece, (start, end) in enumerate(itertools.pairwise(starts)):
                arrays = {name: part[start:end] for name, part in table.arrays.items()}
                arrays |= {name: table.pieces.lists(name, piece) for name in CHUNKS}
                writer.write_table(
                    pa.table({name: arrays[name] for name in columns()}), int(end - start)
                )
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from None
    written = table.with_pieces(_OnDisk(path.absolute(), starts, CHUNKS))
    if not keep_chunks:
        written.leave_chunks()
    return written


def read_records(path: Path) -> ArrowTable:
    """What :func:`write_records` wrote, of this version or another; see :func:`~.records.possible`.

    All of it is read once, the chunks group by group, and these are not kept.

    Raises:
        OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException: it is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        there = file.schema_arrow.names
        read = file.read(columns=[n for n in columns() if n in there and n not in CHUNKS])
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    defaults = {item.name: item.default for item in dataclasses.fields(RequestRecord)}
    arrays = {}
    for name, kind in columns().items():
        if name in there and name not in CHUNKS:
            arrays[name] = read.column(name).combine_chunks()
        elif name not in there and defaults[name] is dataclasses.MISSING:
            raise KeyError(f"there is no column {name}")
        elif name not in CHUNKS:
            arrays[name] = pa.repeat(pa.scalar(defaults[name], kind), len(read))
    pieces = _OnDisk(path.absolute(), np.append(0, np.cumsum(counts, dtype=np.int64)), there)
    return possible_table(ArrowTable(arrays, pieces))

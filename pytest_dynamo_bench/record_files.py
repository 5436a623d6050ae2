"""Records on disk, ``requests.parquet``: a row per request, times in milliseconds."""

from __future__ import annotations

import io
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from pytest_dynamo_bench.errors import ResultsError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.records import RequestRecord, possible

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

RECORDS_FILE = "requests.parquet"


@cache
def columns() -> dict[str, pa.DataType]:
    """The columns of ``requests.parquet``: the fields of a record."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    found = {}
    for name, hint in get_type_hints(RequestRecord).items():
        optional = [kind for kind in get_args(hint) if kind is not NoneType]
        kind = optional[0] if NoneType in get_args(hint) else hint
        plain = get_origin(kind) is None
        found[name] = types[kind] if plain else pa.list_(types[get_args(kind)[0]])
    return found


def write_records(directory: Path, records: Sequence[RequestRecord]) -> None:
    """Write the records of a run in one step; whatever cannot be in one is left empty.

    Raises:
        ResultsError: they cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [possible(record) for record in records]
    table = pa.table(
        {
            name: pa.array([getattr(row, name) for row in rows], type=kind)
            for name, kind in columns().items()
        }
    )
    content = io.BytesIO()
    pq.write_table(table, content, compression="zstd", write_page_checksum=True)
    path = directory / RECORDS_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written ({error.strerror or error})") from None


def read_records(file: pq.ParquetFile) -> list[RequestRecord]:
    """What :func:`write_records` wrote, of this version or another; see :func:`~.records.possible`.

    Raises:
        OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException: it is something else.
    """
    known = [name for name in file.schema_arrow.names if name in columns()]
    return [_record(row) for row in file.read(columns=known).to_pylist()]


def _record(row: dict[str, Any]) -> RequestRecord:
    tokens = row.get("chunk_tokens")
    lists = {
        "chunk_ms": array("d", row["chunk_ms"]),
        "chunk_tokens": None if tokens is None else tuple(tokens),
        "odd": tuple(row.get("odd") or ()),
    }
    return possible(RequestRecord(**{**row, **lists}))

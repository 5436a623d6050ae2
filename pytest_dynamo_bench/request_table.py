"""The requests of a run as columns: what metrics, gates and reports are computed from.

A table is a sequence of records, so that it stands wherever those do, but a row of Arrow columns
becomes a record only when somebody asks for it. Chunks are many for each request: their lists come
in pieces, which may be left on disk, so that no more of them is in memory than a figure needs.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import TYPE_CHECKING, Any, Protocol, get_args, get_origin, get_type_hints, overload

import numpy as np

from pytest_dynamo_bench.arrays import BoolArray, FloatArray, IntArray
from pytest_dynamo_bench.records import POSSIBLE, RequestRecord, possible

if TYPE_CHECKING:
    import pyarrow as pa

FIELDS = tuple(item.name for item in dataclasses.fields(RequestRecord))
CHUNKS = ("chunk_ms", "chunk_tokens")
RAGGED = (*CHUNKS, "odd")
TEXTS = {
    item.name for item in dataclasses.fields(RequestRecord) if str(item.type).startswith("str")
}
_CHUNKS_A_PIECE = 2**21
_ROWS_AT_A_TIME = 4096
_NAMES = ("request_id", "session_id", "error")


@cache
def columns() -> dict[str, pa.DataType]:
    """The columns of Arrow and of ``requests.parquet``: the fields of a record."""
    import pyarrow as pa

    types = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    found = {}
    for name, hint in get_type_hints(RequestRecord).items():
        optional = [kind for kind in get_args(hint) if kind is not NoneType]
        kind = optional[0] if NoneType in get_args(hint) else hint
        plain = get_origin(kind) is None
        found[name] = types[kind] if plain else pa.list_(types[get_args(kind)[0]])
    return found


class RequestTable(Sequence[RequestRecord]):
    """Requests as columns, in the order of the records; (n,) each.

    Attributes:
        chunk_counts: chunks with content of each request.
    """

    chunk_counts: IntArray

    @staticmethod
    def of(records: Sequence[RequestRecord]) -> RequestTable:
        """Records as a table; a table as it is."""
        return records if isinstance(records, RequestTable) else _OfRecords(records)

    @abstractmethod
    def numbers(self, name: str) -> FloatArray:
        """A field, ``first_token_ms`` or ``last_token_ms``; NaN for None."""

    @abstractmethod
    def texts(self, name: str) -> Any:
        """A field of text as an array of objects, with None where there is none."""

    @abstractmethod
    def lists(self, name: str, rows: IntArray) -> tuple[IntArray, Any]:
        """``chunk_ms`` or ``chunk_tokens`` of some requests, one after the other.

        Returns:
            (rows,) lengths, -1 where there is no list; and the values of all.
        """

    @abstractmethod
    def ragged(self, name: str, rows: IntArray) -> list[Any]:
        """A field that is a sequence, of some requests, as their records have it."""

    @abstractmethod
    def rows(self, rows: IntArray) -> list[RequestRecord]:
        """Some requests as records."""

    def leave_chunks(self) -> None:
        """Keep no chunks in memory that are in a file."""

    def in_order(self, rows: IntArray) -> Iterator[RequestRecord]:
        """Requests as records, of which only some are in memory at a time."""
        for start in range(0, len(rows), _ROWS_AT_A_TIME):
            yield from self.rows(rows[start : start + _ROWS_AT_A_TIME])

    @property
    def failed(self) -> BoolArray:
        """Which requests did not succeed."""
        return np.array([error is not None for error in self.texts("error")], bool)

    @property
    def good(self) -> BoolArray:
        """Which requests succeeded, with at least one chunk."""
        return ~self.failed & (self.chunk_counts > 0)

    @property
    def in_due_order(self) -> IntArray:
        """(n,) rows by when they were due, and by id where that is the same."""
        due = self.numbers("scheduled_ms")
        order = np.argsort(due, kind="stable")
        if (np.diff(due[order]) == 0).any():
            ids = self.texts("request_id")
            order = np.array(sorted(range(len(self)), key=lambda row: (due[row], ids[row])))
        return order

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class _OfRecords(RequestTable):
    """Columns made from records, when they are asked for."""

    def __init__(self, records: Sequence[RequestRecord]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[RequestRecord]:
        return iter(self._records)

    def __getitem__(self, index: Any) -> Any:
        return self._records[index]

    @property
    def chunk_counts(self) -> IntArray:  # type: ignore[override]
        return _chunk_counts(self._records)

    def numbers(self, name: str) -> FloatArray:
        return np.array(list(map(attrgetter(name), self._records)), dtype=np.float64)

    def texts(self, name: str) -> Any:
        return np.array(list(map(attrgetter(name), self._records)), dtype=object)

    def lists(self, name: str, rows: IntArray) -> tuple[IntArray, Any]:
        return _joined(name, self.ragged(name, rows))

    def rows(self, rows: IntArray) -> list[RequestRecord]:
        return [self._records[row] for row in rows.tolist()]

    def ragged(self, name: str, rows: IntArray) -> list[Any]:
        return list(map(attrgetter(name), self.rows(rows)))


def _chunk_counts(records: Sequence[RequestRecord]) -> IntArray:
    return np.array(list(map(len, map(attrgetter("chunk_ms"), records))), np.int64)


def _joined(name: str, lists: Sequence[Any]) -> tuple[IntArray, Any]:
    """Lengths, -1 for None, and the values of all."""
    kind = np.float64 if name == "chunk_ms" else np.int64
    if set(map(type, lists)) == {array} and {each.typecode for each in lists} == {"d"}:
        return np.array(list(map(len, lists)), np.int64), np.frombuffer(b"".join(lists), kind)
    counts = np.array([-1 if each is None else len(each) for each in lists], np.int64)
    parts = [np.asarray(each, kind) for each in lists if each is not None]
    return counts, np.concatenate(parts) if parts else np.empty(0, kind)


class Pieces(Protocol):
    """The lists of chunks, a piece of the rows after the other."""

    @property
    def starts(self) -> IntArray:
        """(pieces + 1,) the first row of each, and the number of all rows."""

    def lists(self, name: str, piece: int) -> pa.ListArray:
        """``chunk_ms`` or ``chunk_tokens`` of a piece."""


@dataclasses.dataclass(frozen=True)
class _InMemory:
    starts: IntArray
    kept: Mapping[str, Sequence[pa.ListArray]]

    def lists(self, name: str, piece: int) -> pa.ListArray:
        return self.kept[name][piece]


class ArrowTable(RequestTable):
    """Columns of Arrow.

    Args:
        arrays: by name all fields but the chunks.
        pieces: the chunks.

    Raises:
        ValueError: a request lacks what each must have.
    """

    def __init__(self, arrays: Mapping[str, pa.Array], pieces: Pieces) -> None:
        self.arrays = arrays
        self.pieces = pieces
        self._left = pieces
        self._texts: dict[str, Any] = {}
        self.checked = False
        for name, values in arrays.items():
            if values.null_count and name != "odd" and NoneType not in _taken(name):
                raise ValueError(f"{values.null_count} requests have no {name}")
        count = int(pieces.starts[-1])
        self.chunk_counts = np.zeros(count, np.int64)
        self._ends = {name: np.full(count, np.nan) for name in ("first_token_ms", "last_token_ms")}
        for piece, start in enumerate(pieces.starts[:-1].tolist()):
            for name in CHUNKS:
                lists = pieces.lists(name, piece)
                if (name == "chunk_ms" and lists.null_count) or lists.values.null_count:
                    raise ValueError(f"requests have no {name}")
            self._take_ends(start, pieces.lists("chunk_ms", piece))

    def _take_ends(self, start: int, lists: pa.ListArray) -> None:
        offsets = lists.offsets.to_numpy()
        values = lists.values.to_numpy()
        rows = start + np.flatnonzero(np.diff(offsets))
        self.chunk_counts[start : start + len(lists)] = np.diff(offsets)
        self._ends["first_token_ms"][rows] = values[offsets[rows - start]]
        self._ends["last_token_ms"][rows] = values[offsets[rows - start + 1] - 1]

    def with_pieces(self, pieces: Pieces) -> ArrowTable:
        """The same requests, with their chunks elsewhere once :meth:`leave_chunks` is called."""
        found = copy.copy(self)
        found._left = pieces
        return found

    def leave_chunks(self) -> None:
        self.pieces = self._left

    def __len__(self) -> int:
        return len(self.chunk_counts)

    def __iter__(self) -> Iterator[RequestRecord]:
        return self.in_order(np.arange(len(self)))

    @overload
    def __getitem__(self, index: int) -> RequestRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[RequestRecord]: ...
    def __getitem__(self, index: int | slice) -> RequestRecord | list[RequestRecord]:
        rows = range(len(self))[index]
        if isinstance(rows, int):
            return self.rows(np.array([rows]))[0]
        return self.rows(np.array(rows, dtype=np.int64))

    def rows(self, rows: IntArray, *, chunks: bool = True) -> list[RequestRecord]:
        """Some requests as records, with or without their chunks."""
        values: dict[str, Any] = {
            name: values.take(rows).to_pylist() for name, values in self.arrays.items()
        }
        for name in RAGGED:
            there = chunks or name == "odd"
            values[name] = self.ragged(name, rows) if there else [()] * len(rows)
        return [RequestRecord(*row) for row in zip(*(values[n] for n in FIELDS), strict=True)]

    def ragged(self, name: str, rows: IntArray) -> list[Any]:
        if name == "odd":
            return [tuple(odd or ()) for odd in self.arrays["odd"].take(rows).to_pylist()]
        counts, values = self.lists(name, rows)
        parts = np.split(values, counts.clip(0).cumsum())[:-1]
        if name == "chunk_ms":
            return [array("d", part.tobytes()) for part in parts]
        return [
            None if count < 0 else tuple(part.tolist())
            for count, part in zip(counts.tolist(), parts, strict=True)
        ]

    def numbers(self, name: str) -> FloatArray:
        if name in self._ends:
            return self._ends[name]
        return np.asarray(self.arrays[name].to_numpy(zero_copy_only=False), np.float64)

    def texts(self, name: str) -> Any:
        if name not in self._texts:
            # Names of workers come again and again: one object for each.
            found = self.arrays[name].dictionary_encode()
            known = np.append(found.dictionary.to_numpy(zero_copy_only=False), [None])
            texts = known[found.indices.fill_null(len(known) - 1).to_numpy()]
            texts.flags.writeable = False
            self._texts[name] = texts
        return self._texts[name]

    @property
    def failed(self) -> BoolArray:
        return np.asarray(self.arrays["error"].is_valid().to_numpy(zero_copy_only=False))

    @property
    def in_due_order(self) -> IntArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        keys = {name: self.arrays[name] for name in ("scheduled_ms", "request_id")}
        order = pc.sort_indices(pa.table(keys), [(name, "ascending") for name in keys])
        return np.asarray(order.to_numpy(), np.int64)

    def lists(self, name: str, rows: IntArray) -> tuple[IntArray, Any]:
        import pyarrow as pa

        if not len(rows):
            return _joined(name, [])
        starts = self.pieces.starts
        first, last = np.searchsorted(starts, [rows.min(), rows.max()], side="right") - 1
        parts = [self.pieces.lists(name, piece) for piece in range(first, last + 1)]
        lists = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
        rows = rows - starts[first]
        there = lists.is_valid().to_numpy(zero_copy_only=False)[rows]
        offsets = lists.offsets.to_numpy()
        counts = np.where(there, offsets[rows + 1] - offsets[rows], 0).astype(np.int64)
        # For each value how much further on it is in the lists than in what is returned.
        further = (offsets[rows] - (counts.cumsum() - counts)).repeat(counts)
        values = lists.values.to_numpy()[np.arange(len(further)) + further]
        return np.where(there, counts, -1), values


def arrow_table(records: Sequence[RequestRecord], *, strict: bool = True) -> ArrowTable:
    """Records in columns of Arrow, in memory.

    Args:
        strict: refuse what Arrow would turn into the type that it takes, such as True into 1.

    Raises:
        ValueError, TypeError, OverflowError: something in them is of another type.
    """
    import pyarrow as pa

    names = [name for name in columns() if name not in CHUNKS]
    parts: dict[str, list[pa.Array]] = {name: [pa.nulls(0, columns()[name])] for name in names}
    # A few records at a time, so that what is read of each is still in the processor's cache.
    for start in range(0, len(records), _ROWS_AT_A_TIME):
        batch = records[start : start + _ROWS_AT_A_TIME]
        for name in names:
            values = list(map(attrgetter(name), batch))
            kinds = set(map(type, values))
            if strict and name not in RAGGED and not kinds <= _taken(name):
                raise TypeError(f"{name} is of another type")
            parts[name].append(_column(values, kinds, columns()[name]))
    arrays = {name: pa.concat_arrays(found) for name, found in parts.items()}
    counts = _chunk_counts(records)
    step = max(1, len(records) * _CHUNKS_A_PIECE // max(int(counts.sum()), 1))
    starts = np.append(np.arange(0, len(records), step), len(records))
    kept = {
        name: [
            _list_array([getattr(record, name) for record in records[start : start + step]], name)
            for start in starts[:-1].tolist()
        ]
        for name in CHUNKS
    }
    return ArrowTable(arrays, _InMemory(starts, kept))


def _column(values: list[Any], kinds: set[type], kind: pa.DataType) -> pa.Array:
    import pyarrow as pa

    if kinds == {NoneType}:
        return pa.nulls(len(values), kind)
    if int in kinds and kind == pa.float64():
        # Arrow refuses those that are no doubles.
        values = [float(value) if type(value) is int else value for value in values]
    return pa.array(values, kind)


@cache
def _taken(name: str) -> set[type]:
    """The types that Arrow is given for a field; others it would turn into one that it takes."""
    hint = get_type_hints(RequestRecord)[name]
    found = {*get_args(hint), *([] if get_args(hint) else [hint])}
    return {*found, int} if float in found else found


def _list_array(lists: Sequence[Any], name: str) -> pa.ListArray:
    import pyarrow as pa

    counts, values = _joined(name, lists)
    offsets = np.append(0, counts.clip(0).cumsum()).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(counts < 0))


# -- nothing in them that cannot be ---------------------------------------------------------


def possible_table(records: Sequence[RequestRecord]) -> ArrowTable:
    """The requests as :func:`~pytest_dynamo_bench.records.possible` makes each.

    Columns tell which records need a look, and those few are looked at one by one.

    Raises:
        ValueError, TypeError, OverflowError: what must be in a record is of another type.
    """
    if isinstance(records, ArrowTable):
        table = records
    else:
        try:
            table = arrow_table(records)
        except (ValueError, TypeError, OverflowError):
            records = list(map(possible, records))
            table = arrow_table(records, strict=False)
    if not table.checked:
        rows = np.flatnonzero(_doubtful(table))
        if len(rows):
            table = _repaired(table, rows, [possible(records[row]) for row in rows.tolist()])
        table.checked = True
    return table


def _repaired(table: ArrowTable, rows: IntArray, fixed: Sequence[RequestRecord]) -> ArrowTable:
    """The table with records in the place of some of its rows; the chunks are left."""
    import pyarrow as pa

    places = np.arange(len(table))
    places[rows] = len(table) + np.arange(len(rows))
    arrays = dict(table.arrays)
    for name in (*POSSIBLE, *_NAMES, "odd"):
        new = pa.array([getattr(record, name) for record in fixed], type=columns()[name])
        arrays[name] = pa.concat_arrays([arrays[name], new]).take(places)
    return ArrowTable(arrays, table.pieces)


def _doubtful(table: ArrowTable) -> BoolArray:
    """(n,) which records are to be looked at: all that may have something that cannot be."""
    import pyarrow.compute as pc

    found = np.zeros(len(table), bool)

    def unless(holds: pa.Array) -> None:
        found[:] |= ~holds.fill_null(True).to_numpy(zero_copy_only=False)

    for name in (*POSSIBLE, *_NAMES):
        values = table.arrays[name]
        limits = POSSIBLE.get(name)
        if name in TEXTS:
            # Beyond ASCII Python is asked what can be printed.
            unless(pc.ascii_is_printable(values))
            if limits is not None:
                unless(pc.less_equal(pc.binary_length(values), limits.max_length))
        elif limits is not None:
            unless(pc.greater_equal(values, limits.ge))
            unless(pc.less_equal(values, limits.le))
    prompt, cached, host = (
        table.arrays[name] for name in ("prompt_tokens", "cached_tokens", "host_tokens")
    )
    unless(pc.less_equal(cached, prompt))
    unless(pc.less_equal(host, pc.coalesce(cached, prompt)))
    return found


def odd_notes(table: ArrowTable) -> tuple[str, ...]:
    """What was said of requests that cannot be, a sentence for each field."""
    import pyarrow.compute as pc

    lengths = pc.list_value_length(table.arrays["odd"]).fill_null(0).to_numpy()
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for record in table.rows(np.flatnonzero(lengths), chunks=False):
        for text in record.odd:
            name, _, value = text.partition("=")
            found[name].append((value, record.request_id))
    return tuple(
        f"{len(examples)} answer{'s' * (len(examples) > 1)} with an impossible {name}: e.g. "
        f"{examples[0][0]} (request {examples[0][1]}); the field is left empty"
        for name, examples in found.items()
    )

"""The successful requests of a run as columns: what the formulas of metrics are functions of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dynamo_bench.arrays import BoolArray, FloatArray, IntArray
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric import Metric
from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.request_table import (
    FIELDS,
    RAGGED,
    TEXTS,
    RequestTable,
)

if TYPE_CHECKING:
    import pandas as pd


_FIELDS = (*(name for name in FIELDS if name not in RAGGED), "first_token_ms", "last_token_ms")


# Little enough for the processor's cache.
_CHUNKS_AT_A_TIME = 2**17


class Columns:
    """Requests as columns, (n,) each, made when a formula first asks for them.

    A field of :class:`~pytest_dynamo_bench.records.RequestRecord`, or ``first_token_ms`` and
    ``last_token_ms``, is an attribute: an array of doubles with NaN for None, and for a text an
    array of objects.

    Args:
        records: each that counts successful, with at least one chunk.
        limits: of goodput, by metric, in milliseconds.
        rows: (n,) which of the records count, in order; by default all.
    """

    def __init__(
        self,
        records: Sequence[RequestRecord],
        limits: Mapping[str, float] | None = None,
        rows: IntArray | None = None,
    ) -> None:
        self._requests = RequestTable.of(records)
        self._rows = np.arange(len(records)) if rows is None else rows
        self.limits = limits or {}
        self._columns: dict[str, FloatArray] = {}
        self._metrics: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __getattr__(self, name: str) -> FloatArray:
        if name not in _FIELDS:
            raise AttributeError(f"a request has no column {name!r}")
        if name not in self._columns:
            column = self._made(name)
            column.flags.writeable = False
            self._columns[name] = column
        return self._columns[name]

    def _made(self, name: str) -> FloatArray:
        make = self._requests.texts if name in TEXTS else self._requests.numbers
        made: FloatArray = make(name)[self._rows]
        return made

    def parts(self) -> Iterator[Columns]:
        """A part of the requests after the other, few enough for their chunks to be in memory."""
        ends = np.cumsum(self._chunk_counts)
        total = int(ends[-1]) if len(self) else 0
        cuts = np.searchsorted(ends, np.arange(_CHUNKS_AT_A_TIME, total, _CHUNKS_AT_A_TIME))
        edges = np.unique([0, *cuts, len(self)]).tolist()
        for start, end in zip(edges, edges[1:] or [0], strict=False):
            yield _Part(self, slice(start, end))

    def of(self, name: str) -> FloatArray:
        """A metric of single requests, by its full name: (n,), NaN where a request lacks it."""
        if name not in self._metrics:
            values = self.computed(METRICS[name])
            self._metrics[name] = np.broadcast_to(np.asarray(values, np.float64), len(self))
        return self._metrics[name]

    def computed(self, metric: Metric) -> Any:
        """What the formula of a metric returns."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return metric.formula(self)

    # -- what formulas use beside operators -----------------------------------------------

    def only(self, values: Any, where: BoolArray) -> FloatArray:
        """The values where a condition holds, NaN elsewhere."""
        return np.where(where, values, np.nan)

    def known(self, values: Any) -> BoolArray:
        """Where there is a value."""
        if values.dtype == object:
            return np.array([value is not None for value in values], dtype=bool)
        found: BoolArray = ~np.isnan(values)
        return found

    def or_zero(self, values: FloatArray) -> FloatArray:
        """The values, with 0 where there is none."""
        return np.where(np.isnan(values), 0.0, values)

    def of_turn_before(self, values: Any) -> Any:
        """Of each request what the turn before it in its session has; None where there is none."""
        numbers = {name: number for number, name in enumerate(set(self.session_id))}
        session = np.array(list(map(numbers.__getitem__, self.session_id)), np.float64)
        place = session * (self.turn.max(initial=0) + 2) + self.turn
        order = np.argsort(place, kind="stable")
        before = np.searchsorted(place[order], place - 1, side="right") - 1
        there = place[order][before] == place - 1
        return np.where(there, values[order][before], None)

    # -- gaps between chunks: of a part of the requests, since they are many ----------------

    @cached_property
    def _chunk_counts(self) -> IntArray:
        return self._requests.chunk_counts[self._rows]

    @cached_property
    def gaps(self) -> tuple[FloatArray, IntArray]:
        """Times between consecutive chunks, request by request; and how many each request has."""
        chunk_ms = self._requests.lists("chunk_ms", self._rows)[1]
        return self._within(np.diff(chunk_ms)), self._chunk_counts - 1

    def _within(self, values: Any) -> Any:
        """What is between two chunks, without what is between those of two requests."""
        return np.delete(values, np.cumsum(self._chunk_counts)[:-1] - 1)

    @cached_property
    def _said_tokens(self) -> tuple[BoolArray, IntArray, Any]:
        """Of which requests the tokens of each chunk are known; and those that were said."""
        counts = self._chunk_counts
        said, values = self._requests.lists("chunk_tokens", self._rows)
        one_each = self.completion_tokens == counts
        return np.where(said < 0, one_each, said == counts), said, values

    @property
    def one_token_each(self) -> bool:
        """Whether all chunks have one token."""
        known, _, values = self._said_tokens
        return bool(known.all() and (values == 1).all())

    @property
    def gap_tokens(self) -> IntArray:
        """Tokens of the chunk after each gap; 0 where it is not known how many they are."""
        counts = self._chunk_counts
        known, said, values = self._said_tokens
        tokens: IntArray = known.astype(np.int64).repeat(counts)
        fits = said == counts
        tokens[fits.repeat(counts)] = values[fits.repeat(said.clip(0))]
        found: IntArray = self._within(tokens[1:])
        return found

    def sums(self, of_gaps: IntArray) -> IntArray:
        """(n,) the sum over the gaps of each request."""
        ends = np.append(0, self.gaps[1].cumsum())
        found: IntArray = np.diff(np.append(0, of_gaps.cumsum())[ends])
        return found

    # -- DataFrames -------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """A row for each request: its columns, and its chunks."""
        import pandas as pd

        columns: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        columns |= {name: self._requests.ragged(name, self._rows) for name in RAGGED}
        return pd.DataFrame(columns)

    def of_frame(
        self, name: str, formula: Callable[[pd.DataFrame], Any], *, pair: bool
    ) -> FloatArray | tuple[FloatArray, ...]:
        """What a function of a DataFrame says of each request: (n,), or a pair of such.

        Args:
            name: of the metric, for errors.
            formula: see :meth:`Metric.of_frame <pytest_dynamo_bench.metric.Metric.of_frame>`.
            pair: whether it is a ratio's.

        Raises:
            BenchmarkError: the function raised, or returned something else.
        """
        frame = self.frame()
        try:
            found = formula(frame)
        except Exception as error:
            raise BenchmarkError(
                f"metric {name!r}: its formula raised {type(error).__name__}: {error}"
            ) from error
        if pair != (isinstance(found, tuple) and len(found) == 2):
            wanted = "a pair, numerator and denominator" if pair else "one Series or array"
            raise BenchmarkError(
                f"metric {name!r}: its formula must return {wanted}, got {type(found).__name__}"
            )
        parts = [_aligned(name, part, frame) for part in (found if pair else (found,))]
        return (parts[0], parts[1]) if pair else parts[0]


class _Part(Columns):
    """Some of the requests, which shares the columns of all."""

    def __init__(self, whole: Columns, rows: slice) -> None:
        super().__init__(whole._requests, whole.limits, whole._rows[rows])
        self._whole, self._where = whole, rows

    def _made(self, name: str) -> FloatArray:
        made: FloatArray = getattr(self._whole, name)[self._where]
        return made


def _aligned(name: str, values: Any, frame: pd.DataFrame) -> FloatArray:
    """A number per row of the frame; NaN for rows that a Series lacks, and what is not finite."""
    odd = ""
    try:
        if hasattr(values, "reindex"):
            odd = "" if values.index.isin(frame.index).all() else "a Series with other labels"
            values = values.reindex(frame.index).to_numpy(dtype=np.float64, na_value=np.nan)
        array = np.asarray(values, dtype=np.float64)
        if array.shape not in ((), (len(frame),)):
            odd = f"an array of shape {array.shape}"
    except (TypeError, ValueError) as error:
        odd = f"what is none ({error})"
    if odd:
        raise BenchmarkError(
            f"metric {name!r}: its formula must return a number for each of the {len(frame)} "
            f"requests, as a Series with the frame's index or an array; it returned {odd}"
        )
    return np.where(np.isfinite(array), array, np.nan) + np.zeros(len(frame))

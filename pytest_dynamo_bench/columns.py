"""The successful requests of a run as columns: what the formulas of metrics are functions of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np

from pytest_dynamo_bench.arrays import BoolArray, FloatArray, IntArray
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric import Metric
from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.records import RequestRecord

if TYPE_CHECKING:
    import pandas as pd


_RAGGED = ("chunk_ms", "chunk_tokens", "odd")
_FIELDS = (
    *(item.name for item in fields(RequestRecord) if item.name not in _RAGGED),
    "first_token_ms",
    "last_token_ms",
)
_TEXT = {item.name for item in fields(RequestRecord) if str(item.type).startswith("str")}


class Columns:
    """Requests as columns, (n,) each, made when a formula first asks for them.

    A field of :class:`~pytest_dynamo_bench.records.RequestRecord`, or ``first_token_ms`` and
    ``last_token_ms``, is an attribute: an array of doubles with NaN for None, and for a text an
    array of objects.

    Args:
        records: each of them successful, with at least one chunk.
        limits: of goodput, by metric, in milliseconds.
    """

    def __init__(
        self, records: Sequence[RequestRecord], limits: Mapping[str, float] | None = None
    ) -> None:
        self.records = records
        self.limits = limits or {}
        self._columns: dict[str, FloatArray] = {}
        self._metrics: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getattr__(self, name: str) -> FloatArray:
        if name not in _FIELDS:
            raise AttributeError(f"a request has no column {name!r}")
        if name not in self._columns:
            kind = object if name in _TEXT else np.float64
            column = np.array(list(map(attrgetter(name), self.records)), dtype=kind)
            column.flags.writeable = False
            self._columns[name] = column
        return self._columns[name]

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

    # -- chunks: (chunks of all requests,) each; too many to keep ---------------------------

    @property
    def _chunk_counts(self) -> IntArray:
        return np.fromiter((len(r.chunk_ms) for r in self.records), np.int64, len(self))

    @property
    def chunk_ms(self) -> FloatArray:
        """Arrival of every chunk with content, request by request."""
        parts = [np.asarray(record.chunk_ms, np.float64) for record in self.records]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def chunk_request(self) -> IntArray:
        """The position of the request that each chunk belongs to."""
        return np.repeat(np.arange(len(self)), self._chunk_counts)

    @property
    def chunk_tokens(self) -> IntArray:
        """Tokens of each chunk; 0 where it is not known how many they are."""
        counts = self._chunk_counts
        one_each = self.completion_tokens == counts
        tokens: IntArray = one_each.astype(np.int64).repeat(counts)
        ends = counts.cumsum()
        for record, end, count in zip(self.records, ends, counts, strict=True):
            if record.chunk_tokens is not None:
                fits = len(record.chunk_tokens) == count
                tokens[end - count : end] = record.chunk_tokens if fits else 0
        return tokens

    # -- DataFrames -------------------------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """A row for each request: its columns, and its chunks."""
        import pandas as pd

        columns: dict[str, Any] = {name: getattr(self, name) for name in _FIELDS}
        columns |= {name: list(map(attrgetter(name), self.records)) for name in _RAGGED}
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

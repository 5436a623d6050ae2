"""What a metric is: one object with its name, its unit, its formula and where it is shown.

This module and :mod:`~pytest_dynamo_bench.metric_definitions` are imported in every pytest session,
so that neither imports numpy: a formula takes columns, and uses the operators of arrays only.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pytest_dynamo_bench.errors import BenchmarkError

if TYPE_CHECKING:
    import pandas as pd

    from pytest_dynamo_bench.columns import Columns

Kind = Literal["distribution", "gaps", "ratio", "rate"]
"""What a metric is, and so what its formula returns, each with NaN where a request lacks it:

* ``distribution``: over requests; one value per request.
* ``gaps``: a distribution over the gaps inside requests; the gaps, request by request, and how many
  each request has.
* ``ratio``: a ratio of sums; numerator and denominator per request.
* ``rate``: a sum over the benchmark duration; what each request adds to it.
"""
Need = Literal["limits", "gpus", "every chunk"]
"""What a metric needs beside the requests: the limits of goodput; the GPUs, by which a rate is then
divided; or the arrival of every chunk, of which a simulation knows only the first and the last."""
Table = Literal["report", "terminal", "changes", "point", "sweep"]
"""Where a metric is shown: HTML and Markdown, the terminal, the terminal's table of changes; at the
points of a sweep, and in the sweep's own table."""
Formula = Callable[["Columns"], Any]
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LAST = 1000


@dataclass(frozen=True)
class Heading:
    """A column of tables.

    Attributes:
        statistic: ``mean`` or ``p99``; empty for what is one number.
        title: of the column.
        short: the same on two lines, where there is little room.
        tables: where the column is shown.
        priority: where not all fit, columns with a lower one are shown.
    """

    statistic: str
    title: str
    short: str
    tables: tuple[Table, ...]
    priority: int = _LAST


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        name: full name, such as ``time_to_first_token``.
        unit: such as ``ms``; ``share`` for a share.
        better: whether less or more is better.
        kind: what it is; see :data:`Kind`.
        definition: in one sentence, for people.
        formula: from the columns of the successful requests to numbers, as its kind says.
        short_names: by which it is called too, wherever a metric is named.
        label: how texts call it, such as ``TTFT``; by default the words of its name.
        needs: see :data:`Need`.
        is_share: its change is a plain difference, in points.
        queued: it is about waiting in a queue, so that it drifts with the load.
        headline: shown while requests run, and drawn in reports.
        aiperf_unit: its unit in AIPerf's files; empty where those do not have it.
        headings: its columns in tables.
        own: it is a metric of a benchmark's author.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"]
    kind: Kind
    definition: str
    formula: Formula
    short_names: tuple[str, ...] = ()
    label: str = ""
    needs: frozenset[Need] = frozenset()
    is_share: bool = False
    queued: bool = False
    headline: bool = False
    aiperf_unit: str = ""
    headings: tuple[Heading, ...] = ()
    own: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self.words)

    @property
    def words(self) -> str:
        """The name in words."""
        return self.name.replace("_", " ")

    @property
    def distribution(self) -> bool:
        """Whether it has statistics, such as ``.mean``, or is one number for the whole run."""
        return self.kind in ("distribution", "gaps")

    @property
    def needs_limits(self) -> bool:
        """Whether it is only defined for a benchmark that has ``goodput=Goodput(...)``."""
        return "limits" in self.needs

    @classmethod
    def of_frame(
        cls,
        name: str,
        formula: Callable[[pd.DataFrame], Any],
        *,
        unit: str,
        better: Literal["lower", "higher"],
        definition: str,
        kind: Literal["distribution", "ratio", "rate"] = "distribution",
        title: str = "",
    ) -> Metric:
        """A metric of your own, from a function of the requests as a pandas DataFrame.

        The frame has a row for each successful request, in the order in which they were due, and
        the columns of ``requests.parquet``, with ``first_token_ms`` and ``last_token_ms``. A
        request whose number is missing or not finite does not count.

        Args:
            name: lower-case letters, digits and ``_``.
            formula: returns one number per request, as a Series or an array; for a ratio a pair of
                them, numerator and denominator, either of which may be one number for all.
            unit: ``share`` makes it a share: shown in percent, with changes in points.
            better: ``lower`` or ``higher``.
            definition: in one sentence, for reports.
            kind: a ``distribution`` over requests, a ``ratio`` of sums over requests, or a
                ``rate``: the sum per second of the benchmark.
            title: of its column in reports; by default its name in words.

        Raises:
            BenchmarkError: an argument is wrong, or pandas is not installed.
        """
        for what, value, known in (
            ("better", better, ("lower", "higher")),
            ("kind", kind, ("distribution", "ratio", "rate")),
        ):
            if value not in known:
                raise BenchmarkError(f"metric {name!r}: {what}: {value!r} is not one of {known}")
        if not _NAME.fullmatch(name):
            raise BenchmarkError(
                f"metric {name!r}: name: must be lower-case letters, digits and '_', such as "
                "slow_starts"
            )
        if importlib.util.find_spec("pandas") is None:
            raise BenchmarkError(
                f"metric {name!r}: its formula takes a pandas DataFrame, and pandas is not "
                "installed: pip install 'pytest-dynamo-bench[pandas]'"
            )
        statistics = ("mean", "p99") if kind == "distribution" else ("",)
        title = title or name.replace("_", " ")
        titles = [(statistic, f"{title} {statistic}".strip()) for statistic in statistics]
        return cls(
            name,
            unit,
            better,
            kind,
            definition,
            lambda columns: columns.of_frame(name, formula, pair=kind == "ratio"),
            is_share=unit == "share",
            headings=tuple(
                Heading(
                    statistic, text, text.replace(" ", "\n", 1), ("report", "terminal", "changes")
                )
                for statistic, text in titles
            ),
            own=True,
        )

"""The table of an attribution: which feature brings what."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from pytest_dynamo_bench.attribution import Estimate
from pytest_dynamo_bench.attribution_runs import AttributionStudy
from pytest_dynamo_bench.reports.model import ATTRIBUTION_VIEWS


def shares_table(study: AttributionStudy) -> Table:
    """A row per feature; changes in percent of the baseline's value, with 95 % intervals.

    Bold is what differs from nothing.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("feature")
    for title in ATTRIBUTION_VIEWS.values():
        table.add_column(title, justify="right")
    for share in study.attribution.features:
        table.add_row(
            share.feature, _percent(share.alone), _percent(share.on_top), _percent(share.average)
        )
    table.add_row("all together", "", "", _percent(study.attribution.total))
    return table


def _percent(estimate: Estimate) -> Text:
    text = f"{100 * estimate.value:+.1f}"
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        text += f" [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return Text(text, style="bold" if estimate.sign else "")

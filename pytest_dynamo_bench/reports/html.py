"""The report for a reader: one HTML file that needs nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment as Jinja
from jinja2 import PackageLoader
from markupsafe import Markup

from pytest_dynamo_bench.metric_definitions import METRICS
from pytest_dynamo_bench.plain_text import printable
from pytest_dynamo_bench.reports.charts import Chart, charts
from pytest_dynamo_bench.reports.model import (
    Column,
    ComparisonReport,
    ConfigurationReport,
    SessionReport,
    change_text,
)
from pytest_dynamo_bench.reports.state import (
    state_of,
    state_of_session,
    tally,
    tally_in_words,
)
from pytest_dynamo_bench.reports.stored_types import Environment
from pytest_dynamo_bench.verdicts import Effect

_LONGEST_TEXT = 4000
_LONGEST_DEPLOYED = 20_000


def render_html(session: SessionReport) -> str:
    """The page: text, tables, figures with their data, and the library that draws them."""
    names = ", ".join(report.name for report in session.comparisons)
    return render_page(
        "report.html",
        title=printable(f"{names} on {session.target}", 200),
        session=session,
        charts=charts,
        state_of=state_of,
        state_of_session=state_of_session,
        tally=tally,
        tally_in_words=tally_in_words,
        hardware=_hardware,
        objectives=_objectives,
        change_text=change_text,
        direction=_direction,
        as_deployed=_as_deployed,
        machine=_machine,
        versions=_versions,
    )


def render_page(template: str, **context: Any) -> str:
    """A page with the style, the library and the script that all pages have.

    Scripts are allowed by their hashes alone, and nothing may be loaded, so that text from
    elsewhere can neither run nor call home.
    """
    plotly, script = _file("static/plotly-basic.min.js"), _file("templates/report.js")
    hashes = " ".join(f"'sha256-{_sha256(text)}'" for text in (plotly, script))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    )
    return _environment().get_template(template).render(
        policy=policy,
        style=Markup(_file("templates/report.css")),  # noqa: S704 - our own file
        plotly=Markup(plotly),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        figure_json=_figure_json,
        **context,
    )  # fmt: skip


@cache
def _environment() -> Jinja:
    environment = Jinja(
        loader=PackageLoader("pytest_dynamo_bench.reports", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["safe_text"] = lambda value: printable(str(value), _LONGEST_TEXT)
    return environment


def _file(name: str) -> str:
    return resources.files("pytest_dynamo_bench.reports").joinpath(name).read_text("utf-8")


def _sha256(text: str) -> str:
    # A parser turns every kind of line end into a line feed before it computes the hash.
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(plain.encode("utf-8")).digest()).decode()


def _figure_json(chart: Chart) -> Markup:
    """JSON that cannot end the element that it is in."""
    text = json.dumps(
        {"data": chart.data, "layout": chart.layout | {"height": chart.height}},
        separators=(",", ":"),
        allow_nan=False,
    )
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - nothing is left that could be markup


def _hardware(report: ComparisonReport) -> str:
    hardware = report.entry.hardware
    text = f"{hardware.count} × {hardware.gpu}"
    if hardware.nodes > 1:
        text += f" on {hardware.nodes} nodes"
    if bandwidth := hardware.kv_transfer_gb_per_second:
        text += f", {bandwidth:g} GB/s for the transfer of KV caches"
    return text


def _objectives(report: ComparisonReport) -> str:
    goodput = report.goodput
    assert goodput is not None
    limits = goodput.limits.items()
    return ", ".join(f"{METRICS[name].label} ≤ {limit:g} ms" for name, limit in limits)


def _direction(effect: Effect, column: Column) -> str:
    """Whether the whole interval is on one side, and which; for the colour."""
    if not (effect.low > 0 or effect.high < 0):
        return "same"
    lower = effect.high < 0
    return "better" if lower == (column.definition.better == "lower") else "worse"


def _as_deployed(session: SessionReport, item: ConfigurationReport) -> str:
    """As JSON; paths without what only means something on the machine that it was made on."""
    assert item.details is not None
    found = {"deployed": item.details.deployed, "observed": item.details.observed}
    text = json.dumps(found, indent=2, ensure_ascii=False)
    package = Path(__file__).parents[1]
    for path, name in ((session.directory.resolve(), "<results>"), (package, f"<{package.name}>")):
        text = text.replace(str(path), name)
    return printable(text, _LONGEST_DEPLOYED)


def _machine(session: SessionReport) -> str:
    found = session.environment
    if found == Environment():
        return "not recorded"
    return (
        f"{found.processor or found.machine}, {found.cores} cores, {found.memory_gib} GiB, "
        f"{found.system}"
    )


def _versions(session: SessionReport) -> str:
    found = session.environment
    versions = [f"Python {found.python or '?'}"]
    versions += [f"{name} {version}" for name, version in found.packages.items() if version]
    return ", ".join(versions)

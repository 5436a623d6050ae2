"""Figures: what they show stays what was given, and files are whole."""

import math
import sys
from xml.etree import ElementTree

import pytest

from pytest_dynamo_bench.attribution import attribute
from pytest_dynamo_bench.errors import ReportError
from pytest_dynamo_bench.reports import figures

pytest.importorskip("matplotlib")

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = [
    '<script>alert("1")</script>',
    "a & b </svg> $x^2$ \\frac",
    "名前 🚀 Ω مرحبا",
    "control \x00\x07\n\u202e characters",
    "x" * 500,
]
KNOWN = {
    frozenset(): 9836.0, frozenset(["kv_routing"]): 10138.0, frozenset(["pd_split"]): 9295.0,
    frozenset(["kv_routing", "pd_split"]): 10356.0,
}  # fmt: skip


def texts(path):
    root = ElementTree.parse(path).getroot()
    assert not list(root.iter(f"{SVG}script"))
    return ["".join(node.itertext()) for node in root.iter(f"{SVG}text")]


def rows():
    return attribute(("kv_routing", "pd_split"), KNOWN).as_rows()


def lines(*labels):
    return [
        figures.Line(label, (0.5, 1, 2), (1.0 + index, 2.0, 1.5 - index), ("0.5", "1", "2"),
                     (True, index == 0, False))
        for index, label in enumerate(labels)
    ]  # fmt: skip


def draw_all(directory, name="plain", ending="svg"):
    """Every kind of figure of a simulation, with a name in each place that takes one."""
    drawn = [directory / f"{kind}.{ending}" for kind in ("shares", "curves", "pareto")]
    named = [row | {"feature": name} if row["feature"] != "total" else row for row in rows()]
    figures.write_attribution(drawn[0], named, title=name, subtitle=name)
    figures.write_curves(
        drawn[1], lines(name, "other"), title=name, x_label="load", subtitle=name,
        crossovers=[figures.Crossover(0.5, 1, name)],
    )  # fmt: skip
    figures.write_pareto(drawn[2], lines(name, "other"), title=name, subtitle=name)
    return drawn


def test_every_figure_says_where_simulated_data_is_simulated(tmp_path):
    for path in draw_all(tmp_path):
        assert any("Simulated" in text for text in texts(path)), path
    path = tmp_path / "traffic.svg"
    one = figures.TrafficLines("t", (10, 20), (1, 2), (0.0, 0.5), "blocks", (), (2,))
    figures.write_traffic(path, [one], title="t")
    assert not any("imulated" in text for text in texts(path)), path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path, name):
    clean = "".join(c if c.isprintable() else " " for c in name)
    for path in draw_all(tmp_path, name):
        found = texts(path)
        assert any(clean[:12].strip() in text for text in found), (path, found)
        assert max(map(len, found)) < 250


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_figures_are_small_and_the_same_every_time(tmp_path, ending):
    first = [path.read_bytes() for path in draw_all(tmp_path, ending=ending)]
    again = [path.read_bytes() for path in draw_all(tmp_path, ending=ending)]
    assert first == again
    assert all(len(content) < 200_000 for content in first)
    assert len(list(tmp_path.iterdir())) == 3


def test_nothing_is_fetched_from_elsewhere(tmp_path):
    for path in draw_all(tmp_path):
        for node in ElementTree.parse(path).iter():
            for key, value in node.attrib.items():
                if key.endswith("href"):
                    assert value.startswith("#")


def test_units_and_values_are_in_the_attribution(tmp_path):
    path = tmp_path / "shares.svg"
    figures.write_attribution(path, rows(), title="What each feature brings")
    found = texts(path)
    assert "change of goodput, % of the baseline's" in found
    assert "+3.1 %" in found and "−5.5 %" in found and "all together" in found
    figures.write_attribution(path, rows(), title="t", metric="time_to_first_token.mean")
    assert "change of mean time to first token, % of the baseline's" in texts(path)


def test_winner_changes_are_marked_with_who_takes_over(tmp_path):
    path = tmp_path / "curves.svg"
    figures.write_curves(
        path, lines("agg", "pd"), title="t", x_label="load",
        crossovers=[figures.Crossover(1, 2, "pd")],
    )  # fmt: skip
    assert "takes over" in " ".join(texts(path))


def test_gaps_in_a_line_are_gaps(tmp_path):
    gap = figures.Line("agg", (1, 2, 3), (1.0, math.nan, 2.0))
    figures.write_curves(tmp_path / "gap.svg", [gap], title="t", x_label="load")


def test_errors_say_what_is_wrong_and_leave_nothing(tmp_path, monkeypatch):
    with pytest.raises(ReportError, match=r"\.svg or \.png"):
        figures.write_attribution(tmp_path / "figure.pdf", rows(), title="t")
    with pytest.raises(ReportError, match="to show"):
        figures.write_pareto(tmp_path / "empty.svg", [], title="t")
    with pytest.raises(ReportError, match="to show"):
        figures.write_attribution(tmp_path / "empty.svg", [], title="t")
    with pytest.raises(ReportError, match="to show"):
        figures.write_curves(tmp_path / "empty.svg", [], title="t", x_label="load")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ReportError, match=r"pip install 'pytest-dynamo-bench\[figures\]'"):
        figures.write_attribution(tmp_path / "figure.svg", rows(), title="t")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.svg"
    figures.write_attribution(path, rows(), title="old")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="No space"):
        figures.write_attribution(path, rows(), title="new")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]

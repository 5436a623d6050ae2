"""The page that says how a verdict is made says what the package does."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_dynamo_bench.metrics import Sample
from pytest_dynamo_bench.verdicts import GateThresholds, estimate_effect
from pytest_dynamo_bench.verdicts.sequential import SequentialPlan

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "verdicts.md").read_text(encoding="utf-8")


def example(column: str) -> Sample:
    with (DOCS / "verdict-example.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Sample(
        "time_to_first_token.mean",
        np.array([float(row[column]) for row in rows]),
        None,
        "mean",
        tuple(row["request_id"] for row in rows),
        np.array([float(row["due_ms"]) for row in rows]),
    )


def test_the_example_by_hand_agrees_with_the_package_and_the_page(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    # The page leaves it to the interpreter to close the file.
    code = code.replace('open("verdict-example.csv")', "lines")
    names: dict[str, Any] = {
        "lines": (DOCS / "verdict-example.csv").read_text(encoding="utf-8").splitlines()
    }
    exec(code, names)
    found = estimate_effect([example("kv_ttft_ms")], [example("round_robin_ttft_ms")])
    assert found.block_length == names["length"]
    assert found.estimate == pytest.approx(names["L"])
    assert found.degrees_of_freedom == pytest.approx(names["m"] - 1)
    assert found.standard_error == pytest.approx(names["variance"] ** 0.5, rel=0.1)
    by_hand = f"{100 * names['low']:.1f} % to {100 * names['high']:.1f} %"
    by_package = f"{100 * found.low:.1f} % to {100 * found.high:.1f} %"
    assert f"| interval | {by_hand} | {by_package} |" in PAGE
    error = names["variance"] ** 0.5
    assert f"| standard error of `L` | {error:.3f} | {found.standard_error:.3f} |" in PAGE
    assert found.low < -0.2 < found.high < 0


def test_the_confidences_of_sequential_looks():
    plan = SequentialPlan(6)
    row = " | ".join(f"{100 * plan.confidence_at(look):.2f} %" for look in plan.looks)
    assert f"| confidence | {row} |" in PAGE


def test_every_threshold_is_named():
    for name in GateThresholds.__dataclass_fields__:
        assert f"`{name}`" in PAGE

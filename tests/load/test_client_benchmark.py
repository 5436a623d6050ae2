"""The comparison of load generators still runs, and its page says what was measured."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.alone

FOLDER = Path(__file__).parents[2] / "client_benchmark"


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("compare")
    for name in ("compare", "tools", "page"):
        sys.modules.pop(name, None)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
def test_this_client_is_measured_against_the_server_in_c(compare, tmp_path):
    program = compare.build(tmp_path)
    workload = compare.Workload("few", 6, concurrency=3)
    (tool,) = compare.available({"wrk": None}, tmp_path)[:1]
    found = compare.measure(tool, workload, program)
    assert found["tool"] == "this client"
    assert found["chunks"] == 6 * compare.CHUNKS
    assert 0 <= found["ttft_error_mean_ms"] < found["true_ttft_ms"]
    assert found["true_ttft_ms"] >= 50
    assert 0 < found["first_request_seconds"] < found["wall_seconds"]
    assert found["peak_bytes"] > 10e6


def entry(tool, workload, others=0.01, **more):
    return {
        "tool": tool, "workload": workload, "others_share": others, "cpu_seconds": 1.0,
        "chunks": 1064, "peak_bytes": 1e8, "first_request_seconds": 0.5,
        "requests_per_second": 100.0, "wall_seconds": 2.0,
    } | more  # fmt: skip


def test_the_page_has_medians_and_ratios_of_what_was_not_thrown_out(compare, tmp_path):
    entries = [
        *(
            entry("this client", "200 streams", ttft_error_mean_ms=ms, ttft_error_p99_ms=1.0)
            for ms in (0.1, 0.2, 0.3)
        ),
        entry("this client", "200 streams", others=0.2, ttft_error_mean_ms=9.0),
        entry("AIPerf", "200 streams", ttft_error_mean_ms=20.0, ttft_error_p99_ms=50.0),
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(json.dumps(item) + "\n" for item in entries))
    page = tmp_path / "page.md"
    marker = "<!-- everything below is written by client_benchmark/compare.py report -->\n"
    page.write_text("What stays.\n" + marker + "what goes")
    importlib.import_module("page").write_page(results, page, compare.machine())
    text = page.read_text()
    assert text.startswith("What stays.\n")
    assert "what goes" not in text
    assert "| TTFT error at 200 streams, mean, ms | 0.2 | 20 | 100 × |" in text
    assert "1 of 5 thrown out" in text
    assert (tmp_path / "images" / "page.svg").stat().st_size > 1000


def test_what_is_missing_is_what_was_not_measured_often_enough(compare, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(entry("wrk", "capacity")) + "\n")
    tools = [tool for tool in compare.available({"wrk": "wrk"}, tmp_path) if tool.name == "wrk"]
    names = [workload.name for _, workload in compare.missing(results, tools, 2)]
    assert names == ["64 streams", "64 streams", "capacity"]

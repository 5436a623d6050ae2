"""The commands that run nothing: report, compare, history, show."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from pytest_dynamo_bench.aiperf_results import read_aiperf_results
from pytest_dynamo_bench.cli.main import main
from tests.reports.making import make_session

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "qwen3_32b_kv_routing.py"


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Three sessions: the second is slower by a fifth."""
    parent = tmp_path_factory.mktemp("reports")
    for number, factor in enumerate((1.0, 1.2, 1.0)):
        directory = make_session(parent / f"day-{number}", factors={"agg": factor, "kv": 0.5})
        path = directory / "summary.json"
        summary = json.loads(path.read_text())
        summary["started_at"] = f"2026-11-0{number + 1}T00:00:00+00:00"
        path.write_text(json.dumps(summary))
    return parent


def test_a_report_is_made_again(stored, tmp_path, capsys):
    assert main(["report", str(stored / "day-0"), "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert (
        "example on local: Is it faster?" in shown and "provisional  KV routing is faster" in shown
    )
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "report.md").is_file()


def test_runs_are_exported_as_aiperf_would_have_written_them(stored, tmp_path, capsys):
    assert main(["report", str(stored / "day-0"), "--output", str(tmp_path), "--aiperf"]) == 0
    results = read_aiperf_results(tmp_path / "example" / "kv" / "aiperf")
    assert len(results.records) == 200
    assert results.summary["goodput"]["unit"] == "requests/sec"
    assert "profile_export.jsonl" in capsys.readouterr().out


def test_several_reports_keep_their_names(stored, tmp_path, capsys):
    directories = [str(stored / f"day-{n}") for n in range(2)]
    assert main(["report", *directories, "--output", str(tmp_path)]) == 0
    assert (tmp_path / "day-1" / "report.html").is_file()
    assert main(["report", directories[0], directories[0], "--output", str(tmp_path)]) == 2
    assert "same name" in capsys.readouterr().err


def test_compare_tells_what_got_worse_and_can_check_it(stored, capsys):
    arguments = ["compare", str(stored / "day-1"), str(stored / "day-0")]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "example: agg" in shown and "regression" in shown and "unchanged" in shown
    assert main([*arguments, "--check"]) == 1
    assert "got worse by more than the tolerance" in capsys.readouterr().err
    assert main([*arguments, "--check", "--tolerance", "ttft:50%"]) == 0


def test_different_targets_are_not_compared(stored, tmp_path, capsys):
    shutil.copytree(stored / "day-0", tmp_path / "other")
    path = tmp_path / "other" / "summary.json"
    path.write_text(path.read_text().replace('"target": "local"', '"target": "replay"'))
    assert main(["compare", str(stored / "day-1"), str(tmp_path / "other")]) == 2
    assert "results of different targets cannot be compared" in capsys.readouterr().err


def test_history_gives_each_session_the_verdict_of_the_gate(stored, tmp_path, capsys):
    directories = [str(stored / f"day-{n}") for n in (2, 0, 1)]
    page = tmp_path / "history.html"
    arguments = ["history", *directories, "--tolerance", "ttft.mean:5%"]
    assert main([*arguments, "--output", str(page)]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if "day-" in line]
    assert [(row[1], row[-1]) for row in rows[:3]] == [
        ("day-0", "reference"), ("day-1", "regression"), ("day-2", "unchanged"),
    ]  # fmt: skip
    assert main([*arguments, "--against", "previous"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "day-" in line]
    assert [row[-1] for row in rows[:3]] == ["reference", "regression", "improvement"]
    text = page.read_text()
    assert "example: agg on local, time_to_first_token.mean" in text
    figure = json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', text)[1])
    (tolerated,) = (line for line in figure["data"] if line.get("name") == "tolerated")
    assert tolerated["x"] == [0.6, 1.4, None, 1.6, 2.4, None]
    # 5 % above the first results, which are 100 ms.
    assert tolerated["y"][0] == tolerated["y"][1] == pytest.approx(105, abs=1)
    assert 'http-equiv="Content-Security-Policy"' in text


def test_two_results_have_a_line_of_what_is_tolerated(stored, tmp_path):
    page = tmp_path / "history.html"
    days = [str(stored / f"day-{n}") for n in (0, 2)]
    assert main(["history", *days, "--output", str(page)]) == 0
    found = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page.read_text())
    assert len(found) == 9
    for figure in map(json.loads, found):
        (tolerated,) = (line for line in figure["data"] if line.get("name") == "tolerated")
        # A line is drawn between two points.
        assert tolerated["mode"] == "lines" and tolerated["x"] == [0.6, 1.4, None]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["report", "nowhere"], "nowhere/summary.json: cannot be read"),
        (["compare", "nowhere", "nowhere"], "nowhere/summary.json: cannot be read"),
        (["history", "nowhere", "--output", "h.svg"], "the file name must end in .html"),
        (["history", "nowhere", "--tolerance", "speed:5%"], "nowhere/summary.json"),
        (["show", str(BENCHMARK), "--configuration", "agg"], "there is no configuration 'agg'"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, told, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert told in capsys.readouterr().err


def test_a_metric_that_does_not_exist_is_named(stored, capsys):
    assert main(["history", str(stored / "day-0"), "--tolerance", "speed:5%"]) == 2
    assert "'speed' is not a metric" in capsys.readouterr().err


def test_show_prints_commands_that_a_shell_reads(capsys):
    assert main(["show", str(BENCHMARK), "--configuration", "disagg-kv-router"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] not in ("", "#")]
    exports = [line for line in lines if line.startswith("export ")]
    commands = [shlex.split(line) for line in lines if not line.startswith("export ")]
    assert 'export DYN_FILE_KV="$SCRATCH/discovery"' in exports
    frontend = next(command for command in commands if "dynamo.frontend" in command)
    assert frontend[frontend.index("--router-mode") + 1] == "kv"
    modes = [c[c.index("--disaggregation-mode") + 1] for c in commands if "dynamo.mocker" in c]
    assert modes == ["prefill", "decode"]


def test_show_prints_what_serves_images(capsys):
    module = BENCHMARK.with_name("qwen3_vl_embedding_cache.py")
    assert main(["show", str(module), "--configuration", "cache-on"]) == 0
    shown = capsys.readouterr().out
    assert "dynamo.mocker" not in shown and "vision.worker" in shown
    assert "--embedding-cache-bytes" in shown and "export DYN_HTTP_BODY_LIMIT_MB=" in shown


def test_show_prints_what_a_simulation_is_given(capsys):
    arguments = ["show", str(BENCHMARK), "--configuration", "agg-kv-router", "--target", "replay"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    given = json.loads(shown[shown.index("{") :])
    assert given["router_mode"] == "kv_router" and given["num_workers"] == 8

"""The command line: output, files, cache, errors, interruptions."""

import csv
import importlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import psutil
import pytest
from rich.console import Console

import pytest_dynamo_bench
from pytest_dynamo_bench.cli import common
from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.cli.sweep import _COLUMNS, _fitting_table, winners
from pytest_dynamo_bench.reports.figures import Line
from pytest_dynamo_bench.reports.stored_types import schema
from pytest_dynamo_bench.sweep import SweepPoint, Variation
from pytest_dynamo_bench.traffic import TraceFile, write_mooncake
from tests.replay.replay_bench import make_traffic
from tests.simulations import wait_for_simulations

ROOT = Path(__file__).parents[2]
MODULE = """\
from pytest_dynamo_bench import (
    Benchmark, Configuration, Goodput, Hardware, MooncakeTrace, Worker
)

AGG = Configuration("agg-rr", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
PD = AGG.but(name="pd-kv", role="promoted", router="kv", workers=[
    Worker(3, tp=2, mode="prefill", kv_blocks=4000),
    Worker(1, tp=2, mode="decode", kv_blocks=4000),
])
benchmark = Benchmark(
    name="small", question="Does it?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 8, 1, kv_transfer_gb_per_second=25.0),
    traffic=MooncakeTrace(TRACE), configurations=[AGG, PD], claims=[],
    goodput=Goodput(2000, 25),
)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A benchmark with a tiny trace, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with Path("trace.jsonl").open("w") as file:
        write_mooncake(make_traffic(80).requests, file)
    path = Path(f"bench_{abs(hash(tmp_path))}.py")
    path.write_text(MODULE.replace("TRACE", repr("trace.jsonl")))
    yield path
    sys.modules.pop(path.stem, None)


def run(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out, captured.err


# --- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = (\n", "bad.py, line 1: '(' was never closed"),
        ("\nimport not_there\n", "bad.py, line 2: ModuleNotFoundError: No module named"),
        ("\n\n1 / 0\n", "bad.py, line 3: ZeroDivisionError: division by zero"),
        ("\nraise SystemExit(0)\n", "bad.py, line 2: the module calls sys.exit()"),
        ("x = 1\n", "bad.py: does not define a Benchmark named 'benchmark'"),
        ("benchmark = 1\n", "bad.py: does not define a Benchmark named 'benchmark' (it is a int)"),
        (
            "from pytest_dynamo_bench import Worker\n\nWorker(0)\n",
            "bad.py, line 3: Worker(mode='aggregated'): replicas: must be greater than 0, got 0",
        ),
    ],
)
def test_a_module_that_cannot_be_loaded(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("bad.py").write_text(content)
    for command in ("sweep", "attribution", "traffic"):
        code, out, err = run(capsys, command, "bad.py")
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {message}"), err
        sys.modules.pop("bad", None)


def test_wrong_arguments_name_what_would_be_right(module, capsys):
    for arguments, message in (
        (["swep"], "did you mean 'sweep'?"),
        (["sweep", "nope.py"], "nope.py: no such file"),
        (["sweep", "."], "no such file"),
        (["sweep", module, "--configuration", "pd-kx"],
         "there is no configuration 'pd-kx'; did you mean 'pd-kv'? known: agg-rr, pd-kv"),
        (["sweep", module, "--dynamo-version", "pd-kx=1.6.1"], "did you mean 'pd-kv'?"),
        (["attribution", module, "--dynamo-version", "9.9.9"], "install-dynamo 9.9.9"),
        (["show", module, "--dynamo-version", "pd-kv="], "or CONFIGURATION=1.6.1"),
        (["sweep", module, "--metric", "godput"], "did you mean 'goodput'?"),
        (["sweep", module, "--metric", "goodput.p50"], "write it without .p50"),
        (["sweep", module, "--speedup", "1,x"], "must be numbers greater than 0"),
        (["sweep", module, "--speedup", "0"], "must be numbers greater than 0"),
        (["sweep", module, "--kv-scale", "inf"], "must be numbers greater than 0"),
        (["sweep", module, "--split", "3-1"], "such as 7+1,6+2"),
        (["sweep", module, "--split", "3+0"], "such as 7+1,6+2"),
        (["sweep", module, "--split", "3+1", "--configuration", "agg-rr"],
         "none of the configurations is disaggregated"),
        (["sweep", module, "--processes", "0"], "must be a whole number, 1 or more"),
        (["sweep", module, "--output", module], "is not a directory"),
        (["attribution", module, "--output", module / "x"], "is not a directory"),
        (["attribution", module, "--baseline", "agg-r"], "did you mean 'agg-rr'?"),
        (["attribution", module, "--treatment", "agg-rr"], "do not differ in any feature"),
        (["attribution", module, "--metric", "time_to_first_token"], "add a statistic"),
        (["attribution", module, "--metric", "request_latency.max"], "cannot be resampled"),
        (["attribution", module, "--together", "kv_routing+x"], "kv_routing, pd_split"),
        (["traffic", "nope.jsonl"], "there is no file 'nope.jsonl'"),
        (["traffic", module, "--seconds", "0"], "must be numbers greater than 0"),
    ):  # fmt: skip
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), (arguments, code, out, err)
        assert message in err, (arguments, err)


def test_help_is_enough_to_begin(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0 and "sweep" in out and "attribution" in out and "traffic" in out
    assert "python -m pytest_dynamo_bench sweep benchmarks/" in out


def test_a_trace_with_a_mistake_names_its_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": [1]}\n'
    Path("t.jsonl").write_text(good + good.replace("[1]", "[]"))
    code, _, err = run(capsys, "traffic", "t.jsonl")
    assert code == 2 and "t.jsonl, line 2, field 'hash_ids'" in err


# --- traffic ---------------------------------------------------------------------------


IMAGES = """\
from pytest_dynamo_bench import *

def window(users):
    return SlidingWindowImages(
        users=users, turns=3, window=2, text_tokens=600, osl=4, image_width=12, image_height=8,
        schedule=Concurrency(2),
    )

benchmark = Benchmark(
    name="pictures", question="Which?", model="Qwen/Qwen3-VL-30B-A3B-Instruct-FP8",
    hardware=Hardware("GB200", 1), traffic=window(30),
    sizes={"standard": Size(traffic=window(2))},
    configurations=[Configuration("a", "baseline", [Worker(1)])], claims=[],
)
"""


def test_traffic_with_images_is_described_written_for_aiperf_and_drawn(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    Path("bench_pictures.py").write_text(IMAGES)
    code, out, _ = run(
        capsys, "traffic", "bench_pictures.py", "--write-aiperf-cut", "local.jsonl", "--figure",
        "t.svg",
    )  # fmt: skip
    assert code == 0
    assert "local, standard" in out and "180 / 120" in out and "12 x 8" in out and "33.3" in out
    rows = [json.loads(line) for line in Path("local.jsonl").read_text().splitlines()]
    assert [row["session_id"] for row in rows] == ["user_0", "user_1"] * 3
    assert rows[2]["images"] == ["local-images/image-0001.png", "local-images/image-0002.png"]
    assert len(list(Path("local-images").iterdir())) == 8
    assert "<svg" in Path("t.svg").read_text() and "images seen before" in Path("t.svg").read_text()
    code, out, _ = run(capsys, "traffic", "local.jsonl", "--concurrency", 2)
    assert code == 0 and "12 / 8" in out
    code, _, err = run(capsys, "traffic", "bench_pictures.py", "--write", "w.jsonl")
    assert code == 2 and "a Mooncake trace cannot have images" in err and "--write-aiperf" in err
    assert not Path("w.jsonl").exists()


def test_traffic_of_a_benchmark_whole_and_cut(module, capsys):
    code, out, _ = run(
        capsys, "traffic", module, "--seconds", 5, "--write", "w.jsonl", "--write-cut", "c.jsonl"
    )
    assert code == 0
    assert "whole" in out and "cut to 5 s" in out and "reusable blocks, %" in out
    assert "pd-kv: working set / KV cache of prefilling workers" in out
    whole, short = TraceFile("w.jsonl").load(), TraceFile("c.jsonl").load()
    assert len(whole.requests) == 80 and whole.requests[7].hash_ids == (
        make_traffic(80).requests[7].hash_ids
    )
    assert len(short.requests) < 30 and short.duration_seconds <= 5


def test_the_length_of_a_cut_counts_for_a_benchmark_with_sizes_too(module, capsys):
    text = module.read_text().replace("Mooncake", "Size, Mooncake", 1)
    sizes = "sizes={'standard': Size(seconds=8, fast_forward=2)}"
    module.write_text(text.replace("claims=[]", f"claims=[], {sizes}"))
    sent = {}
    for seconds in ([], ["--seconds", 2]):
        code, out, _ = run(capsys, "traffic", module, *seconds)
        assert code == 0 and "local, standard" in out
        row = next(line.split() for line in out.splitlines() if line.startswith("requests "))
        sent[bool(seconds)] = int(row[-1])
    assert sent[True] < sent[False]


def test_traffic_that_is_short_already_has_no_cut(module, capsys):
    code, out, _ = run(capsys, "traffic", "trace.jsonl", "--seconds", 500)
    assert code == 0 and "the traffic is not longer than 500 s" in out
    code, _, err = run(capsys, "traffic", "trace.jsonl", "--seconds", 500, "--write-cut", "c.jsonl")
    assert code == 2 and "--write-cut: no cut" in err and not Path("c.jsonl").exists()


def test_traffic_of_a_closed_loop_has_no_rates(module, capsys):
    text = module.read_text().replace(
        "MooncakeTrace('trace.jsonl')", "MooncakeTrace('trace.jsonl', Concurrency(8))"
    )
    text = text.replace("MooncakeTrace,", "MooncakeTrace, Concurrency,")
    module.write_text(text.replace('router="kv",', 'router="kv", concurrency=2, requests=40,'))
    code, out, err = run(capsys, "traffic", module)
    assert code == 0, err
    assert "concurrency 8" in out and "requests/s" not in out
    assert re.search("pd-kv: its own schedule and requests +concurrency 2, 40", out)


# --- what is read off a sweep ----------------------------------------------------------


def test_winners_say_by_how_much_and_where_nothing_is_of_use():
    found = winners(
        [Line("a", (1, 2, 3), (10.0, 8.0, 0.1)), Line("b", (1, 2, 3), (9.0, math.nan, 0.2))],
        "higher",
    )
    assert [item.label for item in found] == ["a", "a", "none"]
    assert found[0].lead == pytest.approx(0.1) and math.isnan(found[1].lead)
    (lower,) = winners([Line("a", (1,), (10.0,)), Line("b", (1,), (9.0,))], "lower")
    assert lower.label == "b" and lower.lead == pytest.approx(1 / 9)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_table_has_whole_numbers_at_any_width(width):
    metrics = {name: 123_456.7 for name, _ in _COLUMNS} | {"goodput": 1.234}
    points = [
        SweepPoint("agg-round-robin", Variation(speedup), 16, metrics, 10, 0) for speedup in (1, 2)
    ]
    console = Console(width=width, file=io.StringIO())
    console.print(_fitting_table(console, points, "goodput", points))
    text = console.file.getvalue()
    assert "1.234" in text and "…" not in text
    assert ("p99" in text) == (width > 120)


def test_numbers_are_parsed_once_each():
    assert common.numbers("1,1.0,2") == (1.0, 2.0)


# --- with the real replay --------------------------------------------------------------


def test_a_second_sweep_is_read_from_the_cache_and_identical(module, capsys):
    pytest.importorskip("dynamo.replay")
    pytest.importorskip("matplotlib")
    arguments = ["sweep", module, "--speedup", "1,20", "--split", "3+1,2+2", "--output", "out"]
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "sweep: 6 of 6" in err and "6 points in" in out and ", 0 of them from" in out
    assert "simulated by Dynamo's replay" in out and "Pareto front, from cheap to fast" in out
    names = {path.name for path in Path("out").iterdir()}
    assert names == {
        "points.json", "points.csv", "pareto.svg", "goodput-by-speedup.svg",
        "goodput-by-split.svg",
    }  # fmt: skip
    first = {name: Path("out", name).read_bytes() for name in names}
    content = json.loads(first["points.json"])
    jsonschema.validate(content, schema("points.json"))
    assert content["simulated"] is True and len(content["points"]) == 6
    with Path("out/points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["split"] for row in rows] == ["", "", "3+1", "2+2", "3+1", "2+2"]
    began = time.monotonic()
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and ", 6 of them from the cache" in out
    assert time.monotonic() - began < 3
    for name in names - {"points.json"}:
        assert Path("out", name).read_bytes() == first[name], name
    again = json.loads(Path("out/points.json").read_bytes())
    for point in (*content["points"], *again["points"]):
        del point["cached"]
    assert again == content
    assert Path(".dynamo-bench-cache/.gitignore").read_text().endswith("*\n")
    code, out, _ = run(capsys, *arguments, "--no-cache", "--speedup", "1", "--split", "3+1")
    assert code == 0 and ", 0 of them from the cache" in out


def test_an_attribution_has_intervals_and_a_second_one_is_identical(module, capsys):
    pytest.importorskip("dynamo.replay")
    pytest.importorskip("matplotlib")
    arguments = [
        "attribution", module, "--metric", "time_to_first_token.mean", "--seeds", 2,
        "--output", "out",
    ]  # fmt: skip
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "6 simulations in" in out and re.search(r"kv_routing +[+-]\d+\.\d \[", out)
    first = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert set(first) == {"attribution.json", "attribution.csv", "attribution.svg"}
    content = json.loads(first["attribution.json"])
    jsonschema.validate(content, schema("attribution.json"))
    rows = {row["feature"]: row["average"] for row in content["rows"]}
    assert rows["kv_routing"]["value"] + rows["pd_split"]["value"] == pytest.approx(
        rows["total"]["value"]
    )
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows.values())
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and ", 6 of them from the cache" in out
    assert {path.name: path.read_bytes() for path in Path("out").iterdir()} == first
    assert content["limitations"]["pd-kv"]
    # What was simulated has every metric.
    code, out, _ = run(capsys, "attribution", module, "--seeds", 2, "--metric", "kv_hit_rate")
    assert code == 0 and ", 6 of them from the cache" in out
    for file in Path(".dynamo-bench-cache").glob("*.simulation"):
        file.write_bytes(file.read_bytes()[:1000])
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and ", 0 of them from the cache" in out


def test_without_matplotlib_all_but_the_figures_is_written(module, capsys, monkeypatch):
    pytest.importorskip("dynamo.replay")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = run(capsys, "sweep", module, "--speedup", "1,2", "--output", "out")
    assert code == 0 and "pip install 'pytest-dynamo-bench[figures]'" in out
    assert {path.name for path in Path("out").iterdir()} == {"points.json", "points.csv"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "whole_group", "code"),
    [
        # A terminal's Ctrl-C goes to all processes, that of a supervisor to one.
        (signal.SIGINT, True, 130),
        (signal.SIGINT, False, 130),
        (signal.SIGTERM, False, 143),
        (signal.SIGKILL, False, -9),
    ],
)
def test_an_interrupted_sweep_leaves_nothing_behind(tmp_path, how, whole_group, code):
    pytest.importorskip("dynamo.replay")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    path = tmp_path / "bench.py"
    path.write_text(MODULE.replace("TRACE", repr("conversation")))
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_dynamo_bench", "sweep", str(path), "--processes", "2"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
        # Background jobs of a shell ignore Ctrl-C, and so would their children.
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        children = wait_for_simulations(process, 2)
        if whole_group:
            os.killpg(process.pid, how)
        else:
            process.send_signal(how)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert list(scratch.iterdir()) == []


def test_resamples_are_paired_by_request_and_vary_with_the_seed():
    from pytest_dynamo_bench.attribution_runs import resample_combinations
    from pytest_dynamo_bench.metrics import Sample

    random = np.random.default_rng(3)
    ids = tuple(f"r{index:04d}" for index in range(400))

    def sample(shift):
        return Sample("time_to_first_token.mean", random.normal(100 + shift, 10, 400), None,
                      "mean", ids, np.arange(400.0))  # fmt: skip

    nothing, one = frozenset(), frozenset(["x"])
    base = sample(0)
    draws, length, requests = resample_combinations({nothing: {0: base}, one: {0: base}}, 300)
    assert requests == 400 and length >= 20
    # Paired: the same runs differ by nothing in every resample.
    assert np.array_equal(draws[nothing], draws[one])
    draws, _, _ = resample_combinations(
        {nothing: {0: base}, one: {0: sample(5), 1: sample(9)}}, 300
    )
    difference = draws[one] - draws[nothing]
    assert np.percentile(difference, 2.5) > 0 and difference.std() > 1.5


def test_the_script_is_the_same_program_under_its_own_name(monkeypatch, capsys):
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["dynamo-bench"].partition(":")
    script = getattr(importlib.import_module(module), function)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dynamo-bench", "--help"])
    with pytest.raises(SystemExit) as ended:
        script()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: dynamo-bench [-h]")
    monkeypatch.setattr(sys, "argv", ["__main__.py", "--help"])
    with pytest.raises(SystemExit):
        script()
    assert "usage: python -m pytest_dynamo_bench [-h]" in capsys.readouterr().out


def test_the_version_is_that_of_the_package_and_of_dynamo(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    own = re.escape(pytest_dynamo_bench.__version__)
    told = capsys.readouterr().out
    assert re.fullmatch(
        rf"pytest-dynamo-bench {own}, ai-dynamo (is not installed.*|[0-9.]+)\n", told
    )

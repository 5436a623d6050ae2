"""Metrics of a benchmark's author: registered, computed, claimed, shown and stored."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from pytest_dynamo_bench import Metric, register_metric
from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.metric_definitions import METRICS, forget_metrics
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.sweep import Sweep
from tests.replay.replay_bench import AGGREGATED, make_benchmark, make_traffic
from tests.test_plugin import CONFTEST, PROJECT, junit_of, report_directory
from tests.verdicts.making import record, run

EXAMPLE = PROJECT / "examples" / "own_metric"


def of_frame(formula, name="mine", **changes):
    return Metric.of_frame(
        name, formula, **{"unit": "ms", "better": "lower", "definition": "ours", **changes}
    )


@pytest.fixture
def registered():
    """Registers a metric of the function for the length of a test."""
    names = []

    def register(formula, name="mine", **changes):
        register_metric(of_frame(formula, name, **changes))
        names.append(name)
        return Metrics(run([record(i, 100.0 * (i + 1)) for i in range(4)]))

    yield register
    forget_metrics(names)


def test_a_distribution_has_every_statistic_and_can_be_resampled(registered):
    found = registered(lambda f: f["first_token_ms"] - f["sent_ms"])
    assert found.sample("mine.p99").values.tolist() == found.sample("ttft.p99").values.tolist()
    assert found.as_dict()["mine"] == found.as_dict()["time_to_first_token"]


def test_a_ratio_is_of_sums_and_a_rate_per_second(registered):
    found = registered(lambda f: (f["input_tokens"], 10), kind="ratio", unit="tokens/x")
    assert found.mine == 100
    found = registered(lambda f: f["completion_tokens"], "tokens", kind="rate", better="higher")
    assert found.tokens == found.output_token_throughput
    ends = [found.sample(name).end_ms.tolist() for name in ("tokens", "throughput")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "formula",
    [
        lambda f: f[f["request_id"] > "00001"]["sent_ms"],
        lambda f: f["sent_ms"].where(f["request_id"] > "00001"),
        lambda f: np.where(f["request_id"] > "00001", f["sent_ms"], np.inf),
        lambda f: f["sent_ms"].where(f["request_id"] > "00001").astype("Float64"),
    ],
)
def test_requests_without_a_number_do_not_count(registered, formula):
    sample = registered(formula).sample("mine.mean")
    assert sample.request_ids == ("00002", "00003")
    assert sample.values.tolist() == [200.5, 300.5]


@pytest.mark.parametrize(
    ("formula", "kind", "message"),
    [
        (lambda f: f["no_such"], "distribution", "'mine': its formula raised KeyError: 'no_such'"),
        (lambda f: (f["sent_ms"], 1), "distribution", "one Series or array, got tuple"),
        (lambda f: f["sent_ms"], "ratio", "a pair, numerator and denominator, got Series"),
        (lambda f: np.zeros(3), "distribution", r"each of the 4 requests.*of shape \(3,\)"),
        (lambda f: f, "distribution", "what is none|of shape"),
        (lambda f: f["request_id"] + "x", "distribution", "what is none"),
        (lambda f: pd.Series([1.0], [99]), "distribution", "a Series with other labels"),
    ],
)
def test_a_formula_that_does_not_fit_is_named(registered, formula, kind, message):
    found = registered(formula, kind=kind)
    with pytest.raises(BenchmarkError, match=message):
        _ = found.mine


def test_what_cannot_be_a_metric_is_refused(monkeypatch):
    for make, message in (
        (lambda: of_frame(len, "My Metric"), "name: must be lower-case letters"),
        (lambda: of_frame(len, better="faster"), "better: 'faster' is not one of"),
        (lambda: of_frame(len, kind="gaps"), "kind: 'gaps' is not one of"),
        (lambda: register_metric(of_frame(len, "goodput")), "is taken by a metric of the plugin"),
        (lambda: register_metric(of_frame(len, "ttft")), "is taken by a metric of the plugin"),
        (lambda: register_metric(METRICS["goodput"]), r"must be made by Metric\.of_frame"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            make()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchmarkError, match=r"pip install 'pytest-dynamo-bench\[pandas\]'"):
        of_frame(len)


def test_a_sweep_has_it_too(registered):
    pytest.importorskip("dynamo.replay")
    registered(lambda requests: requests.output_tokens)
    sweep = Sweep(make_benchmark(AGGREGATED), metrics=["mine.mean"], traffic=make_traffic(5))
    (point,) = sweep.run()
    asked = [request.output_tokens for request in make_traffic(5).requests]
    assert point.metrics == {"mine.mean": sum(asked) / 5}


# --- the example, in a session and on its results ------------------------------------------


@pytest.fixture
def example(pytester):
    module = (EXAMPLE / "test_own_metric.py").read_text(encoding="utf-8")
    # The target that makes runs up stands in for local, and has too few requests for a p99.
    module = module.replace("replay=(", "local=(").replace(".p99", ".p90")
    pytester.makepyfile(test_own_metric=module)
    factors = {"agg": 30.0, "agg-kv": 10.0}
    fake = CONFTEST.format(project=str(PROJECT), settings={"factors": factors})
    own = (EXAMPLE / "conftest.py").read_text(encoding="utf-8")
    pytester.makeconftest(f"{own}\n{fake}")
    return pytester


def test_the_example_is_claimed_shown_and_stored(example, capsys):
    known = dict(METRICS)
    result, cases = junit_of(example)
    result.assert_outcomes(passed=2)
    assert dict(METRICS) == known
    directory = report_directory(example)
    summary = json.loads((directory / "summary.json").read_text("utf-8"))
    (stored,) = summary["benchmarks"]["own_metric"]["runs"]["agg"]
    assert stored["metrics"]["slow_starts"] == 1
    assert stored["metrics"]["ttft_per_1000_prompt_tokens"]["p50"] == pytest.approx(
        3000 / 0.512, rel=0.05
    )
    for report in ("report.md", "report.html"):
        text = (directory / report).read_text("utf-8")
        assert "slow starts" in text and "TTFT per 1,000 tokens p99" in text
    properties = {
        item.get("name"): item.get("value")
        for case in cases.values()
        for item in case.iter("property")
    }
    assert properties["dynamo.agg.slow_starts"] == "1.0"
    assert float(properties["dynamo.agg-kv.ttft_per_1000_prompt_tokens.p99"]) > 1000

    # Without the metric commands name what is missing; with it they work.
    capsys.readouterr()
    assert main(["report", str(directory)]) == 2
    told = capsys.readouterr().err
    assert "'slow_starts' is not a metric" in told and "--metrics FILE.py" in told
    own = ["--metrics", str(EXAMPLE / "conftest.py")]
    assert main([*own, "report", str(directory)]) == 0
    assert "slow_starts was 0.0 % with agg-kv" in " ".join(capsys.readouterr().out.split())
    same = ["compare", str(directory), str(directory), "--tolerance", "slow_starts:1%,ttft:5%"]
    assert main([*own, *same]) == 0
    assert "slow_starts" in capsys.readouterr().out
    assert dict(METRICS) == known
    assert main(["--metrics", str(PROJECT / "conftest.py"), "report", str(directory)]) == 2
    assert "registers no metric" in capsys.readouterr().err


def test_a_baseline_is_compared_in_a_metric_of_ones_own(example):
    saved = example.runpytest("--dynamo-save-baseline=stored")
    saved.assert_outcomes(passed=2)
    again = example.runpytest(
        "--dynamo-baseline=stored", "--dynamo-tolerance=slow_starts:3%", "-k", "regression"
    )
    again.assert_outcomes(passed=2, deselected=2)


def test_a_conftest_that_is_found_while_collecting_registers_too(example):
    below = example.mkdir("below")
    for name in ("conftest.py", "test_own_metric.py"):
        shutil.move(example.path / name, below / name)
    result = example.runpytest("--collect-only", "-q")
    result.stdout.fnmatch_lines(["*first-tokens-take-more-than-two-seconds*"])


def test_an_error_in_the_hook_is_a_usage_error(pytester):
    pytester.makeconftest("def pytest_dynamo_bench_metrics():\n    return ['slow_starts']\n")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*pytest_dynamo_bench_metrics: a metric: must be made by*"])

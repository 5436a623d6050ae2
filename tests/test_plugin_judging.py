"""Repeats, budgets, joint verdicts and the regression gate, through pytester."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from tests.test_plugin import (  # noqa: F401
    BENCHMARK,
    PROJECT,
    junit_of,
    project,
    report_directory,
)

KV = ("-k", "kv-routing-is")


def measured(result):
    return [line.split()[1] for line in result.stdout.lines if line.startswith("MEASURED")]


def test_repeats_are_interleaved_so_that_drift_cancels(project):  # noqa: F811
    result = project().runpytest("-s", "--dynamo-repeats=3", *KV)
    result.assert_outcomes(passed=1, deselected=2)
    assert measured(result) == ["agg", "kv", "kv", "agg", "agg", "kv"]
    result.stdout.fnmatch_lines(["3 runs of each*"])


def test_every_repeat_is_kept(project):  # noqa: F811
    pytester = project()
    pytester.runpytest("--dynamo-repeats=2", *KV)
    directory = report_directory(pytester)
    assert (directory / "example" / "kv" / "requests.parquet").is_file()
    assert (directory / "example" / "kv" / "repeat-2" / "requests.parquet").is_file()
    summary = json.loads((directory / "summary.json").read_text())
    assert len(summary["benchmarks"]["example"]["runs"]["kv"]) == 2
    assert (
        summary["benchmarks"]["example"]["verdicts"]["KV routing is faster"]["effect"]["repeats"]
        == 2
    )


def test_with_a_budget_measuring_stops_when_all_is_decided(project):  # noqa: F811
    result = project().runpytest("-s", "--dynamo-budget=10m", *KV)
    result.assert_outcomes(passed=1, deselected=2)
    # Two rounds decide little with the stringent first look; a clear effect needs few more.
    assert 4 <= len(measured(result)) <= 12
    result.stdout.fnmatch_lines(["1 claim checked after every repeat, * of at most *"])


def test_a_budget_that_is_spent_leaves_a_claim_inconclusive(project):  # noqa: F811
    pytester = project(noise=1.0)
    result = pytester.runpytest("-s", "--dynamo-budget=0.001s", "-k", "split-is")
    assert len(measured(result)) == 4
    result.stdout.fnmatch_lines(["*of at most 2*"])


def test_claims_are_judged_together_and_the_report_says_so(project):  # noqa: F811
    result = project().runpytest()
    result.stdout.fnmatch_lines(
        ["2 claims judged together; false discovery rate controlled at 5 %*"]
    )


OF_ONE_NAME = """
import dataclasses

def test_stricter(comparison):
    claim = benchmark.claims[0]
    comparison.check(dataclasses.replace(claim, lower_by=0.1))
    comparison.check(dataclasses.replace(claim, lower_by=0.9))

def test_other_metric(comparison):
    claim = dataclasses.replace(benchmark.claims[0], lower_by=0.1)
    comparison.check(dataclasses.replace(claim, metric="inter_token_latency.mean"))
"""


def test_claims_of_one_name_are_judged_and_reported_each_for_itself(project):  # noqa: F811
    pytester = project(BENCHMARK + OF_ONE_NAME)
    result, cases = junit_of(pytester, "-k", "stricter or other_metric or kv-routing-is")
    result.assert_outcomes(passed=1, failed=2, deselected=2)
    result.stdout.fnmatch_lines(
        [
            "*provisional  KV routing is faster (time_to_first_token.mean lower by at least*",
            "*provisional  KV routing is faster (time_to_first_token.mean lower by at least*",
            "*fails  KV routing is faster (time_to_first_token.mean lower by at least*",
            "*fails  KV routing is faster (inter_token_latency.mean lower by at least*",
            "4 claims judged individually at 95 % each, not corrected for multiple claims",
        ]
    )
    assert not re.search("judged together", result.stdout.str())
    found = {
        item.get("name"): item.get("value") for item in cases["test_stricter"].iter("property")
    }
    assert (found["dynamo.threshold"], found["dynamo.verdict"]) == ("-0.1", "provisional")
    assert (found["dynamo.2.threshold"], found["dynamo.2.verdict"]) == ("-0.9", "fails")
    assert (
        found["dynamo.2.kv.time_to_first_token.mean"] == found["dynamo.kv.time_to_first_token.mean"]
    )


def test_a_threshold_of_a_gate_can_be_set(project):  # noqa: F811
    pytester = project(failing=["kv"])
    pytester.runpytest(*KV).assert_outcomes(errors=1, deselected=2)
    result = pytester.runpytest("--dynamo-gate=failed_share=0.2", *KV)
    result.assert_outcomes(passed=1, deselected=2)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--dynamo-gate=faild_share=1", "*'faild_share' is not a threshold*failed_share*"),
        ("--dynamo-gate=failed_share=many", "*failed_share: must be a number, got 'many'*"),
        ("--dynamo-repeats=0", "*must be a whole number from 1 to 1000, got '0'*"),
        ("--dynamo-budget=soon", "*must be a duration such as 90s, 10m or 2h; got 'soon'*"),
        ("--dynamo-false-discovery-rate=5", "*must be between 0 and 1, such as 0.05; got '5'*"),
        ("--dynamo-tolerance=ttft:5%", "*--dynamo-tolerance needs --dynamo-baseline*"),
        ("--dynamo-baseline=nowhere", "*nowhere*summary.json: cannot be read*"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors(project, argument, message):  # noqa: F811
    result = project().runpytest(argument)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


@pytest.fixture
def stored(project):  # noqa: F811
    """A project with a stored baseline of two of its three configurations.

    It is a function that runs the project again with other settings.
    """
    pytester = project(factors={"kv": 0.5})
    pytester.runpytest("--dynamo-save-baseline=stored", *KV).assert_outcomes(passed=1, deselected=2)
    assert (pytester.path / "stored" / "summary.json").is_file()
    assert not list((pytester.path / "stored").rglob("logs"))

    def again(*arguments, **settings):
        project(**settings)
        return pytester.runpytest("--dynamo-baseline=stored", "--junitxml=junit.xml", *arguments)

    again.path = pytester.path
    return again


def test_an_unchanged_configuration_passes_the_gate(stored):
    result = stored("-k", "regression", "--dynamo-allow-missing", factors={"kv": 0.5})
    result.assert_outcomes(passed=6, skipped=3, deselected=3)


def test_a_regression_is_a_failed_test_of_its_own(stored):
    result = stored("-k", "regression", "--dynamo-tolerance=ttft:5%", factors={"kv": 0.6})
    result.assert_outcomes(passed=1, failed=1, errors=1, deselected=3)
    result.stdout.fnmatch_lines(
        [
            "regression: kv: time_to_first_token.p50 is * ms, was * ms: * higher*",
            "failed: 1 regression against the stored baseline, 1 unchanged against*",
            "*unchanged  agg",
            "regression  kv",
        ]
    )
    *_, report = sorted(stored.path.glob("reports/*/report.md"))
    assert "❌ Dynamo benchmarks on local: failed" in report.read_text()
    cases = ET.parse(stored.path / "junit.xml").getroot().iter("testcase")
    case = next(c for c in cases if c.get("name") == "regression[kv-time_to_first_token.p50]")
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    assert properties["dynamo.regression"] == "regression"
    assert float(properties["dynamo.change"]) == pytest.approx(0.2, abs=0.03)
    assert case.find("failure") is not None


def test_an_improvement_is_told_and_passes(stored):
    tolerance = "--dynamo-tolerance=ttft:5%"
    result = stored("-k", "regression and (agg- or kv-)", tolerance, factors={"kv": 0.3})
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.fnmatch_lines(["*improvement  kv"])


def test_something_else_is_not_compared_unless_asked_for(stored):
    changed = json.loads((stored.path / "stored/example/kv/run.json").read_text())
    changed["traffic"] = {"requests": 1}
    (stored.path / "stored/example/kv/run.json").write_text(json.dumps(changed))
    result = stored("-k", "regression and kv-", factors={"kv": 0.5})
    result.assert_outcomes(errors=3, deselected=9)
    result.stdout.fnmatch_lines(["kv: not comparable with the stored measurement in *: *traffic*"])
    result = stored("-k", "regression and kv-", "--dynamo-baseline-any", factors={"kv": 0.5})
    result.assert_outcomes(passed=3, deselected=9)


def test_a_session_that_fails_is_not_saved_as_a_baseline(project):  # noqa: F811
    pytester = project()
    result = pytester.runpytest("--dynamo-save-baseline=stored")
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["baseline: not saved, because not all tests passed"])
    assert not (pytester.path / "stored").exists()


def test_a_directory_that_holds_something_else_is_not_overwritten(project):  # noqa: F811
    pytester = project()
    precious = pytester.path / "precious"
    precious.mkdir()
    (precious / "file").write_text("content")
    result = pytester.runpytest("--dynamo-save-baseline=precious", *KV)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*precious exists and holds no results; it is left as it is*"])
    assert (precious / "file").read_text() == "content"


def test_results_of_another_version_are_refused(stored):
    path = stored.path / "stored" / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    result = stored(factors={"kv": 0.5})
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*written by a newer version of pytest-dynamo-bench (results of version 99, *"]
    )


def test_an_attribution_needs_the_simulation(project):  # noqa: F811
    result = project().runpytest("--dynamo-attribution")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dynamo-attribution needs --dynamo-target=replay*"])


def test_in_a_trial_a_claim_that_does_not_hold_is_skipped(project, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DYNAMO_BENCH_REQUESTS", "40")
    pytester = project()
    result = pytester.runpytest("-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["*in a trial with 40 requests fails: Split is faster!*"])
    monkeypatch.setenv("DYNAMO_BENCH_REQUESTS", "few")
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*DYNAMO_BENCH_REQUESTS: must be a whole number*'few'*"])


def test_an_attribution_that_has_too_many_arms_is_skipped_and_told(pytester):
    # A name of its own: other tests import the module of the shipped one.
    shutil.copy(PROJECT / "benchmarks" / "kimi_feature_stack.py", pytester.path / "many_arms.py")
    result = pytester.runpytest(
        "many_arms.py", "--dynamo-target=replay", "--dynamo-attribution", "-k",
        "attribution[", "-rs",
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*make 32 combinations; group some of them*--together A+B*"])


@pytest.mark.slow
def test_an_attribution_says_what_each_feature_brings(pytester):
    pytest.importorskip("dynamo.replay", reason="needs ai-dynamo")
    pytester.makefile(".jsonl", trace=trace_of_two_conversations())
    pytester.makepyfile(test_example=ATTRIBUTED)
    result = pytester.runpytest("--dynamo-target=replay", "--dynamo-attribution")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "example, attribution of goodput: split-kv against agg*",
            "kv_routing*",
            "pd_split*",
            "all together*",
        ]
    )
    stored = json.loads((report_directory(pytester) / "example" / "attribution.json").read_text())
    assert {row["feature"] for row in stored["rows"]} >= {"kv_routing", "pd_split"}
    assert len(stored["combinations"]) == 4


def trace_of_two_conversations():
    rows = [
        {"timestamp": 400 * i, "input_length": 4096, "output_length": 40,
         "hash_ids": [*range(1000 * (i % 2), 1000 * (i % 2) + 7), 10_000 + i]}
        for i in range(60)
    ]  # fmt: skip
    return "\n".join(map(json.dumps, rows))


ATTRIBUTED = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(4, tp=2, kv_blocks=4000)])
SPLIT_KV = Configuration("split-kv", "promoted", router="kv", workers=[
    Worker(2, mode="prefill", tp=2, kv_blocks=4000),
    Worker(2, mode="decode", tp=2, kv_blocks=4000, prefix_caching=False),
])
benchmark = Benchmark(
    name="example", question="?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 8, kv_transfer_gb_per_second=100),
    traffic=MooncakeTrace("trace.jsonl"), goodput=Goodput(time_to_first_token_ms=500),
    configurations=[AGG, SPLIT_KV],
    claims=[Claim("c", "goodput", "split-kv", "agg", higher_by={"local": 0})],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""


@pytest.mark.parametrize(
    ("choice", "outcome"), [("error", "errors"), ("skip", "skipped"), ("xfail", "xfailed")]
)
def test_the_outcome_of_an_invalid_run_is_the_users_choice(project, choice, outcome):  # noqa: F811
    result = project(failing=["kv"]).runpytest(f"--dynamo-invalid={choice}", "-rsx", *KV)
    result.assert_outcomes(deselected=2, **{outcome: 1})
    result.stdout.fnmatch_lines(["*the run of kv is invalid*"])
    result.stdout.no_fnmatch_line("*another exception*")

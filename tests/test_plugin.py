"""The plugin as pytest users meet it, through pytester and a target that makes runs up."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest

PROJECT = Path(__file__).parent.parent

BENCHMARK = """
from pytest_dynamo_bench import *

AGG = Configuration("agg", "baseline", [Worker(8, tp=2)])
KV = AGG.but(name="kv", role="treatment", router="kv")
SPLIT = AGG.but(name="split", role="treatment",
                workers=[Worker(6, mode="prefill", tp=2), Worker(2, mode="decode", tp=2)])
TTFT = "time_to_first_token.mean"

benchmark = Benchmark(
    name="example", question="Is it faster?", model="Qwen/Qwen3-32B",
    hardware=Hardware("H200", 16), traffic=MooncakeTrace("conversation"),
    configurations=[AGG, KV, SPLIT],
    claims=[
        Claim("KV routing is faster", TTFT, "kv", "agg", lower_by=0.2),
        Claim("Split is faster!", TTFT, "split", "agg", lower_by=0.2),
        Claim("Only elsewhere", TTFT, "kv", "agg", lower_by={"kubernetes": 0.2}),
    ],
)

def test_claim(claim, comparison):
    comparison.check(claim)
"""

CONFTEST = """
import dataclasses, sys
sys.path.insert(0, {project!r})
from pytest_dynamo_bench.targets.local import LOCAL
from tests.fake_target import FakeTarget
target = FakeTarget(**{{"factors": {{"kv": 0.5}}, **{settings!r}}})

def pytest_dynamo_bench_targets():
    return [dataclasses.replace(LOCAL, make=lambda option: target)]
"""


@pytest.fixture
def project(pytester):
    def make(benchmark=BENCHMARK, **settings):
        pytester.makepyfile(test_example=benchmark)
        pytester.makeconftest(CONFTEST.format(project=str(PROJECT), settings=settings))
        return pytester

    return make


def report_directory(pytester) -> Path:
    (directory,) = (pytester.path / "reports").iterdir()
    return directory


def junit_of(pytester, *arguments):
    result = pytester.runpytest("--junitxml=junit.xml", *arguments)
    cases = ET.parse(pytester.path / "junit.xml").getroot().iter("testcase")
    return result, {case.get("name"): case for case in cases}


def test_claims_are_items_with_readable_ids(project):
    result = project().runpytest("--collect-only", "-q")
    result.stdout.fnmatch_lines(
        [
            "test_example.py::test_claim[[]kv-routing-is-faster[]]",
            "test_example.py::test_claim[[]split-is-faster[]]",
            "test_example.py::test_claim[[]only-elsewhere[]]",
        ]
    )


def test_a_claim_that_holds_passes_one_that_fails_fails_and_others_are_skipped(project):
    result = project().runpytest()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "fails: Split is faster!",
            "*time_to_first_token.mean was * ms with split against * ms with agg*The claim, "
            "lower by at least 20 %*",
            "what differs: *split*",
            "*dynamo benchmarks*",
            "example on local: Is it faster?*",
            "kv *16 *",
            "provisional  KV routing is faster",
            "*fails  Split is faster!",
            "results: reports*",
        ]
    )


def test_configurations_are_measured_once_for_all_claims(project):
    result = project().runpytest("-s")
    assert result.stdout.str().count("MEASURED agg") == 1


def test_only_what_a_selected_claim_needs_is_measured(project):
    result = project().runpytest("-s", "-k", "kv-routing-is")
    result.assert_outcomes(passed=1, deselected=2)
    assert "MEASURED split" not in result.stdout.str()


def test_features_are_markers(project):
    pytester = project()
    result = pytester.runpytest("-m", "kv_routing and not pd_split", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*kv-routing-is-faster*", "*only-elsewhere*", "2/3 tests*"])
    result = pytester.runpytest("-m", "pd_split", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*split-is-faster*", "1/3 tests collected*"])
    result = pytester.runpytest("-m", "wideep", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["*3 deselected*"])


def test_a_deployment_that_does_not_come_up_is_an_error_of_all_its_claims(project):
    pytester = project(broken=["agg"])
    result, cases = junit_of(pytester, "-s")
    result.assert_outcomes(errors=2, skipped=1)
    result.stdout.fnmatch_lines(["agg did not come up: no such model"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert result.stdout.str().count("MEASURED agg") == 1
    assert cases["test_claim[kv-routing-is-faster]"].find("error") is not None
    assert cases["test_claim[kv-routing-is-faster]"].find("failure") is None


def test_a_run_with_failed_requests_is_an_error_and_not_a_result(project):
    pytester = project(failing=["kv"])
    result = pytester.runpytest()
    result.assert_outcomes(errors=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["the run of kv is invalid*", "- *20 failed and 0 missing of 200*", "records and logs*"]
    )
    result.stdout.no_fnmatch_line("*another exception*")
    # What was measured is kept all the same.
    assert (report_directory(pytester) / "example" / "kv" / "requests.parquet").exists()


@pytest.mark.parametrize(
    ("choice", "outcome"), [("fail", "failed"), ("skip", "skipped"), ("xfail", "xfailed")]
)
def test_the_outcome_of_an_inconclusive_claim_is_the_users_choice(project, choice, outcome):
    claim = BENCHMARK.replace("lower_by=0.2)", "lower_by=0.5)", 1)
    result = project(claim, noise=0.3).runpytest(
        f"--dynamo-inconclusive={choice}", "-k", "kv-routing-is", "-rsxf"
    )
    result.assert_outcomes(deselected=2, **{outcome: 1})
    result.stdout.fnmatch_lines(["*inconclusive*"])


def test_junit_carries_the_verdict_and_the_metrics(project):
    _, cases = junit_of(project())
    found = {
        item.get("name"): item.get("value")
        for item in cases["test_claim[kv-routing-is-faster]"].iter("property")
    }
    assert found["dynamo.verdict"] == "provisional"
    assert found["dynamo.provisional"].startswith("run-to-run variation was not measured")
    assert found["dynamo.target"] == "local"
    assert found["dynamo.metric"] == "time_to_first_token.mean"
    assert found["dynamo.statement"] == "time_to_first_token.mean lower by at least 20 %"
    assert float(found["dynamo.threshold"]) == -0.2
    assert float(found["dynamo.change_low"]) < float(found["dynamo.change"]) < -0.45
    assert float(found["dynamo.agg.time_to_first_token.mean"]) == pytest.approx(100, rel=0.05)
    assert "KV routing" in found["dynamo.confounds"]
    failure = cases["test_claim[split-is-faster]"].find("failure")
    assert "split against" in failure.get("message")


def test_results_are_written(project):
    pytester = project()
    pytester.runpytest()
    directory = report_directory(pytester)
    frame = pd.read_parquet(directory / "example" / "kv" / "requests.parquet")
    assert len(frame) == 200
    assert frame["prompt_tokens"].tolist() == [512] * 200
    assert len(frame["chunk_ms"][0]) == 3
    run = json.loads((directory / "example" / "kv" / "run.json").read_text())
    assert run["configuration"]["router"] == "kv"
    assert run["limitations"] == ["everything is made up"]
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["version"] == 1
    assert (
        summary["benchmarks"]["example"]["verdicts"]["KV routing is faster"]["outcome"]
        == "provisional"
    )
    assert set(summary["benchmarks"]["example"]["runs"]) == {"agg", "kv", "split"}
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["packages"]["pytest-dynamo-bench"]
    assert not list(directory.rglob(".*")), "a partial file was left behind"


def test_plain_assertions_read_measured_values(project):
    plain = BENCHMARK.replace(
        "    comparison.check(claim)", "    pass"
    ) + """
def test_plain(comparison):
    kv, agg = comparison["kv"], comparison["agg"]
    assert kv.time_to_first_token.p50 < 0.8 * agg.time_to_first_token.p50
    assert comparison["agg"].request_throughput > 1000
"""  # fmt: skip
    result = project(plain).runpytest("-k", "plain")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(["E*assert * > 1000", "E*<Metrics of agg on local>*"])


PLAIN = (
    BENCHMARK
    + """
def test_kv_is_fast_enough(comparison):
    first, second = comparison.runs("kv")
    assert first.time_to_first_token.p50 < 60 < second.time_to_first_token.p50
    assert comparison["kv"].time_to_first_token.p50 < 60
"""
)


def test_plain_assertions_are_about_all_repeats(project):
    result = project(PLAIN, slower=1.0).runpytest("--dynamo-repeats=2", "-k", "fast_enough")
    result.assert_outcomes(failed=1, deselected=3)
    result.stdout.fnmatch_lines(["E*assert 7* < 60"])


def ended(pytester):
    """What the summary says of each test, by the end of its id."""
    summary = json.loads((report_directory(pytester) / "summary.json").read_text())
    tests = summary["benchmarks"]["example"]["tests"]
    return {test.partition("::")[2]: (found["outcome"], found["explained"], found["message"])
            for test, found in tests.items()}  # fmt: skip


def test_a_failing_plain_assertion_is_in_every_report(project):
    pytester = project(BENCHMARK + """
def test_fast(comparison):
    assert comparison["kv"].time_to_first_token.p50 < 1, "<b>too slow</b>"

def test_slow(comparison):
    assert comparison["kv"].time_to_first_token.p50 > 1

def test_held_and_slow(comparison):
    comparison.check(benchmark.claims[0])
    assert False
""")  # fmt: skip
    result = pytester.runpytest("-k", "kv-routing or test_fast or slow")
    result.assert_outcomes(passed=2, failed=2, deselected=2)
    result.stdout.fnmatch_lines(
        [
            "failed: 1 provisional, 2 tests failed, 1 test passed",
            "failed test_example.py::test_fast: *",
        ]
    )
    found = ended(pytester)
    assert found.pop("test_fast")[:2] == ("failed", False)
    assert found.pop("test_held_and_slow")[:2] == ("failed", False)
    assert found == {
        "test_claim[kv-routing-is-faster]": ("passed", True, ""), "test_slow": ("passed", False, "")
    }  # fmt: skip
    directory = report_directory(pytester)
    text, page = ((directory / name).read_text() for name in ("report.md", "report.html"))
    assert "❌ Dynamo benchmarks on local: failed" in text
    assert "test\\_fast: AssertionError: &lt;b&gt;too slow" in text
    assert '<li class="state failed">' in page and "&lt;b&gt;too slow" in page
    result = pytester.run(sys.executable, "-m", "pytest_dynamo_bench", "report", str(directory))
    result.stdout.fnmatch_lines(["failed: 1 provisional, 2 tests failed, 1 test passed"])


def test_a_report_says_which_tests_follow_from_what_it_shows(project):
    pytester = project(failing=["split"])
    pytester.runpytest()
    found = ended(pytester)
    assert found["test_claim[kv-routing-is-faster]"] == ("passed", True, "")
    assert found["test_claim[split-is-faster]"][:2] == ("error", True)
    assert found["test_claim[only-elsewhere]"] == ("skipped", False, "not claimed on local")
    text = (report_directory(pytester) / "report.md").read_text()
    assert "example: failed: 1 provisional, 1 configuration: invalid" in text


@pytest.mark.parametrize("why", ["", "it has no magic"])
def test_a_claim_is_not_made_where_what_it_assumes_is_not_so(project, why):
    first = 'Claim("KV routing is faster", TTFT, "kv", "agg", lower_by=0.2)'
    pytester = project(BENCHMARK.replace(first, f"{first}.assuming('magic')"))
    conftest = (pytester.path / "conftest.py").read_text()
    told = f"target.why_not_assumed = lambda benchmark, claim: {why!r}"
    pytester.makeconftest(f"{conftest}\n{told}\n")
    pytester.runpytest()
    outcome, _, message = ended(pytester)["test_claim[kv-routing-is-faster]"]
    assert (outcome, message) == (
        ("skipped", f"not claimed on local: {why}") if why else ("passed", "")
    )


def test_what_was_not_run_is_not_green(project):
    stopped = """
import pytest

def test_stop(comparison):
    pytest.exit("enough")

def test_after(comparison):
    pass
"""
    pytester = project(BENCHMARK + stopped)
    pytester.runpytest("-k", "kv-routing or stop or after")
    text = (report_directory(pytester) / "report.md").read_text()
    assert "Dynamo benchmarks on local: incomplete" in text
    assert "example: incomplete: 1 provisional, 2 tests not run" in text


def test_a_typo_in_a_configuration_name_suggests_the_right_one(project):
    plain = BENCHMARK + """
def test_plain(comparison):
    comparison["kvv"]
"""  # fmt: skip
    result = project(plain).runpytest("-k", "plain")
    result.stdout.fnmatch_lines(["*no configuration 'kvv'; did you mean 'kv'?*"])


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [
        ('router="kv"', 'router="kvv"', "*Configuration 'kv': router: 'kvv' is not one of*"),
        ("lower_by=0.2)", "lower_bye=0.2)", "*unexpected keyword argument 'lower_bye'*"),
        ('MooncakeTrace("conversation")', 'MooncakeTrace("no.jsonl")', "*no file 'no.jsonl'*"),
    ],
)
def test_a_mistake_in_a_benchmark_is_a_collection_error(project, wrong, right, message):
    result = project(BENCHMARK.replace(wrong, right, 1)).runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*ERROR collecting test_example.py*", message])


def test_a_mistake_names_its_line_and_shows_no_traceback(project):
    result = project(BENCHMARK.replace('router="kv"', 'router="kvv"')).runpytest()
    result.stdout.fnmatch_lines(["test_example.py, line 4: Configuration 'kv': router*"])
    result.stdout.no_fnmatch_line("*pytest_dynamo_bench/benchmark.py*")


def test_aiperf_as_the_load_generator_is_for_the_local_target(project):
    result = project().runpytest("--dynamo-target=replay", "--dynamo-load=aiperf")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dynamo-load=aiperf is for --dynamo-target=local only*"])


def test_an_unknown_target_is_a_usage_error(project):
    result = project().runpytest("--dynamo-target=lokal")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*--dynamo-target: 'lokal' is not a target; targets: local, replay*"]
    )


@pytest.mark.parametrize("seconds", ["0", "-3", "soon", "nan"])
def test_a_length_that_makes_no_sense_is_a_usage_error(project, seconds):
    result = project().runpytest(f"--dynamo-seconds={seconds}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--dynamo-seconds: must be between 1 and 86400*{seconds}*"])


def test_a_bad_line_of_a_trace_is_a_usage_error_before_anything_is_brought_up(pytester):
    pytester.makefile(".jsonl", trace='{"timestamp": 0, "input_length": 5, "output_length": 1, '
                      '"hash_ids": [1]}\n{oops')  # fmt: skip
    pytester.makepyfile(test_example=BENCHMARK.replace('"conversation"', '"trace.jsonl"'))
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*example: trace.jsonl, line 2: is not JSON*{oops*"])
    result.stdout.no_fnmatch_line("*: starting*")


def test_dynamo_missing_is_a_usage_error_that_says_what_to_install(pytester):
    pytester.makepyfile(test_example=BENCHMARK)
    pytester.makeconftest(
        """
        from pytest_dynamo_bench.dynamo import environment
        environment._described = lambda python: environment._Described("", {})
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["*configuration '*': Dynamo is not installed here; install it with: "
         "pip install 'pytest-dynamo-bench[[]local[]]'*"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nobody=1.6.1", "*--dynamo-version: there is no configuration 'nobody' in the selected*"),
        ("9.9.9", "*configuration '*': Dynamo 9.9.9 is not installed; install it with: *"),
        ("", "*must be a Dynamo such as 1.6.1*"),
    ],
)
def test_a_dynamo_that_cannot_be_is_a_usage_error(pytester, monkeypatch, given, told):
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytester.path / "caches"))
    pytester.makepyfile(test_example=BENCHMARK)
    result = pytester.runpytest_subprocess(f"--dynamo-version={given}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([told])
    result.stdout.no_fnmatch_line("*bringing up*")


def test_what_a_target_is_given_for_a_configuration_that_is_not_there_is_a_usage_error(project):
    pytester = project()
    conftest = (pytester.path / "conftest.py").read_text()
    for names, code in (
        (["", "kv", "example/kv"], pytest.ExitCode.TESTS_FAILED),
        (["", "vk"], pytest.ExitCode.USAGE_ERROR),
        (["other/kv"], pytest.ExitCode.USAGE_ERROR),
    ):
        pytester.makeconftest(f"{conftest}\ntarget.named_configurations = {{'--own': {names}}}\n")
        result = pytester.runpytest("-k", "not elsewhere", "-p", "no:cacheprovider")
        assert result.ret == code, names
        if code == pytest.ExitCode.USAGE_ERROR:
            result.stderr.fnmatch_lines(
                [f"*--own: there is no configuration '{names[-1]}' in the selected benchmarks; "
                 "there are agg, kv, split*"]
            )  # fmt: skip
            result.stdout.no_fnmatch_line("*MEASURED*")


def test_a_port_that_is_taken_is_a_usage_error(pytester):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        pytester.makepyfile(test_example=BENCHMARK)
        result = pytester.runpytest(f"--dynamo-frontend-port={port}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*port {port} on 127.0.0.1 is in use*--dynamo-frontend-port*"])


def test_xdist_is_refused(project):
    pytest.importorskip("xdist")
    result = project().runpytest_subprocess("-n2", "-s")
    result.assert_outcomes(errors=3)
    assert "MEASURED" not in result.stdout.str() + result.stderr.str()
    result.stdout.fnmatch_lines(["benchmarks cannot run under xdist*run without -n"])


@pytest.mark.parametrize("arguments", [["-q"], ["-v"], ["--no-header"], ["-p", "no:terminal"]])
def test_it_works_with_every_verbosity(project, arguments):
    result = project().runpytest(*arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_progress_is_shown_line_by_line_when_not_at_a_terminal(project):
    result = project().runpytest("-k", "kv-routing-is")
    result.stdout.fnmatch_lines(
        ["example: agg: starting", "example: agg: measuring", "example: agg: 200 of 200*"]
    )


def test_the_help_lists_the_options_in_groups(pytester):
    result = pytester.runpytest("--help")
    result.stdout.fnmatch_lines(
        [
            "NVIDIA Dynamo benchmarks: runs:",
            "  --dynamo-target=TARGET*",
            "NVIDIA Dynamo benchmarks: verdicts:",
            "  --dynamo-gate=NAME=VALUE*",
            "NVIDIA Dynamo benchmarks: local and replay:",
            "  --dynamo-scale=*",
            "  --dynamo-replay-processes=N*",
            "NVIDIA Dynamo benchmarks: kubernetes:",
            "  --dynamo-cluster=FILE*",
            "NVIDIA Dynamo benchmarks: keys and TLS:",
            "  --dynamo-api-key-env=VARIABLE*",
            "NVIDIA Dynamo benchmarks: endpoint:",
            "  --dynamo-endpoint=NAME=URL*",
        ]
    )


def test_without_benchmarks_nothing_is_written_and_nothing_is_shown(pytester):
    pytester.makepyfile("def test_ordinary(): pass")
    result = pytester.runpytest()
    result.assert_outcomes(passed=1)
    assert not (pytester.path / "reports").exists()
    result.stdout.no_fnmatch_line("*dynamo benchmarks*")


def test_at_scale_smoke_what_is_undecided_is_skipped_and_says_so(project):
    claim = BENCHMARK.replace("lower_by=0.2)", "lower_by=0.5)", 1)
    arguments = ("--dynamo-scale=smoke", "-rs", "-k", "kv-routing-is")
    result = project(claim, noise=0.3).runpytest(*arguments)
    result.assert_outcomes(skipped=1, deselected=2)
    result.stdout.fnmatch_lines(["SKIPPED*at scale smoke inconclusive: KV routing is faster*"])
    result = project(claim, noise=0.3).runpytest(*arguments, "--dynamo-inconclusive=fail")
    result.assert_outcomes(failed=1, deselected=2)


def test_a_session_without_benchmarks_does_not_pay_for_them():
    heavy = {"numpy", "scipy", "pandas", "pyarrow", "httpx", "rich.console", "dynamo"}
    code = f"import sys, pytest_dynamo_bench.plugin; print({heavy!r} & set(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "set()"

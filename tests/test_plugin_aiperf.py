"""Claims checked on what a real AIPerf measured, through pytester."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_plugin import BENCHMARK

EXAMPLE = Path(__file__).parent / "reports" / "aiperf_example"
AGG = f"--dynamo-aiperf-results=agg={EXAMPLE / 'agg'}"
KV = f"--dynamo-aiperf-results=kv={EXAMPLE / 'kv'}"


@pytest.fixture
def project(pytester):
    pytester.makepyfile(test_example=BENCHMARK)
    return pytester


def test_a_claim_is_judged_on_what_aiperf_measured(project):
    result = project.runpytest(AGG, KV, "-rs")
    # What is claimed on kubernetes is claimed on an endpoint too.
    result.assert_outcomes(passed=2, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "example on endpoint: Is it faster?*",
            "provisional  KV routing is faster",
            "*requests were sent and timed by AIPerf, not by this plugin*",
            "*split: there are no AIPerf results for it; give --dynamo-aiperf-results split=DIR",
        ]
    )
    (directory,) = (project.path / "reports").iterdir()
    run = json.loads((directory / "example" / "kv" / "run.json").read_text())
    assert run["observed"]["aiperf_version"] == "0.13.0"
    assert run["target"] == "endpoint"


def test_the_target_can_be_named(project):
    result = project.runpytest(AGG, KV, "--dynamo-target=kubernetes")
    result.stdout.fnmatch_lines(["example on kubernetes: *"])


def test_failed_requests_make_the_run_invalid(project):
    broken = f"--dynamo-aiperf-results=kv={EXAMPLE / 'broken'}"
    result = project.runpytest(AGG, broken, "-k", "kv-routing")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*4 failed and 0 missing of 40 requests: HTTP 500*"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("agg", "*must be CONFIGURATION=DIR, such as*got 'agg'*"),
        ("agg=nowhere", "*nowhere: has no profile_export.jsonl; give the directory*"),
        (f"nobody={EXAMPLE / 'agg'}", "*there is no configuration 'nobody'; configurations: agg*"),
    ],
)
def test_what_cannot_be_used_is_said_before_anything_else(project, argument, told):
    result = project.runpytest(f"--dynamo-aiperf-results={argument}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([told])

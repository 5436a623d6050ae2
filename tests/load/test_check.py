"""The check of the load generator, and the server that it is checked against."""

from __future__ import annotations

import json

import pytest

from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.load import check
from pytest_dynamo_bench.load.check import CheckResult, Limits, Step, StepResult, check_client
from tests.verdicts.making import record

pytestmark = [pytest.mark.anyio, pytest.mark.alone]

LOOSE = Limits(ttft_error_p99_ms=50, gap_error_p99_ms=50, schedule_delay_p99_ms=500, cpu_share=2)
FEW = (
    Step(requests=3, tokens=8, streams=1),
    Step(requests=8, tokens=8, streams=4),
    Step(requests=10, tokens=4, rate=50, input_tokens=600),
)


async def test_records_agree_with_what_the_server_wrote():
    result = await check_client(steps=FEW, limits=LOOSE)
    assert [step.reasons for step in result.steps] == [(), (), ()]
    assert result.most_streams == 4
    assert result.most_rate == 50
    assert 0 < result.server_accuracy_ms < 50
    for step in result.steps:
        assert 0 <= step.ttft_error_mean_ms < 50
        assert step.chunks_per_second > 0
        assert 0 < step.cpu_share < 2


async def test_a_step_that_is_not_trusted_says_why_and_ends_its_kind():
    result = await check_client(steps=FEW, limits=Limits(cpu_share=0.0))
    assert [step.step.name for step in result.steps] == [FEW[0].name, FEW[2].name]
    # A machine that is busy with something else adds reasons of its own.
    assert all(any("cpu_share" in reason for reason in s.reasons) for s in result.steps)
    assert (result.most_streams, result.most_rate) == (0, 0)


def result_of(*trusted: bool) -> CheckResult:
    steps = tuple(
        StepResult(Step(1, 1, streams=10 * (i + 1)), 100.0, 0.1, 0.2, 0.1, 0.0, 0.0, 0.5, 0.0,
                   1.0, 0.1, () if good else ("cpu_share 0.95 above 0.9",))
        for i, good in enumerate(trusted)
    )  # fmt: skip
    return CheckResult(steps, 1, 0.03, Limits())


def test_what_comes_after_a_step_that_failed_does_not_count():
    assert result_of(True, False, True).most_streams == 10
    assert result_of(False).most_streams == 0


def test_the_command_prints_a_table_or_json(monkeypatch, capsys):
    async def made_up(processes, *, tell):
        tell(0, FEW[0])
        return result_of(True, False)

    monkeypatch.setattr("pytest_dynamo_bench.cli.check_client.check_client", made_up)
    assert main(["check-client"]) == 0
    text = capsys.readouterr().out
    assert "can be trusted up to 10 streams" in text
    assert "not trusted, 20 streams of 100 tokens/s: cpu_share 0.95 above 0.9" in text
    assert main(["check-client", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["most_streams"] == 10
    assert [step["trusted"] for step in found["steps"]] == [True, False]


def test_errors_are_the_distance_to_the_log():
    records = [record(0, sent_ms=10.0, chunk_ms=(60.0, 71.0, 80.0))]
    ttft, gaps = check.errors_against(records, [[0, 49_000_000, 59_000_000, 69_000_000]])
    assert ttft.tolist() == [pytest.approx(1.0)]
    assert gaps.tolist() == [pytest.approx(1.0), pytest.approx(1.0)]

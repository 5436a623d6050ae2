"""The calibration study in small, and its parts."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from calibration.__main__ import main
from calibration.attribution_aa import (
    attribution_scenarios,
    run_attribution_scenario,
)
from calibration.kept import KeptRuns
from calibration.noise import noise_scenarios, run_noise_scenario
from calibration.queues import ORDINARY, make_traffic, samples, simulate
from calibration.replay_aa import (
    BENCHMARK,
    replay_scenarios,
    run_replay_scenario,
    window,
)
from calibration.study import METRICS, Share, run_scenario, scenarios
from pytest_dynamo_bench.dynamo import environment
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.targets.base import PlannedRun, Unwatched
from pytest_dynamo_bench.traffic import MooncakeTrace
from pytest_dynamo_bench.verdicts.blocks import automatic_block_length
from tests.fake_target import FakeTarget


def test_queues_are_correlated_and_the_same_seed_gives_the_same_queue():
    def once():
        generator = np.random.default_rng(1)
        return simulate(make_traffic(4, 2000, ORDINARY, generator), ORDINARY, generator)

    runs, again = once(), once()
    assert np.array_equal(runs.time_to_first_token_ms, again.time_to_first_token_ms)
    waits = np.log(runs.time_to_first_token_ms[0])
    assert np.corrcoef(waits[:-1], waits[1:])[0, 1] > 0.4
    assert automatic_block_length(waits)[0] > 10


def test_two_runs_of_the_same_traffic_differ_but_not_on_average():
    generator = np.random.default_rng(2)
    traffic = make_traffic(200, 500, ORDINARY, generator)
    a, b = (simulate(traffic, ORDINARY, generator).time_to_first_token_ms for _ in range(2))
    assert not np.array_equal(a, b)
    assert a.mean() / b.mean() == pytest.approx(1, abs=0.01)


def test_a_closed_loop_keeps_its_concurrency():
    model = dataclasses.replace(ORDINARY, closed_loop_sessions=8)
    generator = np.random.default_rng(3)
    runs = simulate(make_traffic(1, 400, model, generator), model, generator)
    due, end = runs.due_ms[0], runs.end_ms[0]
    in_flight = [int(np.sum((due <= t) & (end > t))) for t in due[50:350]]
    assert set(in_flight) == {8}


def test_samples_have_all_metrics():
    generator = np.random.default_rng(4)
    runs = simulate(make_traffic(1, 100, ORDINARY, generator), ORDINARY, generator)
    found = samples(runs, 0, METRICS, "")
    assert [sample.metric for sample in found] == list(METRICS)
    assert all(np.isfinite(sample.value) and sample.value > 0 for sample in found)


def test_shares_have_exact_intervals():
    share = Share(1000, 50)
    assert (share.low, share.high) == pytest.approx((0.0373, 0.0654), abs=1e-4)
    assert str(Share(20, 0)) == "0.0 % (0.0–16.8)"


def test_the_command_writes_json_and_the_page(tmp_path, monkeypatch, capsys):
    output = tmp_path / "calibration.json"
    for parts in (["power-20-200-1"], ["aa-small"]):
        monkeypatch.setattr(
            sys, "argv", ["calibration", *parts, "--scale", "0.02", "--output", str(output)]
        )
        assert main() == 0
    assert list(json.loads(output.read_text())) == ["aa-small", "power-20-200-1"]
    page = output.with_suffix(".md").read_text()
    assert "| time_to_first_token.p99 |" in page and "| 20 % on the mean | 1 |" in page
    monkeypatch.setattr(sys, "argv", ["calibration", "nonsense"])
    assert main() == 2
    assert "no part 'nonsense'" in capsys.readouterr().err


def test_a_window_of_a_traffic_begins_at_once_and_keeps_its_pace():
    whole = MooncakeTrace("conversation").load()
    part = window(whole, 5000, 50)
    assert part.requests[0].timestamp_ms == 0
    for request, original in zip(part.requests, whole.requests[5000:5050], strict=True):
        assert request.request_id == original.request_id
        start = whole.requests[5000].timestamp_ms
        assert request.timestamp_ms == pytest.approx(original.timestamp_ms - start)
    assert part.history[-1] == "requests 5,000 to 5,049"


@pytest.mark.parametrize("part", ["replay-aa", "replay-aa-neighbours"])
def test_a_configuration_is_compared_with_itself_on_the_replay(part):
    pytest.importorskip("dynamo.replay")
    scenario = dataclasses.replace(replay_scenarios()[part], comparisons=2, n=150)
    result = run_replay_scenario(scenario, resamples=100)
    assert [metric.metric for metric in result.metrics] == list(METRICS)
    assert all(metric.claimed.cases == 2 and metric.true_change == 0 for metric in result.metrics)
    assert result.gates_closed["enough requests"] == 2  # 150 are too few for a p99


def test_without_dynamo_the_replays_parts_say_what_to_install(monkeypatch, capsys):
    nothing = environment._Described("", {})
    monkeypatch.setattr(environment, "_described", lambda python: nothing)
    monkeypatch.setattr(sys, "argv", ["calibration", "replay-aa"])
    assert main() == 2
    assert "pip install 'pytest-dynamo-bench[local]'" in capsys.readouterr().err


def local(monkeypatch, tmp_path, *arguments, target=None):
    """The command's exit code for the part local, with runs that are made up."""
    made_up = target or FakeTarget()
    monkeypatch.setattr("calibration.local_aa.LocalTarget", lambda: made_up)
    monkeypatch.setattr(
        sys, "argv",
        ["calibration", "local", "--output", str(tmp_path / "found.json"),
         "--keep", str(tmp_path / "runs"), "--resamples", "100", *arguments],
    )  # fmt: skip
    return main()


def test_runs_on_this_machine_are_compared_kept_and_not_made_again(monkeypatch, tmp_path):
    target = FakeTarget()
    assert local(monkeypatch, tmp_path, "--pairs", "2", target=target) == 0
    assert len(target.measured) == 4
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["local"]["scenario"]["comparisons"] == 2
    assert found["local-all"]["scenario"]["comparisons"] == 6
    planted = {(row["planted"], row["metric"]): row for row in found["local-all"]["planted"]}
    assert planted[0.2, "time_to_first_token.mean"]["found"]["count"] == 6
    assert planted[0.2, "time_to_first_token.p50"]["covered"] is None
    page = (tmp_path / "found.md").read_text()
    assert "6 comparisons made of 4 runs, 200 requests a run" in page
    assert "| 20 % on the mean | time_to_first_token.mean | 100.0 % (54.1–100.0) |" in page

    assert local(monkeypatch, tmp_path, "--pairs", "3", target=target) == 0
    assert len(target.measured) == 6
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["local-all"]["scenario"]["comparisons"] == 15


def test_no_run_is_begun_that_would_end_too_late(monkeypatch, tmp_path, capsys):
    assert local(monkeypatch, tmp_path, "--pairs", "2", "--minutes", "0") == 0
    assert "0 of 4 runs are made; the same command goes on" in capsys.readouterr().out


def test_ctrl_c_keeps_the_runs_that_have_ended(monkeypatch, tmp_path, capsys):
    class Interrupted(FakeTarget):
        def measure(self, *arguments, **options):
            if len(self.measured) == 2:
                raise KeyboardInterrupt
            return super().measure(*arguments, **options)

    assert local(monkeypatch, tmp_path, "--pairs", "2", target=Interrupted()) == 130
    assert "finished runs are in" in capsys.readouterr().err
    assert len(list((tmp_path / "runs").iterdir())) == 2
    goes_on = FakeTarget()
    assert local(monkeypatch, tmp_path, "--pairs", "2", target=goes_on) == 0
    assert len(goes_on.measured) == 2


def test_a_kept_run_that_is_damaged_is_named(monkeypatch, tmp_path, capsys):
    assert local(monkeypatch, tmp_path, "--pairs", "1") == 0
    (tmp_path / "runs" / "local-run-001.json.gz").write_bytes(b"nothing")
    assert local(monkeypatch, tmp_path, "--pairs", "1") == 1
    assert "local-run-001.json.gz: cannot be read as a run" in capsys.readouterr().err


def test_a_kept_run_is_read_as_it_was():
    target = FakeTarget()
    with tempfile.TemporaryDirectory() as directory:
        kept = KeptRuns(Path(directory) / "runs")
        assert kept.get("one") is None
        progress = Unwatched()
        run = target.measure(
            PlannedRun(BENCHMARK, BENCHMARK.configurations[0], target.traffic(BENCHMARK), Path()),
            progress,
        )
        kept.put("one", run)
        again = kept.get("one")
    before, after = Metrics(run, BENCHMARK.goodput), Metrics(again, BENCHMARK.goodput)
    for metric in METRICS:
        assert after.value(metric) == pytest.approx(before.value(metric))


def test_an_attribution_is_covered_where_nothing_is_to_be_found():
    scenario = dataclasses.replace(
        attribution_scenarios()["attribution-nothing"],
        comparisons=20, n=200, repeats=2, metrics=("time_to_first_token.mean",),
    )  # fmt: skip
    result = run_attribution_scenario(scenario, resamples=100)
    assert [row.metric.partition(", ")[2] for row in result.metrics] == [
        "total", "faster_prefill alone", "faster_prefill on average", "less_delay alone",
        "less_delay on average",
    ]  # fmt: skip
    assert all(row.true_change == 0 and row.covered.value > 0.7 for row in result.metrics)


@pytest.mark.parametrize("part", ["noise-drift-150", "noise-bursts-400-3", "noise-sessions-1000"])
def test_noise_is_the_same_for_the_same_seed_and_all_metrics_are_claimed(part):
    scenario = dataclasses.replace(noise_scenarios()[part], comparisons=2)
    result, again = (run_noise_scenario(scenario, resamples=100, seed=3) for _ in range(2))
    assert result.metrics == again.metrics
    assert [metric.metric for metric in result.metrics] == list(scenario.metrics)
    assert all(metric.claimed.cases == 2 and metric.true_change == 0 for metric in result.metrics)


def test_a_planted_factor_is_covered_by_three_quiet_runs():
    scenario = dataclasses.replace(noise_scenarios()["noise-planted-quiet-3"], comparisons=30)
    mean, *_ = run_noise_scenario(scenario, resamples=100, seed=3).metrics
    assert mean.true_change == pytest.approx(0.1)
    assert mean.covered.count >= 25 and mean.claimed.count >= 20


@pytest.mark.slow
@pytest.mark.parametrize("part", ["aa-same", "aa-different", "aa-122", "aa-small"])
def test_few_false_claims(part):
    scenario = dataclasses.replace(
        scenarios(0.15)[part],
        metrics=tuple(m for m in METRICS if "p90" not in m and m != "output_token_throughput"),
        naive=False,
    )
    result = run_scenario(scenario, resamples=300, seed=1)
    for metric in result.metrics:
        # 5 % is expected at most; the exact interval of a worse procedure would lie above it.
        assert metric.claimed.low <= 0.05, (metric.metric, str(metric.claimed))
    together = sum(metric.claimed.count for metric in result.metrics)
    assert together / (scenario.comparisons * len(result.metrics)) < 0.06


@pytest.mark.slow
def test_planted_effects_are_covered_and_found():
    result = run_scenario(
        dataclasses.replace(
            scenarios(0.15)["delayed"], delay=0.20, metrics=("time_to_first_token.mean",)
        ),
        resamples=300,
        seed=1,
    )
    (mean,) = result.metrics
    assert mean.true_change == pytest.approx(0.20, abs=0.02)
    assert mean.covered.high >= 0.95 and mean.claimed.value > 0.9

"""How a comparison makes its runs, one after the other or side by side."""

import dataclasses
import itertools
import json
from contextlib import contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench import Claim
from pytest_dynamo_bench.comparison import Comparison, MeasuringPlan
from pytest_dynamo_bench.errors import DynamoBenchError, InvalidRunError, TrafficError
from pytest_dynamo_bench.reports.markdown import render_markdown
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.state import tally_in_words
from pytest_dynamo_bench.reports.store import ResultStore, StoredResults
from pytest_dynamo_bench.targets.base import Unwatched
from tests.fake_target import FakeTarget
from tests.reports.making import example

NAMES = ["agg", "kv", "split"]


class SideBySide(FakeTarget):
    """Makes all runs at once; repeats of the last configuration are ready first."""

    at_a_time = 2

    def __init__(self, **settings):
        super().__init__(**settings)
        self.asked, self.closed = [], False

    def measure_all(self, planned, progress):
        self.asked.append([(item.configuration.name, item.repeat) for item in planned])
        try:
            for item in sorted(planned, key=lambda i: i.configuration.name, reverse=True):
                try:
                    outcome = self.measure(item, progress)
                except DynamoBenchError as error:
                    outcome = error
                yield item, outcome
        finally:
            self.closed = True


class Display:
    def __init__(self):
        self.labels = []

    @contextmanager
    def __call__(self, benchmark, configuration):
        self.labels.append(configuration)
        yield Unwatched()


@pytest.fixture
def compare(tmp_path):
    def make(target, repeats=2):
        store = ResultStore(tmp_path / "results", target.name, ["pytest"])
        plan = MeasuringPlan(repeats=repeats)
        return Comparison(example(), target, store, Display(), plan=plan)

    return make


CLAIMS = st.builds(
    lambda name, metric, bound, value: Claim(name, metric, "kv", "agg", **{bound: value}),
    st.sampled_from(["KV routing is faster", "It is better"]),
    st.sampled_from(["time_to_first_token.mean", "request_latency.p50", "inter_token_latency.p90"]),
    st.sampled_from(["lower_by", "higher_by", "not_higher_by", "not_lower_by", "within"]),
    st.sampled_from([0.1, 0.3, 0.496, 0.5, 0.9]),
)


@pytest.fixture(scope="module")
def judging(tmp_path_factory):
    """Comparisons of one pair of runs, with a family of claims each."""
    number = itertools.count()
    measured = {}

    def make(family):
        store = ResultStore(tmp_path_factory.mktemp("r") / str(next(number)), "local", ["pytest"])
        target = FakeTarget(factors={"kv": 0.5})
        comparison = Comparison(example(), target, store, Display(), claims=family)
        if not measured:
            comparison.ensure(["agg", "kv"])
            measured.update(comparison.all_runs)
        comparison._runs = measured
        return comparison

    return make


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_claim_has_the_verdict_that_it_has_by_itself_or_with_its_family(judging, data):
    family = data.draw(st.lists(CLAIMS, max_size=4))
    asked = data.draw(st.permutations(family + data.draw(st.lists(CLAIMS, max_size=4))))
    comparison = judging(family)
    for claim in asked:
        alone = judging(family if claim in family else ())
        assert comparison.verdict(claim) == alone.verdict(claim)
    distinct = set(asked)
    assert {verdict.claim for verdict in comparison.verdicts} == distinct
    told = load_session(StoredResults(comparison.store.directory)).comparisons
    if asked:
        (report,) = told
        assert len(report.verdicts) == len(distinct)
        expected = sorted(claim.statement("local") for claim in distinct)
        assert sorted(verdict.statement for verdict in report.verdicts) == expected
        assert len({verdict.claim.name for verdict in report.verdicts}) == len(distinct)
    together, alone = len(set(family)), len(distinct - set(family))
    if together == 1:
        together, alone = 0, alone + 1
    how = comparison.how_judged
    assert (f"{together} claims judged together" in how) == (together > 1)
    assert (f"{alone} claim" in how and "judged individually at 95 %" in how) == (
        alone > 0 and len(distinct) > 1
    )


@pytest.mark.parametrize(
    ("simulated", "repeats", "outcome"),
    [(False, 1, "provisional"), (False, 2, "holds"), (True, 1, "holds")],
)
def test_what_holds_in_a_single_real_run_of_each_is_provisional(
    tmp_path, simulated, repeats, outcome
):
    class Simulating(FakeTarget):
        def measure(self, planned, progress):
            return dataclasses.replace(super().measure(planned, progress), simulated=simulated)

    claim = Claim("c", "time_to_first_token.mean", "kv", "agg", lower_by=0.2)
    store = ResultStore(tmp_path / "results", "local", ["pytest"])
    plan = MeasuringPlan(repeats=repeats)
    target = Simulating(factors={"kv": 0.5})
    comparison = Comparison(example(), target, store, Display(), claims=[claim], plan=plan)
    verdict = comparison.verdict(claim)
    assert verdict.outcome == outcome
    assert ("--dynamo-repeats=3 measures it" in verdict.sentence) == (outcome == "provisional")
    (report,) = load_session(StoredResults(store.directory)).comparisons
    assert [item.outcome for item in report.verdicts] == [outcome]
    assert tally_in_words(report) == f"passed: 1 {outcome}"
    assert f"**{outcome}**" in render_markdown(load_session(StoredResults(store.directory)))


def test_a_claim_that_is_asked_late_measures_nothing_again_with_a_budget(tmp_path):
    family = [Claim("c", "time_to_first_token.mean", "kv", "agg", lower_by=0.2)]
    target = FakeTarget(factors={"kv": 0.5})
    store = ResultStore(tmp_path / "results", target.name, ["pytest"])
    plan = MeasuringPlan(budget_seconds=5)
    comparison = Comparison(example(), target, store, Display(), claims=family, plan=plan)
    assert comparison.verdict(family[0]).outcome == "holds"
    measured = len(target.measured)
    late = Claim("c", "time_to_first_token.mean", "kv", "agg", higher_by=0.2)
    assert comparison.verdict(late).outcome == "fails"
    assert len(target.measured) == measured
    assert len(comparison.runs("kv")) == measured / 2
    assert comparison.how_judged.startswith("1 claim checked after every repeat")
    assert comparison.how_judged.endswith(
        "1 claim judged individually at 95 %, not corrected for multiple claims"
    )


def test_runs_come_one_after_the_other_in_rounds_that_turn_round(compare):
    target = FakeTarget()
    comparison = compare(target)
    comparison.ensure(NAMES)
    assert target.measured == [*NAMES, *reversed(NAMES)]
    assert comparison._show.labels == [
        "agg", "kv", "split", "split, repeat 2", "kv, repeat 2", "agg, repeat 2",
    ]  # fmt: skip


def test_a_target_that_can_is_asked_for_all_at_once(compare, tmp_path):
    target = SideBySide()
    comparison = compare(target)
    comparison.ensure(NAMES)
    (asked,) = target.asked
    assert sorted(asked) == [(name, repeat) for name in NAMES for repeat in (0, 1)]
    assert comparison._show.labels == ["3 configurations"] and target.closed
    stored = StoredResults(tmp_path / "results")
    assert stored.configurations("example") == NAMES
    for name in NAMES:
        kept = [metrics.run for metrics in comparison.runs(name)]
        first_tokens = [[record.chunk_ms[0] for record in run.records] for run in kept]
        assert len(kept) == 2 and first_tokens[0] != first_tokens[1]
        for run, tokens in zip(stored.runs("example", name), first_tokens, strict=True):
            assert [record.chunk_ms[0] for record in run.records] == pytest.approx(tokens, abs=0.01)


def test_repeats_of_one_configuration_are_told_by_its_name(compare):
    comparison = compare(SideBySide())
    assert len(comparison.runs("kv")) == 2
    assert comparison._show.labels == ["kv"]


@pytest.mark.parametrize("settings", [{"at_a_time": 1, "repeats": 2}, {"repeats": 1}])
def test_nothing_is_side_by_side_with_itself(compare, settings, monkeypatch):
    target = SideBySide()
    monkeypatch.setattr(target, "at_a_time", settings.pop("at_a_time", 2))
    comparison = compare(target, **settings)
    assert comparison["agg"] and not target.asked


def test_what_fails_has_an_error_and_the_others_their_runs(compare):
    target = SideBySide(broken=["kv"], failing=["split"])
    comparison = compare(target)
    comparison.ensure(NAMES)
    assert list(comparison.all_runs) == ["agg"] and len(comparison.runs("agg")) == 2
    with pytest.raises(DynamoBenchError, match="no such model"):
        comparison.runs("kv")
    with pytest.raises(InvalidRunError, match="the run of split is invalid"):
        comparison.runs("split")
    assert len(target.asked) == 1


@pytest.mark.parametrize("kind", [FakeTarget, SideBySide])
def test_traffic_that_cannot_be_read_is_the_error_of_every_configuration(compare, kind):
    class NoTraffic(kind):
        def traffic(self, benchmark):
            raise TrafficError("no such trace")

    comparison = compare(NoTraffic())
    comparison.ensure(NAMES)
    for name in NAMES:
        with pytest.raises(TrafficError, match="no such trace"):
            comparison.runs(name)
    assert comparison.all_runs == {}


def test_runs_under_way_are_ended_when_storing_one_is_interrupted(compare, monkeypatch):
    target = SideBySide()
    comparison = compare(target)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison.store, "save_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        comparison.ensure(NAMES)
    assert target.closed and len(target.measured) == 1


class Bursts(FakeTarget):
    """Sends ten requests at once, as a trace does that was recorded in steps."""

    def traffic(self, benchmark):
        traffic = super().traffic(benchmark)
        requests = [
            dataclasses.replace(request, timestamp_ms=3000.0 * (index // 10))
            for index, request in enumerate(traffic.requests)
        ]
        return dataclasses.replace(traffic, requests=requests)


@pytest.mark.parametrize(("target", "told"), [(Bursts(), [True]), (FakeTarget(), [])])
def test_a_report_names_the_bursts_of_any_target(compare, target, told):
    comparison = compare(target, repeats=1)
    comparison.ensure(["agg"])
    found = next(comparison.store.directory.rglob("run.json")).read_text()
    limits = [text for text in json.loads(found)["limitations"] if "10.0 at once" in text]
    assert ["every 3,000 ms" in text for text in limits] == told

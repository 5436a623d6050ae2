"""The traffic that one configuration gets."""

import pytest

from pytest_dynamo_bench import (
    Benchmark,
    Concurrency,
    Configuration,
    Hardware,
    MooncakeTrace,
    PublishedResults,
    SyntheticTraffic,
    Worker,
)
from pytest_dynamo_bench.benchmark import traffic_for
from pytest_dynamo_bench.errors import BenchmarkError, TrafficError
from pytest_dynamo_bench.targets.base import sent_traffic
from pytest_dynamo_bench.targets.endpoint.target import EndpointOptions, EndpointTarget
from pytest_dynamo_bench.targets.local.target import LocalTarget
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from pytest_dynamo_bench.traffic import TRIAL_VARIABLE, tried
from pytest_dynamo_bench.verdicts import confounds

SOURCE = SyntheticTraffic(isl=100, osl=10, requests=20, schedule=Concurrency(4))
PLAIN = Configuration("plain", "baseline", [Worker(1)])


def make(*configurations, **changes):
    return Benchmark(
        **{
            "name": "example", "question": "?", "model": "m", "hardware": Hardware("H200", 1),
            "traffic": SOURCE, "configurations": configurations, "claims": [], **changes,
        }
    )  # fmt: skip


def test_without_overrides_it_is_the_same_object():
    traffic = SOURCE.load()
    assert traffic_for(traffic, PLAIN) is traffic
    assert traffic_for(traffic, PLAIN.but(concurrency=4, requests=20)) is traffic


def test_concurrency_is_replaced_and_requests_keep_their_ids():
    traffic = traffic_for(SOURCE.load(), PLAIN.but(concurrency=9))
    assert traffic.schedule == Concurrency(9)
    assert traffic.requests == SOURCE.load().requests


def test_sessions_are_named_to_a_configuration_that_routes_by_them():
    sticky = PLAIN.but(frontend_args={"router-session-affinity-ttl-secs": 60})
    traffic = traffic_for(SOURCE.load(), sticky)
    assert traffic.session_header == "x-dynamo-session-id"
    assert traffic_for(traffic, sticky) is traffic
    assert traffic_for(traffic, PLAIN).session_header == ""


def test_shortened_traffic_has_ids_of_its_own_and_is_shortened_once():
    shorter = PLAIN.but(requests=5)
    traffic = traffic_for(SOURCE.load(), shorter)
    assert [request.request_id for request in traffic.requests][:2] == ["000000@5", "000001@5"]
    assert len(traffic.requests) == 5 and "first 5 of 20" in traffic.history[-1]
    assert traffic_for(traffic, shorter) is traffic


def test_a_trial_is_the_beginning_under_ids_of_its_own_and_says_so(monkeypatch):
    monkeypatch.setenv(TRIAL_VARIABLE, "6")
    traffic = tried(SOURCE.load())
    assert [request.request_id for request in traffic.requests][:2] == ["000000@6", "000001@6"]
    assert traffic.history[-1] == (
        "the first 6 of 20 requests, since DYNAMO_BENCH_REQUESTS=6: a trial, not a result"
    )
    assert len(traffic_for(traffic, PLAIN.but(requests=10)).requests) == 3
    monkeypatch.setenv(TRIAL_VARIABLE, "20")
    assert tried(SOURCE.load()) == SOURCE.load()


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5"])
def test_the_length_of_a_trial_is_a_number(text, monkeypatch):
    monkeypatch.setenv(TRIAL_VARIABLE, text)
    with pytest.raises(
        TrafficError, match=f"DYNAMO_BENCH_REQUESTS: must be a whole.* got '{text}'"
    ):
        tried(SOURCE.load())


@pytest.mark.parametrize(
    "target",
    [LocalTarget(), ReplayTarget(), EndpointTarget(EndpointOptions({"plain": "http://x"}))],
)
def test_every_target_is_given_the_beginning_to_send(target, monkeypatch):
    monkeypatch.setenv(TRIAL_VARIABLE, "6")
    assert len(sent_traffic(target, make(PLAIN)).requests) == 6


def test_a_fixed_schedule_has_no_concurrency():
    with pytest.raises(BenchmarkError, match="concurrency: 9 has no effect"):
        traffic_for(MooncakeTrace("conversation").load(), PLAIN.but(concurrency=9))
    with pytest.raises(BenchmarkError, match="'plain': concurrency"):
        make(PLAIN.but(concurrency=9), traffic=MooncakeTrace("conversation"))


def test_the_overrides_are_confounds():
    other = PLAIN.but(name="other", role="treatment", concurrency=9, requests=5)
    assert {item.what for item in confounds(other, PLAIN)} == {"concurrency", "requests"}


@pytest.mark.parametrize("field", ["concurrency", "requests"])
@pytest.mark.parametrize("value", [0, 1.5, True])
def test_errors_name_the_field(field, value):
    with pytest.raises(BenchmarkError, match=f"{field}: must be"):
        PLAIN.but(**{field: value})


def test_published_results_are_of_configurations_that_exist():
    published = PublishedResults("a page", "one H200", {"nowhere": {"tok/s": 1}})
    with pytest.raises(BenchmarkError, match="published: configuration: 'nowhere'"):
        make(PLAIN, published=published)
    with pytest.raises(BenchmarkError, match="values: plain: tok/s: must be a number"):
        PublishedResults("a page", "one H200", {"plain": {"tok/s": "fast"}})

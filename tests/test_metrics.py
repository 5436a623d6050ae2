"""Metrics by AIPerf's definitions, checked by hand on few records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Goodput
from pytest_dynamo_bench.metric_definitions import METRICS, parse_metric, percentile_of
from pytest_dynamo_bench.metrics import Metrics, RepeatedMetrics, evaluate, percentiles
from pytest_dynamo_bench.records import RequestRecord, Run


def record(index, *, sent=0.0, chunks=(100.0, 110.0, 120.0), completion=3, cached=None, **changes):
    fields = {
        "request_id": f"{index}",
        "session_id": f"{index}",
        "turn": 0,
        "scheduled_ms": sent,
        "sent_ms": sent,
        "chunk_ms": tuple(sent + chunk for chunk in chunks),
        "end_ms": sent + (chunks[-1] if chunks else 0) + 1,
        "input_tokens": 1000,
        "output_tokens": 3,
        "prompt_tokens": 1000,
        "completion_tokens": completion,
        "cached_tokens": cached,
        "status": 200,
    }
    return RequestRecord(**{**fields, **changes})


def metrics(records, goodput=None, gpus=4):
    return Metrics(Run("b", "c", "local", gpus, records, "2026-01-01T00:00:00+00:00"), goodput)


@given(
    st.lists(st.floats(allow_nan=True) | st.integers(0, 9).map(float), min_size=1, max_size=40),
    st.integers(0, 3000), st.lists(st.floats(0, 100), max_size=6).map(sorted),
)  # fmt: skip
def test_percentiles_are_those_of_numpy(some, more, ranks):
    values = np.append(some, np.random.default_rng(more).normal(size=more))
    before = values.copy()
    with np.errstate(invalid="ignore", over="ignore"):
        expected = np.percentile(values, ranks) if ranks else []
    np.testing.assert_array_equal(percentiles(values, ranks), expected)
    np.testing.assert_array_equal(values, before)


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=40), st.integers(0, 2000))
def test_statistics_of_a_distribution_are_those_that_verdicts_resample(some, more):
    waits = [*some, *np.random.default_rng(more).uniform(1, 100, more).tolist()]
    found = metrics([record(i, chunks=(ms, ms + 10.0)) for i, ms in enumerate(waits)])
    for statistic in ("mean", "min", "max", "p50", "p90", "p95", "p99"):
        for name in ("time_to_first_token", "inter_chunk_latency"):
            metric = f"{name}.{statistic}"
            assert found.value(metric) == found.sample(metric).value
            assert found.value(metric) == getattr(found.distribution(name), statistic)


def test_latencies_of_one_request():
    found = metrics([record(1, sent=50.0, chunks=(100.0, 130.0, 140.0))])
    assert found.time_to_first_token.mean == 100
    assert found.request_latency.mean == 140
    assert found.inter_token_latency.mean == (140 - 100) / 2
    assert found.output_token_throughput_per_user.mean == 1000 / 20


def test_over_runs_numbers_are_means_and_extremes_are_those_of_all_requests():
    runs = [
        metrics([record(i, chunks=(float(ms), ms + 10.0)) for i, ms in enumerate(firsts)])
        for firsts in ([100, 200, 300], [400, 500, 900])
    ]
    both = RepeatedMetrics(runs)
    ttft = both.time_to_first_token
    assert (ttft.mean, ttft.p50) == (400, 350)
    assert (ttft.min, ttft.max, ttft.count) == (100, 900, 6)
    for statistic in ("mean", "p50", "p99", "min", "max"):
        metric = f"time_to_first_token.{statistic}"
        assert both.value(metric) == getattr(ttft, statistic)
    throughput = [run.request_throughput for run in runs]
    assert both.request_throughput == pytest.approx(sum(throughput) / 2)
    assert both.duration_seconds == pytest.approx(sum(r.duration_seconds for r in runs) / 2)
    assert repr(both) == "<Metrics of c on local, over 2 runs>"
    with pytest.raises(ValueError, match=r"c has 2 runs: take one of comparison\.runs"):
        both.run  # noqa: B018
    with pytest.raises(AttributeError, match="'tttf' is not a metric; did you mean 'ttft'"):
        both.tttf  # noqa: B018


def test_one_run_over_runs_is_that_run():
    (run,) = runs = [metrics([record(i, chunks=(100.0 + i, 130.0)) for i in range(9)])]
    over = RepeatedMetrics(runs)
    assert over.time_to_first_token == run.time_to_first_token
    assert over.request_throughput == run.request_throughput
    assert over.run is run.run and repr(over) == repr(run)


@pytest.mark.parametrize("order", [1, -1])
def test_a_number_that_a_run_lacks_is_none_over_runs(order):
    runs = [metrics([record(1, cached=500)]), metrics([record(1, chunks=())])][::order]
    found = RepeatedMetrics(runs)
    assert math.isnan(found.kv_hit_rate) and math.isnan(found.time_to_first_token.p50)
    assert not found.time_to_first_token.max < 1e9 and not found.time_to_first_token.min >= 0


def test_inter_token_latency_counts_tokens_and_not_chunks():
    found = metrics([record(1, chunks=(100.0, 180.0), completion=9)])
    assert found.inter_token_latency.mean == 80 / 8
    assert found.inter_chunk_latency.mean == 80


def test_one_token_has_no_inter_token_latency():
    found = metrics([record(1, chunks=(100.0,), completion=1), record(2)])
    assert found.inter_token_latency.count == 1
    assert found.time_to_first_token.count == 2


def test_rates_are_over_first_sent_to_last_received():
    records = [record(1, sent=0.0), record(2, sent=1879.0)]
    found = metrics(records)
    assert found.duration_seconds == 2.0
    assert found.request_throughput == 1.0
    assert found.output_token_throughput == 3.0
    assert found.output_token_throughput_per_gpu == 0.75


def test_failed_requests_count_for_nothing_but_the_duration():
    failed = record(2, sent=3879.0, error="HTTP 500", chunks=(100.0, 120.0))
    found = metrics([record(1), failed])
    assert found.duration_seconds == 4.0
    assert found.request_throughput == 0.25
    assert found.time_to_first_token.count == 1


def test_goodput_needs_every_limit():
    records = [
        record(1, chunks=(100.0, 110.0, 120.0)),
        record(2, chunks=(300.0, 310.0, 320.0)),
        record(3, chunks=(100.0, 150.0, 200.0)),
        record(4, chunks=(100.0,), completion=1),
    ]
    limits = Goodput(time_to_first_token_ms=200, inter_token_latency_ms=20)
    found = metrics(records, limits)
    assert found.goodput * found.duration_seconds == pytest.approx(2)
    with pytest.raises(ValueError, match="goodput needs SLOs"):
        _ = metrics(records).goodput


def test_the_hit_rate_weighs_requests_by_their_tokens():
    records = [record(1, cached=500), record(2, cached=0, input_tokens=3000), record(3)]
    assert metrics(records).kv_hit_rate == 500 / 4000


def test_without_records_metrics_are_not_numbers_and_nothing_raises():
    found = metrics([])
    assert math.isnan(found.time_to_first_token.mean)
    assert math.isnan(found.request_throughput)
    assert math.isnan(found.kv_hit_rate)
    assert found.as_dict()["kv_hit_rate"] != found.as_dict()["kv_hit_rate"]


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match=r"'tttf' is not a metric.*metrics: time_to_first"):
        _ = metrics([record(1)]).tttf


def test_a_distribution_reads_well_in_a_failed_assertion():
    assert repr(metrics([record(1)]).time_to_first_token) == (
        "<time_to_first_token in ms: mean 100, p50 100, p90 100, p99 100, 1 values>"
    )


@given(
    st.lists(st.tuples(st.floats(1, 1e5), st.floats(0.1, 100)), min_size=2, max_size=30),
    st.floats(1, 99),
)
def test_resampling_the_identity_gives_the_value(latencies, percentile):
    records = [
        record(i, sent=10.0 * i, chunks=(ttft, ttft + itl, ttft + 2 * itl), cached=int(ttft) % 900)
        for i, (ttft, itl) in enumerate(latencies)
    ]
    found = metrics(records, Goodput(time_to_first_token_ms=5e4))
    for name, definition in METRICS.items():
        full = f"{name}.p{percentile:.2f}" if definition.distribution else name
        sample = found.sample(full)
        if len(sample.values) == 0:
            assert np.isnan(sample.value)
            continue
        weights = None if sample.weights is None else np.tile(sample.weights, (2, 1))
        both = evaluate(sample, np.tile(sample.values, (2, 1)), weights)
        assert both == pytest.approx([sample.value] * 2, nan_ok=True)


@pytest.mark.parametrize("text", ["goodput", "time_to_first_token.p99.9", "kv_hit_rate"])
def test_metrics_parse(text):
    assert ".".join(part for part in parse_metric(text) if part) == text


def test_percentiles_parse():
    assert [percentile_of(text) for text in ("p50", "p99.9", "mean")] == [50.0, 99.9, None]

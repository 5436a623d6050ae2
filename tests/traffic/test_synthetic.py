"""Prompts of a fixed length without reuse."""

import pytest

from pytest_dynamo_bench import Concurrency, FixedSchedule, SyntheticTraffic
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.traffic import describe

TRAFFIC = SyntheticTraffic(isl=8192, osl=1024, requests=640, schedule=Concurrency(64))


def test_no_prompt_shares_a_block_with_another():
    traffic = TRAFFIC.load()
    figures = describe(traffic)
    assert (figures.requests, figures.mean_isl, figures.mean_osl) == (640, 8192, 1024)
    assert figures.reusable_share == 0
    assert len({request.hash_ids[0] for request in traffic.requests}) == 640
    assert traffic.schedule == Concurrency(64)


def test_a_last_block_may_be_partly_filled():
    (request,) = SyntheticTraffic(513, 1, 1, Concurrency(1)).load().requests
    assert request.input_tokens == 513 and len(request.hash_ids) == 2


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"isl": 0}, "isl"),
        ({"osl": 1.5}, "osl"),
        ({"requests": True}, "requests"),
        ({"schedule": FixedSchedule()}, "schedule"),
    ],
)
def test_errors_name_the_field(options, field):
    good = {"isl": 1, "osl": 1, "requests": 1, "schedule": Concurrency(1)}
    with pytest.raises(BenchmarkError, match=f"SyntheticTraffic: {field}:"):
        SyntheticTraffic(**{**good, **options})

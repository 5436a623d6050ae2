"""What differs between two configurations."""

from __future__ import annotations

import pytest

from pytest_dynamo_bench.benchmark import Configuration, Worker
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule
from pytest_dynamo_bench.verdicts import confounds

AGG = Configuration("agg", "baseline", [Worker(8, tp=2, prefix_caching=False)])


def named(differences):
    return [item.what for item in differences]


def test_labels_are_no_difference():
    other = AGG.but(name="other", role="promoted", note="x", published=False)
    assert confounds(other, AGG) == ()


def test_one_feature_alone_is_no_confound():
    found = confounds(AGG.but(router="kv"), AGG)
    assert named(found) == ["KV routing", "router"]
    assert [str(item) for item in found] == [
        "KV routing (on against off)",
        "router: kv against round-robin",
    ]


def test_another_router_that_is_not_the_kv_router_is_called_a_router():
    found = confounds(AGG.but(router="power-of-two"), AGG)
    assert [str(item) for item in found] == ["router: power-of-two against round-robin"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"router": "kv", "block_size": 16}, "block_size"),
        ({"router": "kv", "workers": [Worker(4, tp=2, prefix_caching=False)]}, "GPUs"),
        ({"router": "kv", "workers": [Worker(8, tp=2)]}, "workers: prefix_caching"),
        (
            {"router": "kv", "workers": [Worker(8, tp=2, prefix_caching=False, kv_blocks=512)]},
            "workers: kv_blocks",
        ),
        (
            {"router": "kv", "workers": [Worker(4, tp=4, prefix_caching=False)]},
            "workers: tp",
        ),
    ],
)
def test_other_things_beside_the_feature_are(change, expected):
    found = confounds(AGG.but(**change), AGG)
    assert expected in named(found)


def test_two_features_are_a_confound():
    split = Configuration(
        "disagg", "promoted", router="kv",
        workers=[Worker(6, "prefill", tp=2), Worker(2, "decode", tp=2)],
    )  # fmt: skip
    found = confounds(split, AGG.but(workers=[Worker(8, tp=2)]))
    assert named(found) == ["KV routing", "prefill/decode split", "router"]


def test_splits_are_compared_role_by_role():
    split = Configuration("a", "baseline", [Worker(6, "prefill", tp=2), Worker(2, "decode", tp=2)])
    other = split.but(workers=[Worker(4, "prefill", tp=2), Worker(4, "decode", tp=2)])
    assert named(confounds(other, split)) == [
        "prefill workers: replicas",
        "decode workers: replicas",
    ]


def test_schedules():
    found = confounds(
        AGG, AGG, treatment_schedule=Concurrency(64), baseline_schedule=Concurrency(128)
    )
    assert [str(item) for item in found] == ["concurrency: concurrency 64 against concurrency 128"]
    found = confounds(
        AGG, AGG, treatment_schedule=Concurrency(64), baseline_schedule=FixedSchedule()
    )
    assert named(found) == ["schedule"]

"""Reuse that the KV router gave up, where a Dynamo says how much that was."""

from __future__ import annotations

import math

from pytest_dynamo_bench import Benchmark, Configuration, Hardware, MooncakeTrace, Worker
from pytest_dynamo_bench.dynamo.abilities import abilities
from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.reports.features import features_at_work
from pytest_dynamo_bench.targets.base import PlannedRun
from pytest_dynamo_bench.targets.frontend_metrics import summarize
from pytest_dynamo_bench.targets.replay.results import Routed, Row
from pytest_dynamo_bench.targets.replay.target import ReplayTarget
from tests.which_dynamo.environments import each_other, skip_unless_there
from tests.which_dynamo.test_host_offload import Silent, conversations

COUNTERS = """
dynamo_frontend_input_sequence_tokens_sum{model="m"} 1000
dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total{phase="prefill"} 400
dynamo_component_router_kv_selected_cached_prefix_tokens_total{phase="prefill"} 330
dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total{phase="decode"} 99
dynamo_component_router_kv_selected_cached_prefix_tokens_total{phase="decode"} 9
"""


def replayed(python, router, directory):
    configuration = Configuration(
        "c", "baseline", [Worker(4, tp=2, kv_blocks=4000)], router=router, dynamo=python
    )
    benchmark = Benchmark(
        name="small", question="?", model="Qwen/Qwen3-32B", hardware=Hardware("H200", 8),
        traffic=MooncakeTrace("conversation"), configurations=[configuration], claims=[],
    )  # fmt: skip
    traffic = conversations(sessions=30, turns=3, step_tokens=8192)
    run = ReplayTarget().measure(PlannedRun(benchmark, configuration, traffic, directory), Silent())
    metrics = Metrics(run)
    return metrics, "".join(map(str, features_at_work(benchmark, configuration, metrics)))


@each_other
def test_what_a_release_does_not_say_is_missing_and_not_zero(python, tmp_path):
    skip_unless_there(python)
    metrics, seen = replayed(python, "kv", tmp_path)
    said = metrics.requests.numbers("given_up_tokens")
    # Both came with the same release.
    says = abilities(resolve(python)).hands_over_at_once
    assert math.isnan(metrics.given_up_reuse) is not says
    if not says:
        assert (said != said).all() and "gave up" not in seen
        return
    # It cannot be more than all that could have been found.
    assert 0 < metrics.given_up_reuse < 1 - metrics.kv_hit_rate
    assert (said % 64 == 0).all()
    assert f"it gave up {100 * metrics.given_up_reuse:.1f} % that another worker" in seen


def test_the_choice_of_a_decode_worker_gives_nothing_up():
    row = Row(1, 1, 1, "completed", 0.0)
    assert row.given_up_blocks is None
    row.routing_history = [Routed("prefill", 3), Routed("decode", 7)]
    assert row.given_up_blocks == 3
    row.routing_history = [Routed("agg", None)]
    assert row.given_up_blocks is None


def test_counters_of_a_frontend_say_what_its_router_gave_up():
    assert summarize(COUNTERS)[0]["router_given_up_share"] == 0.07
    older = "\n".join(line for line in COUNTERS.split("\n") if "best_eligible" not in line)
    assert "router_given_up_share" not in summarize(older)[0]

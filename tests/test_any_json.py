"""Whatever is in a file or an answer: a documented error naming it, or numbers within bounds."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_dynamo_bench.aiperf_results import read_aiperf_results
from pytest_dynamo_bench.errors import DeploymentError, ResultsError, TargetError, TrafficError
from pytest_dynamo_bench.plain_text import Secrets, printable, secrets_in
from pytest_dynamo_bench.records import possible
from pytest_dynamo_bench.reports.html import render_html
from pytest_dynamo_bench.reports.markdown import render_markdown
from pytest_dynamo_bench.reports.model import load_session
from pytest_dynamo_bench.reports.store import StoredResults
from pytest_dynamo_bench.reports.terminal import render_comparison
from pytest_dynamo_bench.targets.frontend_metrics import summarize
from pytest_dynamo_bench.targets.kubernetes.diagnosis import (
    graph_state,
    missing_services,
    pod_state,
    progress_text,
)
from pytest_dynamo_bench.targets.kubernetes.graph import asks_for_nats
from pytest_dynamo_bench.targets.kubernetes.settings import Limits
from pytest_dynamo_bench.targets.local.engine_events import read_events
from pytest_dynamo_bench.targets.local.vision.deployment import VisionWorkers
from pytest_dynamo_bench.targets.local.vllm.measures import read_observations, summary
from pytest_dynamo_bench.targets.recorded import RecordedTarget
from pytest_dynamo_bench.targets.replay.results import read_rows
from pytest_dynamo_bench.targets.service.coordinate import _said, _Status
from pytest_dynamo_bench.targets.service.probe import _usage
from pytest_dynamo_bench.targets.service.shards import Clock, pack_result, unpack_result
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, read_traffic
from tests.any_json import odd_documents
from tests.local.test_vision_worker import line
from tests.replay.test_own_traffic import MOONCAKE, dynamo
from tests.reports.making import make_session

AIPERF = Path(__file__).parent / "reports" / "aiperf_example" / "kv"
FAST = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def directory():
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def unless(error, names, work):
    """What the work gives; None where it ends with that error, which has to name the place."""
    try:
        return work()
    except error as raised:
        if names not in str(raised):
            raise
        return None


def assert_within_bounds(records):
    for record in records:
        assert possible(record) == record
        times = (record.scheduled_ms, record.sent_ms or 0.0, record.end_ms or 0.0)
        assert all(map(math.isfinite, (*times, *record.chunk_ms)))
        assert 0 <= record.input_tokens <= 2**40 and 0 <= record.output_tokens <= 2**40


ROWS = [json.loads(row) for row in (AIPERF / "profile_export.jsonl").read_text().splitlines()[:3]]
SUMMARY = {
    key: value
    for key, value in json.loads((AIPERF / "profile_export_aiperf.json").read_text()).items()
    if key in ("input_config", "schedule", "was_cancelled", "run_info", "aiperf_version")
}


@FAST
@given(odd_documents([SUMMARY, *ROWS]))
def test_results_of_aiperf(directory, texts):
    path = directory / "profile_export.jsonl"
    path.with_name("profile_export_aiperf.json").write_text(texts[0], errors="surrogatepass")
    path.write_text("\n".join(texts[1:]), errors="surrogatepass")
    results = unless(ResultsError, "profile_export", lambda: read_aiperf_results(directory))
    if results is None:
        return
    assert_within_bounds(results.records)
    assert results.concurrency is None or results.concurrency > 0
    assert all(isinstance(text, str | None) for text in (results.command, results.version))
    RecordedTarget("endpoint", {"agg": [path]}).traffic(None)


TURN = {
    "session_id": "s", "timestamp": 0, "input_length": 500, "output_length": 24, "hash_ids": [1]
}  # fmt: skip
TRACES = [
    [MOONCAKE, TURN, TURN | {"delay": 9, "input_length": 1124, "hash_ids": [1, 2, 3]}],
    [dynamo("a", 1000, [3, 4], session="s"), dynamo("b", 1100, [3, 4, 5], 180, session="s")],
    [
        {"data": [{"session_id": "s", "payloads": [
            {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5},
            {"messages": [{"role": "user", "content": [
                {"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "a"}},
            ]}], "max_tokens": 5},
        ]}]}
    ],
    [
        {"session_id": "s", "timestamp": 3, "text": "w1 w2", "output_length": 3, "images": ["a"],
         "input_length": 2},
        {"turns": [{"text": "one", "max_tokens": 2}, {"text": "two", "delay": 3, "max_tokens": 2}],
         "timestamp": 9},
    ],
]  # fmt: skip


@FAST
@given(st.one_of([odd_documents(rows) for rows in TRACES]), st.booleans())
def test_traces(directory, texts, open_loop):
    path = directory / "trace.jsonl"
    path.write_text("\n".join(texts), encoding="utf-8", errors="surrogatepass")
    schedule = FixedSchedule() if open_loop else Concurrency(2)
    traffic = unless(TrafficError, "trace.jsonl", lambda: read_traffic(path, schedule))
    if traffic is None:
        return
    for request in traffic.requests:
        assert 0 <= request.timestamp_ms <= 2**54 and 0 <= request.delay_ms <= 2**53
        assert 1 <= request.input_tokens <= 2**40 and 1 <= request.output_tokens <= 2**40
        assert all(0 <= block < 2**64 for block in request.hash_ids)


LINES = st.one_of(
    st.text(max_size=30),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from([
            "dynamo_frontend_requests_total", "dynamo_frontend_cached_tokens_sum",
            "dynamo_component_router_kv_hit_rate_sum", "dynamo_component_router_kv_hit_rate_count",
            "dynamo_component_router_kv_best_eligible_cached_prefix_tokens_total",
            "dynamo_component_router_kv_selected_cached_prefix_tokens_total",
            "dynamo_frontend_input_sequence_tokens_sum",
        ]),
        st.sampled_from(["", '{a="b"}', "{", '{a="', '{a="b",}', "_bucket", "\x00", "é"]),
        st.sampled_from([" ", "", "\t", "  "]),
        st.one_of(st.floats().map(str), st.integers().map(str), st.text(max_size=5)),
    ),
)  # fmt: skip


@FAST
@given(st.lists(LINES, max_size=8).map("\n".join))
def test_metrics_of_a_frontend(text):
    counters, notes = summarize(text)
    assert all(0 <= value < math.inf for value in counters.values())
    assert counters.get("router_kv_hit_rate", 0) <= 1
    assert all(printable(note) == note for note in notes)


@pytest.fixture(scope="module")
def results(directory):
    return make_session(directory / "results")


@settings(FAST, max_examples=150)
@given(st.data())
def test_stored_results(results, directory, data):
    copy = directory / "copy"
    shutil.copytree(results, copy, dirs_exist_ok=True)
    names = ("summary.json", "environment.json", "example/agg/run.json", "example/attribution.json")
    documents = [json.loads((results / name).read_text()) for name in names]
    for name, text in zip(names, data.draw(odd_documents(documents)), strict=True):
        (copy / name).write_text(text, encoding="utf-8", errors="surrogatepass")

    def all_reports():
        session = load_session(StoredResults(copy))
        render_markdown(session)
        render_html(session)
        for report in session.comparisons:
            render_comparison(report, 100, False)

    unless(ResultsError, str(copy), all_reports)


@FAST
@given(
    odd_documents([
        {"at_ms": 1, "kind": "stored", "worker": "a", "parent": None, "blocks": [[1, 2]]},
        {"at_ms": 1, "kind": "pass", "worker": "a", "rank": 0, "prefill": 64, "decode": 2},
        {"at_ms": 1, "kind": "removed", "worker": "a", "count": 3},
    ])
)  # fmt: skip
def test_events_of_engines(directory, texts):
    path = directory / "events.jsonl"
    path.write_text("\n".join(texts) + "\n", errors="surrogatepass")
    events = read_events(path)
    assert events.removed_blocks >= 0 and events.decode_steps >= 0
    read = len(events.stored) + len(events.prefill_tokens) + (events.removed_blocks > 0)
    assert events.unreadable or read


@FAST
@given(odd_documents([line("a", 1, 2), line("b", 2, 3)]))
def test_measures_of_a_vision_worker(directory, texts):
    (directory / "images-0.jsonl").write_text("\n".join(texts), errors="surrogatepass")
    found = VisionWorkers().measures(directory)
    assert all(own["encoder_ms"] >= 0 for own in found.values())
    VisionWorkers().summary(found, [])


OBSERVED = [
    {"event": "asked", "request": "a", "images": 2},
    {"event": "decoded", "request": "a", "ms": 1.5},
    {"event": "read", "request": "a", "ms": 1.5},
    {"event": "queued", "request": "a-1", "images": 2, "tokens": 50},
    {"event": "kept", "request": "a-1", "image": 0},
    {"event": "encoded", "request": "a-1", "images": 1, "ms": 9.0},
    {"event": "cached", "request": "a-1", "image": 1, "hit": True, "evicted": 1, "bytes": 9,
     "entries": 1, "capacity_bytes": 10},
]  # fmt: skip


@FAST
@given(odd_documents(OBSERVED))
def test_observations_in_vllm(directory, texts):
    (directory / "observed-1.jsonl").write_text("\n".join(texts), errors="surrogatepass")
    found = read_observations(directory)
    assert all(own["image_decode_ms"] >= 0 for own in found.values())
    summary(found, [])


ROW = {
    "session_id": "s", "turn_index": 0, "input_length": 5, "requested_output_length": 2,
    "output_length": 2, "terminal_status": "completed", "arrival_time_ms": 0.0,
    "first_token_ms": 5.0, "last_token_ms": 6.0, "terminal_time_ms": 6.0, "reused_input_tokens": 0,
    "prefill_route_overlap_tokens": None, "prefill_worker_idx": None, "decode_worker_idx": 1,
}  # fmt: skip


@FAST
@given(odd_documents([ROW, ROW]))
def test_requests_of_a_simulation(directory, texts):
    path = directory / "rows.jsonl"
    path.write_text("\n".join(texts), errors="surrogatepass")
    rows = unless(DeploymentError, "request ", lambda: read_rows(path)) or ()
    assert all(0 <= row.arrival_time_ms < math.inf for row in rows)


@FAST
@given(odd_documents([{"stage": "measuring", "shard": 1, "done": 2, "failed": 0, "recent": [[1]]}]))
def test_what_a_shard_says(texts):
    try:
        status = _said(texts[0].encode("utf-8", "surrogatepass"), _Status)
    except DeploymentError:
        return
    assert status.done >= 0


@FAST
@given(st.binary(max_size=40))
def test_what_a_shard_brings_back(data):
    with pytest.raises(TargetError):
        unpack_result(data, 0, Clock(0, 0))
    damaged = bytearray(pack_result([], 5.5, {}, {}))
    damaged[10 : 10 + len(data)] = data
    try:
        unpack_result(bytes(damaged), 0, Clock(0, 0))
    except TargetError:
        return


@FAST
@given(odd_documents([{"usage": {"prompt_tokens": 7}}]))
def test_what_a_server_counts_when_it_is_asked(texts):
    found = _usage(f"data: {texts[0]}")
    assert found is None or 0 <= found <= 2**40


CONTAINER = {
    "name": "main", "image": "i", "restartCount": 1,
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
    "lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": "m"}},
}  # fmt: skip
CONDITION = {"type": "Ready", "status": "False", "reason": "r", "message": "m"}
POD = {
    "metadata": {"name": "p", "labels": {"nvidia.com/dynamo-component": "w"}},
    "status": {
        "phase": "Pending", "conditions": [CONDITION], "containerStatuses": [CONTAINER],
        "initContainerStatuses": [CONTAINER],
    },
}  # fmt: skip
EVENT = {
    "involvedObject": {"name": "p"}, "reason": "Failed", "message": "m", "lastTimestamp": "2026",
}  # fmt: skip
GRAPH = {
    "metadata": {"name": "g", "generation": 2},
    "spec": {"services": {"w": {"replicas": 2, "multinode": {"nodeCount": 2}}}},
    "status": {
        "state": "successful", "observedGeneration": 2, "conditions": [CONDITION],
        "services": {"w": {"replicas": 1}},
    },
}  # fmt: skip
NEW_GRAPH = {
    "metadata": {"name": "g", "generation": 2},
    "spec": {
        "env": [{"name": "a", "value": "b"}],
        "components": [
            {"name": "w", "type": "worker", "replicas": 2, "multinode": {"nodeCount": 2},
             "podTemplate": {"spec": {"containers": [
                 {"name": "main", "args": ["--a"], "env": [{"name": "c", "value": "d"}]}]}}},
        ],
    },
    "status": {"state": "successful", "components": {"w": {"replicas": 1}}},
}  # fmt: skip


@FAST
@given(st.sampled_from([GRAPH, NEW_GRAPH]).flatmap(lambda g: odd_documents([POD, EVENT, g])))
def test_objects_of_a_cluster(texts):
    try:
        pod, event, graph = map(json.loads, texts)
    except (ValueError, RecursionError):
        return
    state = pod_state(pod, [event], Limits())
    found = graph_state(graph)
    assert isinstance(progress_text(graph, [state]), str)
    missing_services(graph, found.services)
    asks_for_nats(graph)


KEYS = st.text("abcdefghijABCDEF0123456789-_/+=.'\"\\", min_size=8, max_size=60)


@FAST
@given(KEYS, st.text(max_size=50), st.text(max_size=50), st.integers(0, 400))
def test_no_beginning_of_a_key_is_left_where_a_text_is_cut(key, before, after, cut):
    """Whoever cut it: we do after redacting, and a server may have done so before."""
    secrets = secrets_in({"Authorization": f"Bearer {key}"})
    for told in (key, json.dumps({"error": f"bad key {key}"}), repr({"error": key})):
        whole = before + told + after
        assert key not in secrets.redact(whole).replace("***", "\x00")
        server_cut = secrets.redact(whole[:cut])
        assert not any(server_cut.endswith(key[:length]) for length in range(4, len(key)))
        our_cut = secrets.redact(whole)[:cut]
        assert key[:8] not in our_cut


def test_secrets_without_values_change_nothing():
    assert Secrets().redact("Bearer abc") == "Bearer abc"

"""Requests to an API server, and what a user reads when one goes wrong.

Tests with ``any_api`` run against the double, and against a real API server when KUBECONFIG is set
(namespace ``default``, or DYNAMO_BENCH_NAMESPACE): what they say holds of both.
"""

from __future__ import annotations

import contextlib
import re
import threading
import time

import pytest

from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets.kubernetes.api import (
    ApiError,
    Cluster,
    WatchExpiredError,
    connector,
)
from tests.kubernetes.fake_cluster import NAMESPACE, TOKEN, Fault


def config_map(name, namespace, **labels):
    return {"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
            "metadata": {"name": name, "namespace": namespace, "labels": labels}}  # fmt: skip


# -- what holds of every API server -------------------------------------------------------------


def test_an_object_is_created_found_listed_and_deleted(any_api, unique):
    created = any_api.create("configmaps", config_map(unique, any_api.namespace, test=unique))
    try:
        assert created["metadata"]["uid"]
        assert created["metadata"]["resourceVersion"]
        assert any_api.get("configmaps", unique)["data"] == {"a": "b"}
        found = any_api.all("configmaps", f"test={unique}")
        assert [item["metadata"]["name"] for item in found] == [unique]
        assert any_api.all("configmaps", f"test={unique}-other") == []
        with pytest.raises(ApiError, match="already exists") as caught:
            any_api.create("configmaps", config_map(unique, any_api.namespace))
        assert caught.value.code == 409
    finally:
        any_api.delete("configmaps", unique)
    # In the foreground: it is there until the garbage collector has looked for dependents.
    deadline = time.monotonic() + 10
    while (left := any_api.find("configmaps", unique)) is not None:
        assert left["metadata"]["deletionTimestamp"]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    any_api.delete("configmaps", unique)


def test_nothing_is_created_by_a_dry_run(any_api, unique):
    any_api.create("configmaps", config_map(unique, any_api.namespace), dry_run=True)
    assert any_api.find("configmaps", unique) is None


def test_changes_are_watched(any_api, unique):
    _, version = any_api.all_with_version("configmaps", f"test={unique}")

    def change():
        time.sleep(0.3)
        any_api.create("configmaps", config_map(unique, any_api.namespace, test=unique))
        any_api.delete("configmaps", unique)

    thread = threading.Thread(target=change)
    thread.start()
    found = [
        (kind, item["metadata"]["name"])
        for kind, item in any_api.watch("configmaps", f"test={unique}", version, 3)
        if kind != "BOOKMARK"
    ]
    thread.join()
    # In between it waits for the garbage collector.
    assert found[0] == ("ADDED", unique)
    assert found[-1] == ("DELETED", unique)
    assert set(found[1:-1]) == {("MODIFIED", unique)}


def test_who_we_are_and_what_there_is(any_api):
    assert re.match(r"v\d+\.\d+", any_api.server_version())
    assert any_api.may("list", "", "pods") in (True, False)
    assert any_api.versions("no-such-group.example.com") is None
    assert any_api.versions("batch") == ["v1"]


# -- errors -------------------------------------------------------------------------------------


def fault(status, method="GET", path="configmaps", **more):
    return Fault(lambda m, p: m == method and path in p, status, **more)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 0])
def test_what_passes_is_waited_for(fake, api, status):
    fake.faults.append(
        fault(status, times=2, headers={"Retry-After": "1"} if status == 429 else {})
    )
    began = time.monotonic()
    assert api.all("configmaps") == []
    assert sum(path.endswith("configmaps") for _, path in fake.requests) == 3
    if status == 429:
        assert time.monotonic() - began >= 2


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "the API server stayed too busy to list configmaps (namespace bench)"),
        (503, "the API server failed repeatedly to list configmaps (namespace bench) (HTTP "),
        (0, "the API server cannot be reached to list configmaps (namespace bench): "),
        (403, "not allowed to list configmaps (namespace bench): no; docs/run-on-a-cluster.md has"),
        (
            422,
            "the API server rejected the request to list configmaps (namespace bench) (HTTP 422)",
        ),
    ],
)
def test_what_does_not_pass_says_what_was_asked_and_why_not(fake, status, message):
    api = Cluster(connector(""), NAMESPACE, outage_seconds=0.6)
    fake.faults.append(fault(status, times=99, message="no"))
    with pytest.raises(ApiError) as caught:
        api.all("configmaps")
    assert str(caught.value).startswith(message)


def test_a_server_that_has_just_started_may_know_no_rights_yet(fake, api):
    assert api.all("configmaps") == []
    fake.faults.append(fault(403, times=2))
    assert api.all("configmaps") == []
    assert api.may("delete", "", "configmaps")
    fake.faults.append(fault(403, method="DELETE", times=2))
    api.delete("configmaps", "none")
    assert not [entry for entry in fake.faults if entry.times]


def test_what_was_allowed_and_stays_forbidden_is_an_error(fake, api, monkeypatch):
    monkeypatch.setattr("pytest_dynamo_bench.targets.kubernetes.api._UNREAD_ROLES_SECONDS", 0.4)
    assert api.all("configmaps") == []
    fake.faults.append(fault(403, times=99))
    began = time.monotonic()
    with pytest.raises(ApiError, match="not allowed to list configmaps"):
        api.all("configmaps")
    assert time.monotonic() - began >= 0.4
    asked = len(fake.requests)
    with pytest.raises(ApiError, match="not allowed to list configmaps"):
        api.all("configmaps")
    assert len(fake.requests) == asked + 1
    # Another verb and another resource have never been allowed.
    for fetch in (lambda: api.get("configmaps", "x"), lambda: api.may("get", "", "pods")):
        fake.faults[-1].times = 1
        fake.faults[-1].matches = lambda method, path: True
        with contextlib.suppress(ApiError):
            fetch()
        assert fake.faults[-1].times == 0


def test_a_watch_goes_on_when_the_server_knows_no_rights_yet(fake, api):
    _, version = api.all_with_version("configmaps")
    assert api.may("watch", "", "configmaps")
    fake.faults.append(fault(403))
    assert list(api.watch("configmaps", "", version, 1)) == []
    assert list(api.watch("configmaps", "", version, 0.2)) == []


def test_an_answer_that_is_lost_does_not_create_twice(fake, api):
    fake.faults.append(fault(0, method="POST", after=True))
    with pytest.raises(ApiError) as caught:
        api.create("configmaps", config_map("lost", NAMESPACE))
    assert caught.value.code == 409


def test_an_api_server_that_restarts_is_waited_for(fake, api):
    thread = threading.Thread(target=fake.restart, args=(1.0,))
    thread.start()
    time.sleep(0.3)
    assert api.all("configmaps") == []
    thread.join()


def test_a_token_that_expired_is_read_again(fake, api, tmp_path):
    assert api.all("configmaps") == []
    fake.tokens = {"second-planted-token"}
    fake.kubeconfig(tmp_path, "second-planted-token")
    assert api.all("configmaps") == []
    assert "second-planted-token" in api.secrets.values


def test_a_token_that_stays_expired_is_an_error_without_the_token(fake, api):
    fake.tokens = set()
    with pytest.raises(ApiError, match="does not accept our credentials to list configmaps") as c:
        api.all("configmaps")
    assert "log in again" in str(c.value)
    assert c.value.code == 401
    assert api.secrets.redact(str(c.value)).count(TOKEN) == 0


def test_a_watch_that_is_too_old_says_so(fake, api):
    _, version = api.all_with_version("configmaps")
    fake.expire_watches()
    with pytest.raises(WatchExpiredError):
        list(api.watch("configmaps", "", version, 2))


def test_a_watch_that_expires_while_it_runs_says_so(fake, api):
    _, version = api.all_with_version("configmaps")
    threading.Timer(0.3, fake.expire_watches).start()
    with pytest.raises(WatchExpiredError):
        list(api.watch("configmaps", "", version, 5))


def test_a_watch_that_is_cut_off_just_ends(fake, api):
    _, version = api.all_with_version("configmaps")
    threading.Timer(0.3, fake.restart, [0.2]).start()
    assert list(api.watch("configmaps", "", version, 2)) == []
    fake.faults.append(fault(503))
    assert list(api.watch("configmaps", "", version, 1)) == []


def test_without_an_operator_the_answer_is_no_status(fake, api):
    del fake.groups["nvidia.com"]
    assert api.versions("nvidia.com") is None
    with pytest.raises(ApiError, match="the API server does not know this resource"):
        api.get("dynamographdeployments", "x")


def test_without_a_cluster_it_says_how_to_name_one(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(TargetError, match=r"no cluster is configured: .*set KUBECONFIG"):
        Cluster(connector(""), "x").server_version()


def test_a_context_that_is_not_there_is_named(fake):
    with pytest.raises(TargetError, match=re.compile("no cluster is configured.*production")):
        Cluster(connector("production"), "x").server_version()

"""A cluster for each test: the double, and a real one where KUBECONFIG says so."""

from __future__ import annotations

import os
import uuid

import pytest

from pytest_dynamo_bench.targets.kubernetes.api import Cluster, connector
from tests.kubernetes.fake_cluster import NAMESPACE, FakeCluster

REAL = os.environ.get("KUBECONFIG")


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The double, which the kubeconfig leads to."""
    found = FakeCluster()
    monkeypatch.setenv("KUBECONFIG", str(found.kubeconfig(tmp_path)))
    yield found
    found.close()


@pytest.fixture
def api(fake):
    """Our side of the double, which gives up after a few seconds."""
    return Cluster(connector(""), NAMESPACE, outage_seconds=3)


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.skipif(
    not REAL, reason="KUBECONFIG is not set"))])  # fmt: skip
def any_api(request, monkeypatch):
    """The double or a real API server; a namespace that one may make ConfigMaps in."""
    if request.param == "double":
        return request.getfixturevalue("api")
    monkeypatch.setenv("KUBECONFIG", REAL)
    return Cluster(connector(""), os.environ.get("DYNAMO_BENCH_NAMESPACE", "default"))


@pytest.fixture
def unique():
    """A name that nothing else has."""
    return f"dynamo-bench-test-{uuid.uuid4().hex[:8]}"

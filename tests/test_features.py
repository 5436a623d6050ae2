"""The table of features, and what is made from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hypothesis import given

from pytest_dynamo_bench import Configuration, Worker
from pytest_dynamo_bench.attribution import plan
from pytest_dynamo_bench.features import FEATURES, feature_markers, markers_of
from pytest_dynamo_bench.verdicts import confounds
from tests.any_configuration import configurations

DOCUMENTATION = Path(__file__).parents[1] / "docs" / "features.md"


def test_every_marked_feature_has_a_name_and_is_documented():
    text = DOCUMENTATION.read_text().lower()
    for row in FEATURES:
        if row.marked:
            assert row.name and row.seen is not None
            assert row.name.lower() in text, f"docs/features.md does not mention {row.name}"


def test_no_field_is_carried_by_two_features():
    fields = [name for row in FEATURES for name in row.fields]
    worker_fields = [row.worker_field for row in FEATURES if row.worker_field]
    assert len(set(fields)) == len(fields) and len(set(worker_fields)) == len(worker_fields)
    assert set(fields) <= {item.name for item in dataclasses.fields(Configuration)}
    assert set(worker_fields) <= {item.name for item in dataclasses.fields(Worker)}
    for row in FEATURES:
        if row.worker_field:
            Worker(1, moe_ep=1, **{row.worker_field: row.off})
    assert sum(row.layout for row in FEATURES) == 1


@given(configurations())
def test_whatever_is_used_has_its_markers_and_is_a_difference(configuration):
    plain = Configuration("plain", "baseline", [Worker(1)])
    named = {item.what for item in confounds(configuration, plain) if item.kind == "feature"}
    markers = feature_markers()
    assert named == {markers[feature].name for feature in configuration.features}
    assert configuration.features <= markers_of(configuration) <= set(markers)


def test_a_feature_that_is_switched_on_is_attributed_by_its_id():
    plain = Configuration("plain", "baseline", [Worker(2)], router="random")
    assert plan(plain, plain.but(name="kv", router="kv")).features == ("kv_routing",)

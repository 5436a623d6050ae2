"""JUnit files against the schema that Jenkins' xUnit plugin validates with."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import xmlschema

from tests.test_plugin import project  # noqa: F401

SCHEMA = xmlschema.XMLSchema(Path(__file__).parent / "schemas" / "junit-10.xsd")
TEXT = "\x1b[31mred\x1b[0m <script>alert(1)</script> & ]]> | `x` \x00\x01 \ud800 "
HOSTILE = TEXT + "A" * 1_000_000


def junit(pytester, *arguments):
    pytester.runpytest("--junitxml=junit.xml", *arguments)
    path = pytester.path / "junit.xml"
    return path, ET.parse(path).getroot()


def test_properties_of_the_suite_are_valid_by_the_schema(project):  # noqa: F811
    pytester = project(broken=["split"])
    pytester.makeini("[pytest]\ndynamo_junit_properties = suite\n")
    path, root = junit(pytester)
    SCHEMA.validate(path)
    found = {item.get("name"): item.get("value") for item in root.iter("property")}
    name = "test_claim[kv-routing-is-faster].dynamo."
    assert found[f"{name}verdict"] == "provisional"
    assert found[f"{name}target"] == "local"
    # As a reader finds it: nobody has this machine's directories.
    assert not Path(found[f"{name}report"]).is_absolute()
    assert (pytester.path / found[f"{name}report"]).is_dir()
    assert float(found[f"{name}threshold"]) == -0.2
    assert float(found[f"{name}change_low"]) < float(found[f"{name}change"]) < -0.4
    assert "KV routing (on against off)" in found[f"{name}confounds"]
    assert float(found[f"{name}kv.time_to_first_token.mean"]) < 60


def test_properties_of_a_case_are_all_that_the_schema_does_not_know(project):  # noqa: F811
    path, root = junit(project(broken=["split"]))
    cases = [case for case in root.iter("testcase") if case.find("properties") is not None]
    assert cases
    assert not SCHEMA.is_valid(path)
    for case in cases:
        case.remove(case.find("properties"))
    ET.ElementTree(root).write(path)
    SCHEMA.validate(path)


def test_a_failure_message_stands_alone(project):  # noqa: F811
    _, root = junit(project())
    (failure,) = root.iter("failure")
    for told in (
        "fails: Split is faster!", "time_to_first_token.mean was", "95 % interval",
        "The claim, lower by at least 20 %,", "what differs:", "target: local", "records and logs:",
    ):  # fmt: skip
        assert told in failure.get("message")


def test_hostile_errors_leave_the_file_whole_and_small(project):  # noqa: F811
    pytester = project(error=HOSTILE)
    pytester.makeini("[pytest]\ndynamo_junit_properties = suite\n")
    path, root = junit(pytester)
    SCHEMA.validate(path)
    assert path.stat().st_size < 200_000
    (error, *_) = root.iter("error")
    assert "<script>alert(1)</script>" in error.get("message")
    assert "\x1b" not in error.get("message")

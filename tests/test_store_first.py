"""What was measured is on disk before anything is made of it, whatever goes wrong then."""

from __future__ import annotations

from array import array

import pytest

from pytest_dynamo_bench.errors import DeploymentError, UnexpectedError
from pytest_dynamo_bench.record_files import RECORDS_FILE, read_records
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets import frontend_metrics
from pytest_dynamo_bench.targets.aftermath import Aftermath
from tests.endpoint.test_endpoint import measure
from tests.fake_target import REQUESTS, FakeTarget
from tests.reference_server import Character, Script
from tests.servers import serving
from tests.test_comparison import compare  # noqa: F401 a fixture

RECORD = RequestRecord("0", "0", 0, 0.0, 0.0, array("d", [1.0, 2.0]), 2.0, 5, 2)


def on_disk(directory):
    return read_records(directory / RECORDS_FILE)


class Broken(FakeTarget):
    """A target that fails in a way that nobody foresaw: in its middle, or afterwards."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def measure(self, *args, **more):
        run = super().measure(*args, **more)
        if self.where == "measure":
            raise ZeroDivisionError("odd")
        return run

    def limitations(self, benchmark, configuration):
        if self.where == "limitations":
            raise KeyError("odd")
        return ()


@pytest.mark.parametrize("where", ["measure", "limitations", "store", "gates"])
def test_what_nobody_foresaw_is_the_error_of_that_configuration(
    compare,  # noqa: F811
    monkeypatch,
    where,
):
    target = Broken(where)
    comparison = compare(target, repeats=1)

    def broken(*_, **__):
        raise KeyError("odd")

    if where == "store":
        monkeypatch.setattr(comparison.store, "save_run", broken)
    if where == "gates":
        monkeypatch.setattr(comparison, "_gates", broken)
    for _ in range(2):
        with pytest.raises(UnexpectedError, match=r"measuring agg failed: .*odd.*traceback"):
            comparison.runs("agg")
    assert target.measured == ["agg"]
    directory = comparison.store.run_directory(comparison.benchmark.name, "agg")
    assert "Traceback" in (directory / "logs" / "errors.log").read_text()
    if where != "measure":
        assert len(on_disk(directory)) == REQUESTS


class Generator:
    def __init__(self, *records):
        self._records = records

    def records(self):
        return list(self._records)


@pytest.mark.parametrize("error", [DeploymentError("died"), KeyError("odd")])
def test_what_ends_a_load_is_a_problem_of_the_run_and_its_records_are_written(tmp_path, error):
    after = Aftermath(tmp_path)
    with after.once_measured("stopping"):
        with after.sending(Generator(RECORD)):
            raise error
        with after.step("asking"):
            raise ValueError("odd answer")
        raise DeploymentError("it does not go away")
    assert on_disk(tmp_path) == [RECORD]
    first, second, third = after.problems
    assert "died" in first or "odd" in first
    assert "asking failed: ValueError: odd answer" in second and third == "it does not go away"


def test_ctrl_c_in_a_load_leaves_the_records(tmp_path):
    after = Aftermath(tmp_path)
    with pytest.raises(KeyboardInterrupt), after.sending(Generator(RECORD)):
        raise KeyboardInterrupt
    assert on_disk(tmp_path) == [RECORD]


def test_what_fails_before_anything_was_measured_is_an_error(tmp_path):
    after = Aftermath(tmp_path)
    with (
        pytest.raises(DeploymentError, match="died"),
        after.once_measured("stopping"),
        after.sending(Generator()),
    ):
        raise DeploymentError("died")
    assert list(tmp_path.iterdir()) == []


def test_records_that_cannot_be_written_are_a_problem(tmp_path):
    (tmp_path / "file").write_text("")
    after = Aftermath(tmp_path / "file")
    with after.sending(Generator(RECORD)):
        pass
    assert "requests.parquet: cannot be written" in after.problems[0]


GOOD = "dynamo_frontend_requests_total 12\n"
MEASURED = {
    "a malformed line": (GOOD + 'dynamo_frontend_requests_total{model="m 3\n', 0.0, "1 line of"),
    "no number": (GOOD + "dynamo_frontend_output_tokens_total NaN\n", 0.0, "1 line of"),
    "a negative count": (GOOD + "dynamo_frontend_output_tokens_total -1\n", 0.0, "1 line of"),
    "takes too long": (GOOD, 3.0, "did not answer within"),
}


@pytest.mark.parametrize("kind", MEASURED)
def test_odd_metrics_after_the_run_cost_a_note_and_not_the_run(tmp_path, monkeypatch, kind):
    text, seconds, note = MEASURED[kind]
    monkeypatch.setattr(frontend_metrics, "_SECONDS", 1.0)
    # The first time it is asked whether this is Dynamo at all.
    character = Character(metrics=((GOOD, 0.0), (text, seconds)))
    script = Script(0.004, 0.001, cached_tokens=-(2**40))
    with serving(script, character) as server:
        run = measure(server.base_url, tmp_path)
    assert len(run.records) == 6 and not run.problems
    assert len(run.notes) == 1 and note in run.notes[0]
    assert len(on_disk(tmp_path)) == 6
    assert all(r.cached_tokens is None and r.odd for r in run.records)

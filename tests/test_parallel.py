"""Computations on several processes, and how they end."""

import contextlib
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import pytest

from pytest_dynamo_bench import parallel
from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.parallel import compute_all


def no_children_left():
    deadline = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not multiprocessing.active_children()


def test_every_job_is_computed_with_what_is_shared():
    jobs = {f"2^{power}": (2, power) for power in range(5)}
    assert dict(compute_all(pow, jobs, processes=2, shared=(1000,))) == {
        "2^0": 1, "2^1": 2, "2^2": 4, "2^3": 8, "2^4": 16,
    }  # fmt: skip
    assert list(compute_all(pow, {})) == []


def test_what_a_job_raises_is_raised_and_the_others_are_ended():
    began = time.monotonic()
    with pytest.raises(TypeError):
        list(compute_all(time.sleep, {"wrong": ("x",), "long": (60,)}, processes=2))
    assert time.monotonic() - began < 20 and no_children_left()


def test_when_nobody_listens_any_more_what_runs_is_ended():
    began = time.monotonic()
    jobs = {"short": (0,), **{f"long {index}": (60,) for index in range(6)}}
    results = compute_all(time.sleep, jobs, processes=2)
    assert next(results) == ("short", None)
    results.close()
    assert time.monotonic() - began < 20 and no_children_left()


def test_a_killed_process_is_an_error_that_says_so_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DeploymentError, match="ended from outside"):
        list(compute_all(os._exit, {"only": (3,)}))
    assert no_children_left()
    assert list(tmp_path.iterdir()) == []


def leave_files(seconds):
    """A computation that cleans nothing up."""
    directory = Path(tempfile.mkdtemp())
    (directory / "file").touch()
    time.sleep(seconds)


@pytest.mark.parametrize("interrupted", [False, True])
def test_temporary_files_of_a_computation_are_gone_however_it_ends(
    tmp_path, monkeypatch, interrupted
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    jobs = {"short": (0,), "other": (60 if interrupted else 0,)}
    results = compute_all(leave_files, jobs, processes=2)
    if interrupted:
        assert next(results) == ("short", None)
        deadline = time.monotonic() + 20
        while not list(tmp_path.rglob("file")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list(tmp_path.rglob("file"))
        results.close()
    else:
        assert dict(results) == {"short": None, "other": None}
    assert list(tmp_path.iterdir()) == []


def hear_nothing(seconds):
    """A computation that the exception which is to end it does not reach."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            (Path(tempfile.gettempdir()) / "file").touch()
            time.sleep(seconds)


def test_what_does_not_end_when_it_is_told_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(parallel, "_GRACE_SECONDS", 0.5)
    results = compute_all(hear_nothing, {"short": (0,), "long": (120,)}, processes=2)
    assert next(results) == ("short", None)
    deadline = time.monotonic() + 20
    while not list(tmp_path.rglob("file")) and time.monotonic() < deadline:
        time.sleep(0.02)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 60 and no_children_left()
    assert list(tmp_path.iterdir()) == []

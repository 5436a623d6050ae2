"""Which Dynamo runs, and the errors where there is none."""

from __future__ import annotations

import json
import sys
import threading

import pytest

from pytest_dynamo_bench import Configuration, Worker
from pytest_dynamo_bench.dynamo import environment
from pytest_dynamo_bench.dynamo.abilities import abilities, untried
from pytest_dynamo_bench.dynamo.environment import (
    dynamos_of,
    interpreter,
    kept_environment,
    resolve,
    variables_for,
    wheels,
)
from pytest_dynamo_bench.dynamo.kept import KeptEnvironment, all_kept, caches
from pytest_dynamo_bench.dynamo.option_check import parse_command
from pytest_dynamo_bench.dynamo.releases import DYNAMO_RELEASE
from pytest_dynamo_bench.errors import BenchmarkError, TargetError
from tests.any_configuration import benchmark_with
from tests.which_dynamo.environments import each_other, made_up, skip_unless_there

AGG = Configuration("agg", "baseline", [Worker(2)])


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def kept(version):
    """As ``install-dynamo`` leaves it."""
    found = kept_environment([version])
    with found.making({"version": version}) as made:
        made_up(made.directory, version)
    return found


# -- what is found ---------------------------------------------------------------------------------


def test_without_a_name_it_is_that_of_this_interpreter():
    pytest.importorskip("dynamo.frontend")
    found = resolve(None)
    assert (found.python, found.version, found.source) == (sys.executable, DYNAMO_RELEASE, "")
    assert {"dynamo.frontend", "dynamo.mocker", "dynamo.replay"} <= found.modules.keys()


def test_the_version_is_that_of_the_python_that_is_named(tmp_path):
    python = made_up(tmp_path / "build", "7.8.9.dev1", ("frontend",))
    for spec in (str(python), str(tmp_path / "build")):
        found = resolve(spec)
        assert (found.python, found.version, found.source) == (str(python), "7.8.9.dev1", spec)
    assert "dynamo.frontend" in found.modules and "dynamo.mocker" not in found.modules


def test_a_release_is_found_where_it_was_installed():
    made = kept("7.8.9")
    assert resolve("7.8.9").python == str(made.python) == interpreter("7.8.9")
    assert made.directory == caches() / "dynamo-7.8.9" and made.complete
    assert [item.directory.name for item in all_kept()] == ["dynamo-7.8.9"]
    made.remove()
    assert all_kept() == []


def test_another_python_does_not_get_the_packages_of_this_one():
    given = {"PYTHONPATH": "/here", "VIRTUAL_ENV": "/there", "PATH": "/bin"}
    assert variables_for("1.6.1", given) == {"PATH": "/bin"}
    assert variables_for(None, given) == given


def test_a_worker_comes_before_its_configuration_and_that_before_the_option():
    split = [Worker(1, mode="prefill", dynamo="w"), Worker(1, mode="decode")]
    named = Configuration("named", "treatment", split, dynamo="c")
    benchmark = benchmark_with(AGG, "vllm").with_configurations(
        [AGG, named, AGG.but(name="other", role="treatment")]
    )
    asked = benchmark.with_dynamo([("", "o"), ("other", "p"), ("of-another-benchmark", "q")])
    assert [item.dynamos for item in asked.configurations] == [
        {"frontend": "o", "aggregated": "o"},
        {"frontend": "c", "prefill": "w", "decode": "c"},
        {"frontend": "p", "aggregated": "p"},
    ]
    assert benchmark.with_dynamo([]) == benchmark


def test_what_is_not_given_is_not_in_what_is_stored():
    assert "dynamo" not in json.dumps(AGG.as_dict())
    assert AGG.but(dynamo="1.6.1").as_dict()["dynamo"] == "1.6.1"


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", 1.6, 1])
def test_what_cannot_be_a_dynamo_is_refused_when_it_is_written(value):
    for make in (lambda: AGG.but(dynamo=value), lambda: Worker(1, dynamo=value)):
        with pytest.raises(BenchmarkError, match="dynamo: must be a release"):
            make()


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("9.9.9", "Dynamo 9.9.9 is not installed; install it with: .* install-dynamo 9.9.9"),
        ("latest", "'latest' is neither a release, such as 1.6.1, nor a file or directory"),
        ("{tmp}/no/python", "is neither a release"),
        ("{tmp}", "there is no wheel of Dynamo"),
        ("{tmp}/text", "text is no Python"),
        ("{tmp}/plain/bin/python", "has no Dynamo; install it there with: .* -m pip install"),
    ],
)
def test_what_is_not_there_is_said_with_the_remedy(spec, told, tmp_path):
    (tmp_path / "text").write_text("not a program")
    made_up(tmp_path / "plain", "", ())
    configuration = AGG.but(dynamo=spec.format(tmp=tmp_path))
    with pytest.raises(TargetError, match=f"configuration 'agg': .*{told}"):
        dynamos_of(configuration)


def test_an_environment_that_was_not_made_to_the_end_is_none(tmp_path):
    found = kept_environment(["7.8.9"])

    def interrupted():
        with found.making({}) as made:
            made_up(made.directory, "7.8.9")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not found.begun
    # As kill -9 leaves it.
    made_up(found.unfinished, "7.8.9")
    with pytest.raises(TargetError, match=r"7\.8\.9 was not installed to the end; install it with"):
        resolve("7.8.9")
    assert [item.complete for item in all_kept()] == [False]
    with found.making({"version": "7.8.9"}) as made:
        assert not list(made.directory.iterdir())
        made_up(made.directory, "7.8.9")
    assert found.complete and resolve("7.8.9").version == "7.8.9" and not found.unfinished.exists()


def test_two_do_not_make_the_same_at_a_time():
    found = kept_environment(["7.8.9"])
    said = []

    def second():
        try:
            with found.making({}):
                pass
        except TargetError as error:
            said.append(str(error))

    with found.making({"version": "7.8.9"}) as made:
        made_up(made.directory, "7.8.9")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert said == ["dynamo-7.8.9 is being installed by another process; wait for it"]
    assert found.complete


TAGS = "cp310-abi3-manylinux_2_28_x86_64"


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["ai_dynamo_runtime-1.0-cp310-abi3-win_amd64.whl"], "is for another platform than this"),
        (["ai_dynamo-1.0-py3-none-any.whl", "ai_dynamo-1.1-py3-none-any.whl"], "2 wheels of ai-"),
        (["ai_dynamo-1.0.whl"], "is no wheel"),
        (["numpy-1.0-py3-none-any.whl"], "is a wheel of numpy, not of Dynamo"),
    ],
)
def test_wheels_that_cannot_be_used_are_refused(names, told, tmp_path):
    files = [tmp_path / name for name in names]
    for file in files:
        file.touch()
    with pytest.raises(TargetError, match=told):
        resolve(",".join(map(str, files)))


def test_wheels_are_told_apart_by_what_is_in_them(tmp_path):
    wheel = tmp_path / "ai_dynamo-1.7.0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    first = kept_environment([str(tmp_path)])
    assert wheels([str(tmp_path)]) == [wheel]
    assert first == kept_environment([str(wheel)])
    assert first.directory.name.startswith("dynamo-1.7.0-")
    wheel.write_bytes(b"two")
    assert kept_environment([str(tmp_path)]) != first


# -- what it can do --------------------------------------------------------------------------------


def test_a_release_that_has_not_been_tried_says_so(tmp_path):
    new = resolve(str(made_up(tmp_path / "new", "99.0.0")))
    (note,) = untried(new, new)
    assert "Dynamo 99.0.0 has not been tried" in note
    with pytest.raises(TargetError, match=r"Dynamo 99\.0\.0 of .* does not answer"):
        abilities(new)


def test_the_release_of_this_interpreter_has_the_defects_that_are_mended_for_it():
    pytest.importorskip("dynamo.frontend")
    own = resolve(None)
    assert untried(own) == ()
    found = abilities(own)
    assert found.replay_command and not found.hands_over_at_once
    assert not (found.attention_dp_in_a_split or found.trtllm_in_a_split or found.host_offload)


@each_other
def test_another_release_is_asked_what_it_can_do(python):
    skip_unless_there(python)
    found = resolve(python)
    assert found.python == python and found.version != DYNAMO_RELEASE
    assert abilities(found).hands_over_at_once
    mocker = parse_command(found, "dynamo.mocker", [], {})
    assert ("--num-host-blocks" in mocker.options) == bool(abilities(found).host_offload)
    assert {"max_num_seqs", "dp_size"} <= set(mocker.replayed)


def test_places_are_below_the_users_caches(tmp_path, monkeypatch):
    assert KeptEnvironment.named("x").directory.parent == caches()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert caches().is_absolute() and environment.INSTALL_COMMAND.endswith("install-dynamo")

"""Options and variables of Dynamo that a configuration gives by their own names."""

from __future__ import annotations

import argparse
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Configuration, Worker
from pytest_dynamo_bench.attribution import plan
from pytest_dynamo_bench.dynamo.option_check import ParsedCommand, refuse_unknown
from pytest_dynamo_bench.dynamo_options import option_arguments
from pytest_dynamo_bench.errors import BenchmarkError, TargetError
from pytest_dynamo_bench.reports.stored_types import Deployment
from pytest_dynamo_bench.targets.kubernetes.manifest import render
from pytest_dynamo_bench.targets.kubernetes.settings import ClusterSettings
from pytest_dynamo_bench.verdicts import confounds
from tests.any_configuration import ENGINES, benchmark_with
from tests.kubernetes.forms import OPERATORS, components, shared_env

AGG = Configuration("agg", "baseline", [Worker(2)], router="kv")
WARM = AGG.but(name="warm", role="treatment", frontend_args={"router-temperature": 0.5})

names = st.from_regex(r"x[a-z0-9]{0,6}(-[a-z0-9]{1,6}){0,2}", fullmatch=True)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
scalars = texts | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
several = st.lists(scalars.filter(lambda value: not str(value).startswith("-")), min_size=1)
options = st.dictionaries(names, st.booleans() | scalars | several, max_size=6)


def read(argv, given):
    """What a program reads that has exactly these options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name, value in given.items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{name}", nargs="+" if isinstance(value, tuple) else None)
    found = vars(parser.parse_args(argv))
    return {name: found[name.replace("-", "_")] for name in given}


@given(options)
def test_a_program_reads_every_option_as_it_was_given(given):
    kept = AGG.but(frontend_args=given).frontend_args
    expected = {
        name: value
        if isinstance(value, bool)
        else [str(item) for item in value]
        if isinstance(value, tuple)
        else str(value)
        for name, value in kept.items()
    }
    assert len(kept) == len(given)
    assert read(option_arguments(kept), kept) == expected


@given(options, st.sampled_from(ENGINES), st.sampled_from(OPERATORS))
def test_a_manifest_loses_no_option_and_no_variable(given, engine, operator):
    variables = {name.replace("-", "_").upper(): "1" for name in given}
    variables = {name: value for name, value in variables.items() if "KEY" not in name}
    configuration = Configuration(
        "any", "baseline", [Worker(2, engine_args=given, env=variables)],
        frontend_args=given, env=variables,
    )  # fmt: skip
    benchmark = benchmark_with(configuration, engine)
    (*_, graph) = render(benchmark, configuration, SETTINGS, "run", operator)
    shown = [{"name": name, "value": "1"} for name in variables]
    assert shared_env(graph) == shown
    for name in ("Frontend", "agg"):
        container = components(graph)[name]["container"]
        expected = option_arguments(configuration.frontend_args)
        assert container["args"][len(container["args"]) - len(expected) :] == expected
    assert [item for item in container.get("env", []) if item in shown] == shown


SETTINGS = ClusterSettings("ns")


def test_an_option_of_the_configuration_takes_the_place_of_the_targets_own():
    worker = Worker(2, engine_args={"trust-remote-code": False})
    configuration = AGG.but(workers=[worker])
    benchmark = benchmark_with(configuration, "sglang")
    (*_, graph) = render(benchmark, configuration, SETTINGS, "run", OPERATORS[-1])
    args = components(graph)["agg"]["container"]["args"]
    assert "--trust-remote-code" not in args and args[-1] == "--no-trust-remote-code"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"frontend_args": {"router-mode": "kv"}}, "--router-mode: use Configuration.router"),
        ({"frontend_args": {"--http-port": 1}}, "--http-port: leave it out"),
        ({"frontend_args": {"router_temperature": 1}}, "did you mean 'router-temperature'"),
        ({"frontend_args": {"-x": 1}}, "'-x' is not a valid option name"),
        ({"frontend_args": {"x": None}}, "--x: must be text, a number"),
        ({"frontend_args": {"x": float("nan")}}, "--x: must be text, a number"),
        ({"frontend_args": {"x": []}}, "the list is empty"),
        ({"frontend_args": {"x": ["-y"]}}, "'-y' is not allowed in a list of values"),
        ({"frontend_args": [("x", 1), ("--x", 2)]}, "duplicate option --x"),
        ({"frontend_args": {"x": True, "no-x": True}}, "duplicate option --x"),
        ({"frontend_args": "x"}, "must map names to values"),
        ({"frontend_args": {"api-key": "k"}}, "--api-key looks like a secret"),
        ({"env": {"DYN_ROUTER_MODE": "kv"}}, "env: DYN_ROUTER_MODE: use Configuration.router"),
        ({"env": {"A B": "1"}}, "'A B' is not a valid environment variable name"),
        ({"env": {"A": True}}, "env: A: must be text or a number"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(fields, told):
    with pytest.raises(BenchmarkError, match="Configuration 'agg'") as error:
        AGG.but(**fields)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("tensor-parallel-size", "use Worker.tp"),
        ("num-gpu-blocks-override", "use Worker.kv_blocks"),
        ("page-size", "use Configuration.block_size"),
        ("no-enable-prefix-caching", "use Worker.prefix_caching"),
        ("speculative-config", "use Worker.speculative"),
    ],
)
def test_an_option_that_a_field_stands_for_is_refused(option, told):
    with pytest.raises(BenchmarkError, match=told):
        Worker(1, engine_args={option: True})


def test_pairs_are_as_good_as_a_mapping_and_dashes_as_none():
    assert AGG.but(frontend_args=[("--router-temperature", 0.5)]) == AGG.but(
        frontend_args={"router-temperature": 0.5}
    )
    assert AGG.but(frontend_args={"no-router-kv-events": True}).frontend_args == {
        "router-kv-events": False
    }
    assert len({AGG, WARM, AGG.but()}) == 2


def test_what_is_unlike_any_option_of_the_program_gets_no_suggestion():
    parsed = ParsedCommand(options={"--router-temperature": "router_temperature"})
    with pytest.raises(TargetError, match="has no option --router-temperture; did you mean --rout"):
        refuse_unknown("configuration 'a'", "p", {"router-temperture": 1}, parsed)
    with pytest.raises(TargetError, match=r"has no option --zzz$"):
        refuse_unknown("configuration 'a'", "p", {"zzz": 1}, parsed)


# -- differences -----------------------------------------------------------------------------------


def test_each_option_differs_by_its_own_name():
    hot = WARM.but(
        frontend_args={"router-temperature": 1, "router-kv-events": False}, env={"DYN_X": 1},
        workers=[Worker(2, engine_args={"max-model-len": 9}, env={"Y": "2"})],
    )  # fmt: skip
    assert [str(item) for item in confounds(hot, WARM)] == [
        "workers: --max-model-len: 9 against not given",
        "workers: env Y: 2 against not given",
        "frontend --router-temperature: 1 against 0.5",
        "frontend --router-kv-events: off against not given",
        "env DYN_X: 1 against not given",
    ]


def test_the_options_of_a_split_are_named_with_their_roles():
    split = AGG.but(
        workers=[Worker(1, mode="prefill", engine_args={"x": 1}), Worker(1, mode="decode")]
    )
    assert "workers: --x: 1 (prefill), not given (decode) against not given (aggregated)" in [
        str(item) for item in confounds(split, AGG)
    ]


def test_every_option_is_a_feature_of_its_own_in_an_attribution():
    hot = AGG.but(
        name="hot", router="random", frontend_args={"router-temperature": 1}, env={"DYN_X": 1},
        workers=[Worker(2, engine_args={"max-model-len": 9})],
    )  # fmt: skip
    made = plan(AGG.but(frontend_args={"router-ttl-secs": 3}), hot, [("kv_routing", "env.DYN_X")])
    assert made.features == (
        "engine.max-model-len",
        "frontend.router-temperature",
        "frontend.router-ttl-secs",
        "kv_routing+env.DYN_X",
    )
    temperature = made.configurations[frozenset(["frontend.router-temperature"])]
    assert temperature.frontend_args == {"router-temperature": 1, "router-ttl-secs": 3}
    assert temperature.router == "kv" and temperature.env == {}
    without = made.configurations[frozenset(["frontend.router-ttl-secs", "engine.max-model-len"])]
    assert without.frontend_args == {}
    assert without.workers[0].engine_args == {"max-model-len": 9}


def test_an_option_of_one_role_goes_with_the_split_or_without_it():
    split = AGG.but(
        name="split",
        workers=[Worker(1, mode="prefill", engine_args={"x": 1}), Worker(1, mode="decode")],
    )
    made = plan(AGG, split)
    assert made.features == ("pd_split", "engine.x")
    alone = made.configurations[frozenset(["pd_split"])]
    assert [worker.engine_args for worker in alone.workers] == [{}, {}]
    assert made.configurations[frozenset(["engine.x"])].workers[0].engine_args == {"x": 1}


# -- secrets ---------------------------------------------------------------------------------------


def test_no_value_of_a_secret_is_shown_anywhere():
    workers = [Worker(2, env={"MY_API_KEY": "hush"})]
    secret = AGG.but(name="secret", env={"HF_TOKEN": "hush", "DYN_TOKENIZER": "x"}, workers=workers)
    told = secret.as_dict()
    assert told["env"] == {"HF_TOKEN": "***", "DYN_TOKENIZER": "x"}
    assert secret.env["HF_TOKEN"] == "hush"
    shown = [repr(secret), json.dumps(told), msgspec.convert(told, Deployment).in_words]
    shown += map(str, confounds(secret, AGG))
    assert not any("hush" in text for text in shown)
    assert "env HF_TOKEN: *** against not given" in shown
    with pytest.raises(TargetError, match="MY_API_KEY looks like a secret") as error:
        render(benchmark_with(secret, "vllm"), secret, SETTINGS, "run", OPERATORS[-1])
    assert "hush" not in str(error.value)

"""Targets of a user's own: registered by a conftest.py or a plugin, they are as good as ours."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench import Claim
from pytest_dynamo_bench.cli.main import main
from pytest_dynamo_bench.cli.modules import known_targets
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.targets import OptionGroup, TargetDefinition, option
from pytest_dynamo_bench.targets.options import without_secrets
from pytest_dynamo_bench.targets.registry import OURS
from tests.test_plugin import BENCHMARK, CONFTEST, PROJECT, project  # noqa: F401

OWN = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
from pytest_dynamo_bench.targets import OptionGroup, TargetDefinition, option

def make(option):
    from tests.fake_target import FakeTarget
    target = FakeTarget(factors={{"kv": option("my_factor")}})
    target.name = "my-cluster"
    return target

def show(benchmark, configurations, options):
    for configuration in configurations:
        yield f"# {{benchmark.name}}: {{configuration.name}} as {{options.my_form}}"

def pytest_dynamo_bench_targets():
    factor = option("--my-factor", type=float, default=1.0, help="how slow it is")
    return [TargetDefinition(
        name="my-cluster", summary="a cluster of ours", make=make, like="kubernetes",
        options=[OptionGroup("my cluster", [factor])],
        show=show, show_options=[option("--my-form", default="a table")],
    )]
"""
NAMING_IT = BENCHMARK.replace(
    "claims=[",
    'claims=[Claim.lower("Much faster", TTFT, KV, AGG, my_cluster=(0.7, "?")),\n',
)


def definition(**changes):
    fields = {"name": "my-cluster", "summary": "ours", "make": lambda option: None}
    return TargetDefinition(**{**fields, **changes})


@pytest.fixture(params=["initial conftest", "-p plugin", "installed plugin"])
def registered(request, pytester):
    """A project in which a target is registered in one of the ways that there are."""
    pytester.makepyfile(test_example=NAMING_IT)
    if request.param == "initial conftest":
        pytester.makeconftest(OWN)
        return []
    pytester.makepyfile(my_plugin=OWN)
    pytester.syspathinsert()
    if request.param == "-p plugin":
        return ["-p", "my_plugin"]
    metadata = pytester.mkdir("my_plugin-1.0.dist-info")
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\nRequires-Dist: pytest-dynamo-bench\n"
    )
    (metadata / "entry_points.txt").write_text("[pytest11]\nmine = my_plugin\n")
    return []


def test_its_options_are_in_the_help(pytester, registered):
    result = pytester.runpytest(*registered, "--help")
    result.stdout.fnmatch_lines(
        ["NVIDIA Dynamo benchmarks: my cluster:", "  --my-factor=MY_FACTOR", "*how slow it is"]
    )


def test_claims_are_made_that_name_it_or_that_it_is_like(pytester, registered):
    result = pytester.runpytest(
        *registered, "--dynamo-target=my-cluster", "--my-factor=0.5", "-k", "not split"
    )
    result.assert_outcomes(passed=2, failed=1, deselected=1)
    result.stdout.fnmatch_lines(
        ["fails: Much faster", "example on my-cluster: *", "provisional  Only elsewhere"]
    )


def test_its_options_are_read(pytester, registered):
    result = pytester.runpytest(
        *registered, "--dynamo-target=my-cluster", "--my-factor=0.1", "-k", "much-faster"
    )
    result.assert_outcomes(passed=1, deselected=3)


def test_a_target_takes_the_place_of_one_of_the_same_name(project):  # noqa: F811
    pytester = project()
    conftest = pytester.path / "conftest.py"
    assert "dataclasses.replace(LOCAL" in conftest.read_text()
    pytester.runpytest("-s", "-k", "kv-routing-is").stdout.fnmatch_lines(["*MEASURED kv*"])


def test_a_conftest_that_is_found_late_can_register_a_target(pytester):
    directory = pytester.mkdir("deeper")
    (directory / "conftest.py").write_text(OWN)
    (directory / "test_example.py").write_text(NAMING_IT)
    result = pytester.runpytest("--dynamo-target=my-cluster", "-k", "much-faster")
    result.assert_outcomes(failed=1, deselected=3)


def test_a_claim_about_a_target_that_nobody_registered_is_an_error_of_collection(pytester):
    pytester.makeconftest(OWN)
    pytester.makepyfile(test_example=NAMING_IT.replace("my_cluster=", "my_clutser="))
    result = pytester.runpytest("-k", "kv-routing-is")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["test_example.py: Claim 'Much faster': 'my_clutser' is not a target; targets: local, "
         "replay, kubernetes, endpoint, my_cluster; did you mean 'my_cluster'?*"]
    )  # fmt: skip


def test_the_command_line_finds_the_targets_beside_a_module(pytester, monkeypatch, capsys):
    module = str(pytester.makepyfile(test_own=NAMING_IT))
    monkeypatch.chdir(pytester.path)
    assert main(["show", module, "--target=replay"]) == 2
    assert "Claim 'Much faster': 'my_cluster' is not a target" in capsys.readouterr().err
    pytester.makeconftest(OWN)
    shown = ["show", module, "--target=my-cluster", "--configuration=kv"]
    assert main([*shown, "--my-form=a tree"]) == 0
    assert capsys.readouterr().out == "# example: kv as a tree\n"


def test_the_command_line_finds_the_targets_of_plugins_that_need_the_package(pytester):
    metadata = pytester.mkdir("my_plugin-1.0.dist-info")
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-plugin\nVersion: 1.0\n"
        "Requires-Dist: pytest-dynamo-bench>=0.1\n"
    )
    (metadata / "entry_points.txt").write_text("[pytest11]\nmine = my_plugin\n")
    pytester.makepyfile(my_plugin=OWN)
    names = (
        "from pytest_dynamo_bench.cli.modules import known_targets\n"
        "print(*[target.name for target in known_targets([])])"
    )
    result = pytester.run(sys.executable, "-c", names)
    assert result.outlines == ["local replay kubernetes endpoint my-cluster"]


def test_the_former_hook_still_works_and_says_what_to_implement(project):  # noqa: F811
    pytester = project()
    pytester.makeconftest(
        CONFTEST.format(project=str(PROJECT), settings={}).partition("def ")[0]
        + "def pytest_dynamo_bench_make_target(config, name):\n"
        "    return target if name == 'local' else None\n"
    )
    result = pytester.runpytest("-k", "kv-routing-is")
    result.assert_outcomes(passed=1, deselected=2, warnings=1)
    result.stdout.fnmatch_lines(["*DeprecationWarning*implement pytest_dynamo_bench_targets()*"])


@pytest.mark.parametrize(
    ("conftest", "message"),
    [
        (
            OWN.replace("--my-factor", "--dynamo-seconds"),
            "*its option --dynamo-seconds is another*",
        ),
        (OWN.replace('like="kub', 'like="cub'), "*like 'cubernetes', which is not a target*did*"),
        (OWN.replace('"my-cluster"\n', '"yours"\n'), "*what it makes calls itself 'yours'*"),
        (OWN.replace('name="my-c', 'name="My C'), "*target 'My Cluster': its name must be lower*"),
        (OWN + "pytest_dynamo_bench_targets = lambda: 1", "*1 is not a TargetDefinition*"),
    ],
)
def test_what_is_wrong_with_a_target_is_a_usage_error(pytester, conftest, message):
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_example=BENCHMARK)
    result = pytester.runpytest("--dynamo-target=my-cluster")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_target_that_measures_as_targets_once_did_is_a_usage_error(pytester):
    older = (
        "class Older(FakeTarget):\n"
        "    def measure(self, benchmark, configuration, traffic, directory, progress, *, "
        "repeat=0):\n        raise AssertionError\n"
        "target = Older()\n"
    )
    conftest = CONFTEST.format(project=str(PROJECT), settings={})
    pytester.makeconftest(conftest.replace("\ndef ", older + "\ndef "))
    pytester.makepyfile(test_example=BENCHMARK)
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*'local': Older.measure must take (planned, progress)*"])


def test_the_example_measures_and_is_claimed_on_as_the_target_that_it_is_like(
    pytester, monkeypatch
):
    pytest.importorskip("dynamo.replay")
    monkeypatch.setenv("DYNAMO_BENCH_REQUESTS", "40")
    for file in (PROJECT / "examples" / "own_target").glob("*.py"):
        (pytester.path / file.name).write_text(file.read_text())
    result = pytester.runpytest("--dynamo-target=loaded-replay", "--loaded-by=2", "-rs")
    outcomes = result.parseoutcomes()
    assert outcomes.get("passed", 0) + outcomes.get("skipped", 0) == 2
    result.stdout.no_fnmatch_line("*not claimed*")
    result.stdout.fnmatch_lines(
        ["own_target on loaded-replay, *", "*requests arrive 2 times as fast as recorded*"]
    )
    (run,) = pytester.path.glob("reports/*/own_target/agg/run.json")
    found = json.loads(run.read_text())
    assert (found["target"], found["deployed"]["speedup"]) == ("loaded-replay", 2)


NAMES = st.sampled_from(["local", "replay", "kubernetes", "endpoint", "my_cluster", "other"])


@given(st.dictionaries(NAMES, st.floats(0, 0.9), min_size=1), NAMES, st.lists(NAMES, max_size=3))
def test_a_claim_is_made_by_the_first_name_that_it_has(thresholds, name, like):
    claim = Claim("c", "kv_hit_rate", "kv", "agg", higher_by=thresholds)
    first = next((item for item in (name, *like) if item in thresholds), None)
    bound = claim.bound(name.replace("_", "-"), *like)
    assert (None if bound is None else bound.limit) == thresholds.get(first)


def test_endpoint_is_like_kubernetes_by_its_own_word():
    targets = known_targets([])
    assert targets.claimed_on("endpoint") == ("endpoint", "kubernetes")
    targets.add(definition(like="endpoint"))
    assert targets.claimed_on("my-cluster") == ("my-cluster", "endpoint", "kubernetes")
    assert targets.claimed_on("nobody's") == ("nobody's",)


def test_options_are_shared_by_being_the_same():
    local = next(target for target in OURS if target.name == "local")
    targets = known_targets([])
    assert targets.add(definition(options=local.options)) == []
    with pytest.raises(TargetError, match="its option --dynamo-scale is another one's already"):
        targets.add(definition(options=[OptionGroup("mine", [option("--dynamo-scale")])]))


def test_a_secret_of_ones_own_is_not_shown():
    secret = option("--my-key", shown=lambda value: "***")
    given = ["--my-key=abc", "--my-key", "def", "--other", "--my-keys=x"]
    shown = ["--my-key=***", "--my-key", "***", "--other", "--my-keys=x"]
    assert without_secrets(given, [secret, option("--other")]) == shown


def test_what_is_loaded_in_every_session_is_light():
    heavy = ("numpy", "scipy", "pandas", "pyarrow", "jinja2", "httpx", "kubernetes")
    code = f"import sys, pytest_dynamo_bench.plugin; print({{*{heavy}}} & {{*sys.modules}})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"

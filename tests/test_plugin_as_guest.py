"""What the plugin does to sessions that are not about it, and to tests beside a benchmark."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.test_plugin import BENCHMARK, CONFTEST, PROJECT

CHILDREN = """
import os, signal, time
import pytest

def child():
    try:
        time.sleep(5)
    finally:
        os._exit(3)

def end_codes(times):
    # Not multiprocessing: it waits for what this must catch, a signal in the first microseconds.
    codes = set()
    while times and not codes - {-signal.SIGTERM}:
        times -= 1
        pid = os.fork()
        if pid == 0:
            child()
        os.kill(pid, signal.SIGTERM)
        codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes
"""

FOREIGN = (
    CHILDREN
    + """
import multiprocessing

class Lazy:
    def __getattribute__(self, name):
        raise RuntimeError(f"who asks for {name}?")

benchmark = Lazy()

@pytest.fixture
def comparison():
    return "mine"

@pytest.fixture(params=["one", "two"])
def claim(request):
    return request.param

def test_the_handler_of_sigterm_is_the_systems():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

def test_a_child_can_be_terminated():
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    time.sleep(0.1)
    process.terminate()
    process.join(10)
    assert process.exitcode == -signal.SIGTERM

def test_fixtures_are_its_own(comparison, claim):
    assert comparison == "mine" and claim in ("one", "two")

def test_names_of_markers_are_free(request):
    names = {line.split(":")[0] for line in request.config.getini("markers")}
    assert not names & {"kv_routing", "offload", "multi_node", "wideep"}
"""
)


def run(pytester, *arguments):
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)


@pytest.fixture
def benchmark_project(pytester):
    def make(module, **settings):
        pytester.makeconftest(CONFTEST.format(project=str(PROJECT), settings=settings))
        pytester.makepyfile(test_example=module)
        return pytester

    return make


def test_a_session_without_a_benchmark_is_left_alone(pytester):
    pytester.makepyfile(FOREIGN)
    run(pytester, "-W", "error", "--dynamo-dry-run").assert_outcomes(passed=5)


def test_nothing_is_offered_where_there_is_no_benchmark(pytester):
    pytester.makepyfile("def test_it(comparison): pass")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'comparison' not found"])
    offered = run(pytester, "--fixtures").stdout.str() + run(pytester, "--markers").stdout.str()
    assert "comparison" not in offered and "offload" not in offered


def test_a_marker_that_nobody_registered_is_a_mistake(pytester):
    pytester.makepyfile("import pytest\n@pytest.mark.offload\ndef test_it(): pass")
    result = run(pytester, "--strict-markers")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'offload' not found in `markers` configuration option*"])


def test_with_a_benchmark_features_can_be_asked_for_strictly(benchmark_project):
    result = run(benchmark_project(BENCHMARK), "--strict-markers", "--co", "-q", "-m",
                 "pd_split and not offload")  # fmt: skip
    result.stdout.fnmatch_lines(["*split-is-faster*", "1/3 tests collected*"])
    assert "comparison" in run(benchmark_project(BENCHMARK), "--fixtures").stdout.str()


def test_a_benchmark_of_another_name_is_pointed_out(benchmark_project):
    module = BENCHMARK.replace("benchmark = ", "bench = ").replace("(claim, comp", "(comp")
    result = run(benchmark_project(module))
    result.stdout.fnmatch_lines(["*needs a Benchmark named 'benchmark' in the module*"])


def test_the_author_can_say_which_claims_a_test_is_about(benchmark_project):
    module = BENCHMARK + (
        "import pytest\n"
        "@pytest.mark.parametrize('claim', benchmark.claims[:1])\n"
        "def test_first(claim, comparison):\n    comparison.check(claim)\n"
        "@pytest.mark.parametrize(argnames=['word', 'claim'], argvalues=[('any', 'thing')])\n"
        "def test_word(claim, word):\n    assert claim == 'thing'\n"
    )
    run(benchmark_project(module), "-k", "first or word").assert_outcomes(passed=2, deselected=3)


BESIDE = (
    BENCHMARK
    + CHILDREN
    + """
def test_children_of_a_test_that_measures(comparison):
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert end_codes(50) == {-signal.SIGTERM}
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())

def test_beside_it():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert end_codes(1) == {-signal.SIGTERM}
"""
)


def test_children_die_of_sigterm_as_they_do_without_the_plugin(benchmark_project):
    run(benchmark_project(BESIDE), "-k", "children or beside").assert_outcomes(
        passed=2, deselected=3
    )


def test_a_handler_of_somebody_else_stays(benchmark_project):
    module = (
        "import signal\nmine = lambda *_: None\nsignal.signal(signal.SIGTERM, mine)\n"
        + BENCHMARK
        + "def test_handler(comparison):\n    assert signal.getsignal(signal.SIGTERM) is mine\n"
    )
    run(benchmark_project(module), "-k", "handler").assert_outcomes(passed=1, deselected=3)


def test_sigterm_in_a_measurement_ends_the_session_with_a_summary(benchmark_project):
    pytester = benchmark_project(BENCHMARK)
    conftest = pytester.path / "conftest.py"
    conftest.write_text(
        conftest.read_text() + "\nimport os, signal\nmeasure = target.measure\n"
        "def killed(planned, progress):\n"
        "    if planned.configuration.name == 'split':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return measure(planned, progress)\n"
        "target.measure = killed\n"
    )
    result = run(pytester)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(
        ["*dynamo benchmarks*", "agg  *16 *", "kv  *16 *", "results: *", "*KeyboardInterrupt*"]
    )


def test_warnings_of_other_plugins_are_no_errors_for_users_of_a_clone(tmp_path):
    (tmp_path / "warner.py").write_text(
        "import warnings\ndef pytest_configure():\n    warnings.warn('old', DeprecationWarning)\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks", "--co", "-q", "-p", "warner",
         "-p", "no:cacheprovider"],
        cwd=PROJECT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(PROJECT)])},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(Path(PROJECT, "benchmarks").glob("*.py"))


def test_warnings_are_errors_here():
    with pytest.raises(UserWarning):
        warnings.warn("a warning", stacklevel=1)

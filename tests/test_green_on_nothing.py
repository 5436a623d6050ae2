"""Whatever compares or shows stored results fails when a part of them is missing, and names it.

Every kind of damage meets every command; a healthy pair of results passes them all.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from pytest_dynamo_bench.cli.main import main
from tests.reports.making import make_session

PROJECT = Path(__file__).parent.parent
MODULE = """
from tests.reports.making import example

benchmark = example()

def test_claim(claim, comparison):
    comparison.check(claim)
"""
CONFTEST = f"""
import dataclasses, sys
sys.path.insert(0, {str(PROJECT)!r})
from pytest_dynamo_bench.targets.local import LOCAL
from tests.reports.making import TextTarget

def pytest_dynamo_bench_targets():
    target = TextTarget("", factors={{"kv": 0.5, "split": 0.5}})
    return dataclasses.replace(LOCAL, make=lambda option: target)
"""
FACTORS = {"kv": 0.5, "split": 0.5}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """Results of the benchmark that the project below has."""
    return make_session(tmp_path_factory.mktemp("results") / "healthy", factors=FACTORS)


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def empty(results):
    shutil.rmtree(results)
    results.mkdir()


def bare(results):
    empty(results)
    (results / "summary.json").write_text('{"version": 1}')


def no_benchmark(results):
    edit(results / "summary.json", benchmarks={})


def foreign(results):
    shutil.rmtree(results)
    make_session(results, name="other", factors=FACTORS)


def renamed(results):
    """The configuration has another name."""
    (results / "example" / "kv").rename(results / "example" / "old-kv")
    for path in (results / "summary.json", results / "example" / "old-kv" / "run.json"):
        path.write_text(path.read_text().replace('"kv"', '"old-kv"'))


def crashed(results):
    shutil.rmtree(results)
    make_session(results, factors=FACTORS, broken=["kv"])


def invalid(results):
    shutil.rmtree(results)
    make_session(results, factors=FACTORS, failing=["kv"])


def other_traffic(results):
    edit(results / "example" / "kv" / "run.json", traffic={"requests": 7})


def missing_repeat(results):
    """There were two runs, and one of them is gone."""
    path = results / "summary.json"
    summary = json.loads(path.read_text())
    summary["benchmarks"]["example"]["runs"]["kv"] *= 2
    path.write_text(json.dumps(summary))


def on_file(name, change):
    def damage(results):
        path = results / "example" / "kv" / name if name != "summary.json" else results / name
        change(path)

    return damage


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)


def fewer_rows(path):
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).slice(0, 10), path)


def without_a_column(path):
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(path).drop_columns(["sent_ms"]), path)


def a_column_of_text(path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    index = table.column_names.index("sent_ms")
    texts = pa.array(["soon"] * table.num_rows)
    pq.write_table(table.set_column(index, "sent_ms", texts), path)


# Each with what is said of it; those of the second group are no damage to a single directory.
DAMAGES = {
    "empty": (empty, r"summary\.json: cannot be read"),
    "bare": (bare, r"summary\.json: is not a summary of results: .*target"),
    "no benchmark": (no_benchmark, r"no (usable )?result"),
    "not JSON": (on_file("summary.json", cut_off), r"summary\.json, line \d+: is not JSON"),
    "newer": (
        on_file("summary.json", lambda path: edit(path, version=2)),
        r"summary\.json: was written by a newer version of pytest-dynamo-bench.*upgrade",
    ),
    "no version": (
        on_file("summary.json", lambda path: edit(path, version=None)),
        r"summary\.json: has version None",
    ),
    "newer run": (
        on_file("run.json", lambda path: edit(path, version=2)),
        r"kv/run\.json: was written by a newer version of pytest-dynamo-bench.*upgrade",
    ),
    "no run.json": (on_file("run.json", Path.unlink), r"kv/run\.json: cannot be read"),
    "half of run.json": (on_file("run.json", cut_off), r"kv/run\.json, line \d+: is not JSON"),
    "wrong type": (
        on_file("run.json", lambda path: edit(path, gpus="many")),
        r"kv/run\.json: is not the description of a run: .*gpus",
    ),
    "no requests": (on_file("requests.parquet", Path.unlink), r"kv/requests\.parquet: cannot"),
    "half of the requests": (
        on_file("requests.parquet", cut_off), r"kv/requests\.parquet: cannot be read",
    ),
    "a flipped byte": (
        on_file("requests.parquet", flip_a_byte), r"kv/requests\.parquet: cannot be read",
    ),
    "fewer requests": (
        on_file("requests.parquet", fewer_rows),
        r"kv/requests\.parquet: has 10 requests, run\.json says 200",
    ),
    "no column": (
        on_file("requests.parquet", without_a_column), r"kv/requests\.parquet: cannot.*sent_ms",
    ),
    "text for numbers": (
        on_file("requests.parquet", a_column_of_text),
        r"kv/requests\.parquet: column sent_ms is string, not double",
    ),
    "missing repeat": (missing_repeat, r"kv/repeat-2/run\.json: cannot be read"),
    "crashed": (crashed, r"example: kv .*has no valid result: kv did not come up"),
    "invalid": (invalid, r"example: kv .*has no valid result: the run of kv is invalid"),
}  # fmt: skip
DIFFERENT = {
    "foreign": (foreign, r"other|'example'"),
    "renamed": (renamed, r"'?old-kv"),
    "other traffic": (other_traffic, r"kv:? .*(not the same|not comparable|something else)"),
}


@pytest.fixture
def damaged(healthy, tmp_path, request):
    """A copy of the healthy results with a damage, and what is said of it."""
    damage, told = (DAMAGES | DIFFERENT)[request.param]
    directory = tmp_path / "damaged"
    shutil.copytree(healthy, directory)
    damage(directory)
    return directory, told


def said(capsys):
    """What a command printed, in one line."""
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize("damaged", [*DAMAGES, *DIFFERENT], indirect=True)
@pytest.mark.parametrize("side", ["new", "old"])
def test_compare_fails_on_what_it_cannot_compare(healthy, damaged, side, capsys):
    directory, told = damaged
    pair = [str(directory), str(healthy)] if side == "new" else [str(healthy), str(directory)]
    assert main(["compare", *pair, "--check"]) in (1, 2)
    assert re.search(told, said(capsys))
    assert main(["compare", *pair]) in (1, 2)


@pytest.mark.parametrize("damaged", [*DAMAGES, *DIFFERENT], indirect=True)
def test_history_fails_on_what_it_cannot_judge(healthy, damaged, capsys):
    directory, told = damaged
    assert main(["history", str(healthy), str(directory)]) == 1
    assert re.search(told, said(capsys))


@pytest.mark.parametrize("damaged", DAMAGES, indirect=True)
def test_report_fails_on_what_it_cannot_show(damaged, capsys):
    directory, told = damaged
    assert main(["report", str(directory)]) in (1, 2)
    assert re.search(told, said(capsys))


@pytest.fixture
def project(pytester):
    pytester.makepyfile(test_example=MODULE)
    pytester.makeconftest(CONFTEST)
    return pytester


def gate(project, directory, *arguments, selected="regression and kv-"):
    result = project.runpytest(f"--dynamo-baseline={directory}", "-k", selected, *arguments)
    return result, " ".join([*result.outlines, *result.errlines])


@pytest.mark.parametrize("damaged", [*DAMAGES, *DIFFERENT], indirect=True)
def test_the_gate_fails_on_what_it_cannot_compare(project, damaged):
    directory, told = damaged
    result, text = gate(project, directory)
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.USAGE_ERROR)
    assert re.search(told, text) and "INTERNALERROR" not in text
    assert result.parseoutcomes().get("passed", 0) == 0


def test_a_healthy_pair_passes_everywhere(project, healthy, tmp_path, capsys):
    again = shutil.copytree(healthy, tmp_path / "again")
    assert main(["compare", str(again), str(healthy), "--check"]) == 0
    assert main(["history", str(healthy), str(again)]) == 0
    assert main(["report", str(again)]) == 0
    result, _ = gate(project, healthy, selected="regression")
    result.assert_outcomes(passed=9, deselected=4)
    assert result.ret == pytest.ExitCode.OK


def test_what_is_there_is_compared_when_that_is_asked_for(project, healthy, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(healthy, part)
    renamed(part)
    for command in ("report", "history", "compare"):
        others = [str(healthy)] if command != "report" else []
        assert main([command, str(part), *others, "--allow-missing"]) == 0
    assert "old-kv" in said(capsys)
    result, _ = gate(project, part, selected="regression")
    result.assert_outcomes(passed=6, errors=6, deselected=4)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result, _ = gate(project, part, "--dynamo-allow-missing", selected="regression")
    result.assert_outcomes(passed=6, skipped=6, deselected=4)
    assert result.ret == pytest.ExitCode.OK


def test_nothing_at_all_is_never_enough(project, healthy, tmp_path, capsys):
    other = make_session(tmp_path / "other", name="other")
    assert main(["compare", str(other), str(healthy), "--allow-missing"]) == 1
    assert "nothing was compared" in said(capsys)
    assert main(["history", str(healthy), "--allow-missing"]) == 1
    assert "nothing was compared" in said(capsys)
    result, text = gate(project, other, "--dynamo-allow-missing", selected="regression")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "has no results of benchmark 'example'; it has 'other'" in text


def test_a_gate_whose_tests_are_deselected_or_skipped_fails(project, healthy):
    result, text = gate(project, healthy, selected="claim")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "no regression test is selected" in text
    project.makepyfile(
        test_example=MODULE + "import pytest\npytestmark = pytest.mark.skip('not today')\n"
    )
    result, _ = gate(project, healthy, selected="regression")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.outlines[-1].startswith("ERROR: --dynamo-baseline: nothing was compared")


def test_a_dry_run_measures_and_compares_nothing_on_purpose(project, healthy):
    result, _ = gate(project, healthy, "--dynamo-dry-run", selected="regression")
    result.assert_outcomes(skipped=9, deselected=4)
    assert result.ret == pytest.ExitCode.OK


def test_more_in_the_baseline_than_is_selected_is_no_fault(project, healthy):
    result, _ = gate(project, healthy, selected="regression and split-")
    result.assert_outcomes(passed=3, deselected=10)
    assert result.ret == pytest.ExitCode.OK


def test_different_traffic_is_judged_only_when_that_is_asked_for(healthy, tmp_path, capsys):
    directory = shutil.copytree(healthy, tmp_path / "other-traffic")
    other_traffic(directory)
    assert main(["compare", str(healthy), str(directory)]) == 1
    shown = capsys.readouterr().out.partition("example: kv")[2].partition("example: ")[0]
    assert "differs: traffic.requests" in shown
    assert not re.search("unchanged|improvement|regression", shown)
    assert main(["compare", str(healthy), str(directory), "--any"]) == 0


def test_what_is_undecided_fails_the_check_unless_asked_otherwise(tmp_path, capsys):
    pair = [
        str(make_session(tmp_path / f"{noise}", factors=FACTORS, noise=noise)) for noise in (4, 3)
    ]
    arguments = ["compare", *pair, "--check", "--tolerance", "ttft.mean:5%"]
    assert main(arguments) == 1
    assert "are undecided" in said(capsys)
    assert main([*arguments, "--inconclusive=pass"]) == 0


# ---------------------------------------------------------------------------------------
# What could not be written
# ---------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch):
    """A function that has writing files of a name end as on a full disk."""

    def fill(name, after=0):
        opened = Path.open
        written = []

        def failing(path, mode="r", *arguments, **options):
            if "w" in mode and path.name.startswith(f".{name}."):
                written.append(path)
                if len(written) > after:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return opened(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", failing)

    return fill


@pytest.mark.parametrize(
    ("name", "after"),
    [("report.html", 0), ("report.md", 0), ("environment.json", 0), ("run.json", 1),
     ("requests.parquet", 1), ("summary.json", 0), ("summary.json", 2)],
)  # fmt: skip
def test_a_full_disk_fails_the_session(project, full_disk, name, after):
    full_disk(name, after)
    result = project.runpytest("-k", "claim and kv-routing")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert "No space left on device" in text and name in text and "INTERNALERROR" not in text
    if result.parseoutcomes().get("errors", 0) == 0:
        assert result.outlines[-1].startswith("ERROR: reports: ")


@pytest.mark.parametrize("arguments", [(), ("-q",), ("-p", "no:terminal")])
def test_what_could_not_be_written_is_said_last(project, monkeypatch, arguments):
    # A real full device.
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    result = project.runpytest("-k", "claim and kv-routing", *arguments)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    last = [*result.outlines, *result.errlines][-1]
    assert last.startswith("ERROR: reports: GITHUB_STEP_SUMMARY: /dev/full cannot be written")
    assert "No space left on device" in last


def test_results_that_have_no_place_are_an_error(project):
    (project.path / "reports").write_text("a file")
    result = project.runpytest("-k", "claim and kv-routing")
    result.assert_outcomes(errors=1, deselected=3)
    result.stdout.fnmatch_lines(["*reports/*: cannot be written (*"])


@pytest.mark.parametrize("where", ["file/baseline", "/proc/baseline"])
def test_a_baseline_that_cannot_be_saved_fails_the_session(project, where):
    (project.path / "file").write_text("a file")
    result = project.runpytest("-k", "claim and kv-routing", f"--dynamo-save-baseline={where}")
    result.assert_outcomes(passed=1, deselected=3)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert re.match(
        f"ERROR: --dynamo-save-baseline: {where}: cannot be written", result.outlines[-1]
    )


def test_a_baseline_of_nothing_is_not_saved(project):
    project.makepyfile(test_other="def test_other(): pass")
    arguments = ("test_other.py", "--dynamo-save-baseline=kept")
    result = project.runpytest(*arguments)
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.outlines[-1].endswith("kept: not saved, because nothing was measured")


def test_an_earlier_baseline_survives_what_cannot_be_saved(project, healthy, monkeypatch):
    kept = shutil.copytree(healthy, project.path / "kept")
    before = (kept / "summary.json").read_bytes()

    def no_space(source, target, **_):
        why = f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}: {source}"
        raise shutil.Error([(str(source), str(target), why)])

    monkeypatch.setattr(shutil, "copytree", no_space)
    result = project.runpytest("-k", "claim and kv-routing", "--dynamo-save-baseline=kept")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "kept: cannot be written ([Errno 28] No space left on device" in result.outlines[-1]
    assert (kept / "summary.json").read_bytes() == before
    assert [path.name for path in project.path.glob(".kept*")] == []

"""The recorded runs of the shipped claims on local: nothing is measured here."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
MODULES = sorted((PROJECT / "benchmarks").glob("*.py"))


@pytest.fixture(scope="module")
def study():
    path = PROJECT / "performance" / "claims_on_local.py"
    spec = importlib.util.spec_from_file_location("claims_on_local", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.stem)
def test_every_claim_on_local_held_in_its_recorded_runs_and_its_evidence_says_how_often(
    study, module
):
    benchmark = study.load_benchmark(module)
    rows = {row.claim: row for row in study.held(benchmark, study.lines_of(module))}
    for claim in benchmark.claims:
        sides = [benchmark.configuration(name) for name in (claim.treatment, claim.baseline)]
        # Frontend decoding needs NIXL, which no extra installs.
        if claim.bound("local") is None or any("frontend_decoding" in s.features for s in sides):
            continue
        # No row: it was never measured, or with other traffic or configurations.
        outcomes = [verdict.outcome for verdict in rows[claim].verdicts]
        assert set(outcomes) == {"holds"}, claim.name
        said = re.search(r"local: [^;]*; held in (\d+) of (\d+) runs", claim.evidence)
        assert said, claim.evidence
        assert [int(number) for number in said.groups()] == [len(outcomes)] * 2, claim.name


def test_the_page_is_made_from_the_recorded_runs(study, monkeypatch):
    monkeypatch.chdir(PROJECT)
    made = "\n".join(study.page(MODULES)) + "\n"
    assert (PROJECT / "docs" / "claims.md").read_text(encoding="utf-8") == made


def test_power_is_that_of_slack_which_varies(study):
    assert study.power([0.1, 0.1, 0.1]) == 1.0
    assert study.power([0.1, 0.11, 0.09, 0.1]) > 0.99
    # The mean is one standard deviation beyond the limit: Student's t with 3 degrees of freedom.
    assert study.power([0.0, 0.0, 2.0, 2.0]) == pytest.approx(0.77, abs=0.02)
    assert study.power([-0.1, 0.1, -0.1, 0.1]) == pytest.approx(0.5)
    assert study.power([0.1, float("-inf"), 0.1]) == 0.0

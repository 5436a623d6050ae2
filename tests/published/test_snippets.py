"""What is printed besides commands: Python, workflows, options."""

import re
import subprocess
import sys

import pytest
import yaml

from pytest_dynamo_bench.options import OPTIONS
from pytest_dynamo_bench.targets.registry import OURS
from tests.published.commands import PROJECT, blocks, documents

# What a reader puts in, and what a block builds on.
GIVEN = {"reports/…/": "reports/old/"}
ONE_MODULE = next(text for name, text in blocks("python") if name == "docs/write-a-benchmark.md")


@pytest.mark.parametrize(("document", "code"), blocks("python"))
def test_python_runs(document, code, workspace):
    for printed, given in GIVEN.items():
        code = code.replace(printed, given)
    if document == "README.md":
        code = f"{ONE_MODULE}\n{code}"
    where = workspace.directory / ("docs" if document == "docs/verdicts.md" else "")
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=where, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(("document", "content"), blocks("yaml"))
def test_yaml_is_yaml_and_who_comments_on_a_pull_request_may(document, content):
    loaded = yaml.safe_load(content)
    assert loaded
    jobs = loaded.get("jobs", {}).values()
    assert jobs or "gh pr comment" not in content
    for job in jobs:
        if any("gh pr comment" in step.get("run", "") for step in job["steps"]):
            assert job["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_every_option_of_pytest_that_a_page_names_exists():
    groups = [*OPTIONS, *(group for target in OURS for group in target.options)]
    known = {option.flag for group in groups for option in group.options}
    for path in documents():
        for name in re.findall(r"(?<![\w-])--dynamo-[a-z-]*[a-z]", path.read_text("utf-8")):
            assert name in known, f"{path.relative_to(PROJECT)}: {name}"

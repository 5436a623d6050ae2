"""Makes what the documentation shows: output and figures, from stored results or by running.

    python docs/make_examples.py           # what takes seconds
    python docs/make_examples.py --all     # also what simulates the whole traffic, for minutes
    python docs/make_examples.py --check   # write nothing; exit code 1 where something differs

A block of output is found by its first words. What is not made here is in ``BY_HAND``.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROJECT = Path(__file__).parents[1]
DOCS = Path("docs")
_OWN = "python -m pytest_dynamo_bench"
_QWEN = "benchmarks/qwen3_32b_kv_routing.py"
_WIDTH = 80


@dataclass(frozen=True)
class Made:
    """What one command, or one stored session, shows.

    Attributes:
        source: the command, or a function that gives the text.
        blocks: for each block that is shown its document and first words, with the regular
            expression of the first line of the output that is in it, and of the last.
        figures: for each figure that the command writes, where it is shown.
        slow: it simulates the whole traffic.
    """

    source: str | Callable[[], str]
    blocks: Mapping[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    figures: Mapping[str, str] = field(default_factory=dict)
    slow: bool = False


def stored_session() -> str:
    """What the README's first command printed when the sample was measured."""
    from pytest_dynamo_bench.reports.model import load_session
    from pytest_dynamo_bench.reports.store import StoredResults
    from pytest_dynamo_bench.reports.terminal import render_comparison

    directory = PROJECT / "reports" / "samples" / "qwen3-32b-local"
    session = load_session(StoredResults(directory))
    shown = [render_comparison(report, _WIDTH, False) for report in session.comparisons]
    name = f"reports/{re.sub(':', '-', session.started_at[:19])}Z-{session.target}"
    written = [f"report: {name}/report.html", f"report: {name}/report.md", f"results: {name}"]
    return "\n".join([*shown, "", *written])


MADE = (
    Made(stored_session, {("README.md", "qwen3_32b_kv_routing on local"): ("", r"results: ")}),
    Made(
        f"{_OWN} traffic {_QWEN}",
        {("docs/sensitivity.md", "whole "): (r" +whole ", r".*KV cache of prefilling workers")},
    ),
    Made(
        f"{_OWN} sweep {_QWEN} --speedup 0.5,0.75,1,1.25,1.5,2,3",
        {("docs/sensitivity.md", "Highest goodput by load"): (r"Highest goodput", "")},
        {
            "goodput-by-speedup.svg": "qwen3-32b-goodput-by-load.svg",
            "pareto.svg": "qwen3-32b-pareto.svg",
        },
        slow=True,
    ),
    Made(
        f"{_OWN} sweep {_QWEN} --speedup 1 --kv-scale 0.25,0.5,1,2",
        figures={"goodput-by-kv_scale.svg": "qwen3-32b-goodput-by-kv.svg"},
        slow=True,
    ),
    Made(
        f"{_OWN} sweep {_QWEN} --speedup 1,1.5 --split 7+1,6+2,5+3,4+4",
        figures={"goodput-by-split.svg": "qwen3-32b-goodput-by-split.svg"},
        slow=True,
    ),
    Made(
        f"{_OWN} attribution {_QWEN} --baseline agg-round-robin --treatment disagg-kv-router",
        {
            ("README.md", "goodput of disagg-kv-router"): (r"goodput of", r"all together"),
            ("docs/sensitivity.md", "feature "): (r"feature ", r"kv_routing, pd_split"),
        },
        {"attribution.svg": "qwen3-32b-attribution.svg"},
        slow=True,
    ),
    Made(
        f"{_OWN} attribution benchmarks/deepseek_wideep_routing.py --treatment disagg-kv-router "
        "--metric time_to_first_token.mean",
        {
            ("docs/sensitivity.md", "time_to_first_token.mean of"): (
                r"time_to_first_token.mean of",
                r"all together",
            )
        },
        {"attribution.svg": "deepseek-attribution.svg"},
        slow=True,
    ),
)

BY_HAND = {
    ("docs/gate-ci.md", "unchanged  deployed"): "a session of tests/replay/test_gate.py",
    ("docs/gate-ci.md", "_______ ERROR at setup"): "a session of tests/replay/test_gate.py",
    ("docs/gate-ci.md", "________________ regression["): "a session of tests/replay/test_gate.py",
    ("docs/reports.md", "reports/2026"): "a directory, explained",
    ("docs/results.md", "reports/2026"): "a directory, explained",
    ("docs/sensitivity.md", "--metric time_to_first_token.mean"): "options of the command above",
    ("docs/sensitivity.md", "--metric inter_token_latency.mean"): "options of the command above",
}
FIGURES_BY_HAND = {
    "report.png": "a screenshot of reports/samples/qwen3-32b-replay/report.html",
    "load-generator.svg": "python client_benchmark/compare.py report",
}


def output_of(made: Made, directory: Path) -> str:
    """What the command prints; its files are in ``directory``."""
    if not isinstance(made.source, str):
        return made.source()
    words = [sys.executable, *shlex.split(made.source)[1:]]
    if made.figures:
        words += ["--output", str(directory)]
    ran = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{made.source}: exit code {ran.returncode}\n{ran.stderr}")
    return ran.stdout


def excerpt(output: str, first: str, last: str) -> str:
    """The lines of an output from one to another, both included; without a last only one."""
    lines = [line.rstrip() for line in output.splitlines()]
    start = next(index for index, line in enumerate(lines) if re.match(first, line))
    end = start
    if last:
        end = next(i for i in range(start, len(lines)) if re.match(last, lines[i]))
    return "\n".join(lines[start : end + 1])


def replaced(page: str, words: str, block: str) -> str:
    """A page with another text in the block, fenced or indented, that begins with some words."""
    lines = page.splitlines()
    start = next(index for index, line in enumerate(lines) if line.lstrip().startswith(words)
                 and (line.startswith("    ") or lines[index - 1].startswith("```")))  # fmt: skip
    fenced = lines[start - 1].startswith("```")
    end = start
    while end < len(lines) and (
        not lines[end].startswith("```") if fenced else lines[end].startswith("    ") or
        (not lines[end] and end + 1 < len(lines) and lines[end + 1].startswith("    "))
    ):  # fmt: skip
        end += 1
    indent = "" if fenced else "    "
    made = [f"{indent}{line}".rstrip() for line in block.splitlines()]
    return "\n".join([*lines[:start], *made, *lines[end:]]) + "\n"


def main() -> int:
    """Make, or check, and say what differed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also what takes minutes")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    differing: list[str] = []
    for made in MADE:
        if made.slow and not options.all:
            continue
        with tempfile.TemporaryDirectory() as directory:
            output = output_of(made, Path(directory))
            for (document, words), (first, last) in made.blocks.items():
                path = PROJECT / document
                page = path.read_text(encoding="utf-8")
                new = replaced(page, words, excerpt(output, first, last))
                if new != page:
                    differing.append(f"{document}: {words}")
                    if not options.check:
                        path.write_text(new, encoding="utf-8")
            for name, shown in made.figures.items():
                image = PROJECT / DOCS / "images" / shown
                if (Path(directory) / name).read_bytes() != image.read_bytes():
                    differing.append(str(image.relative_to(PROJECT)))
                    if not options.check:
                        shutil.copy(Path(directory) / name, image)
    for name in differing:
        print(f"{'differs' if options.check else 'made anew'}: {name}")
    return 1 if differing and options.check else 0


if __name__ == "__main__":
    sys.exit(main())

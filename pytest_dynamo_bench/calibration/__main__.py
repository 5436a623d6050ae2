"""``python -m pytest_dynamo_bench.calibration``: run the study, write JSON and the page.

Parts can be run one after another; each is added to the JSON file that is there already.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.calibration.page import render
from pytest_dynamo_bench.calibration.replay_aa import (
    ReplayResult,
    ReplayScenario,
    check_replay,
    replay_scenarios,
    run_replay_scenario,
)
from pytest_dynamo_bench.calibration.study import (
    Scenario,
    ScenarioResult,
    run_scenario,
    scenarios,
)
from pytest_dynamo_bench.errors import TargetError

_ONLY_BY_NAME = ("aa-stress",)
# The constants of the procedure were chosen on seeds 0, 1 and 777 to 779.
_SEED = 5


def main() -> int:
    """Run the parts that were asked for.

    Returns:
        0; or 2 when there is no such part, or one cannot be run here.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pytest_dynamo_bench.calibration", description=__doc__
    )
    parser.add_argument(
        "parts", nargs="*", help="such as aa-same; all but aa-stress when none is given"
    )
    parser.add_argument("--output", type=Path, default=Path("docs/calibration.json"))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the comparisons")
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument(
        "--seed", type=int, default=_SEED,
        help="of all that is random; %(default)s by default, on which nothing was tuned",
    )  # fmt: skip
    options = parser.parse_args()
    known: dict[str, Scenario | ReplayScenario] = {
        **scenarios(options.scale),
        **replay_scenarios(options.scale),
    }
    unknown = [part for part in options.parts if part not in known]
    if unknown:
        sys.stderr.write(f"there is no part {unknown[0]!r}; parts: {', '.join(known)}\n")
        return 2
    parts = options.parts or [name for name in known if name not in _ONLY_BY_NAME]
    if any(isinstance(known[part], ReplayScenario) for part in parts):
        try:
            check_replay()
        except TargetError as error:
            sys.stderr.write(f"{error}; or name the parts that do without it\n")
            return 2
    found: dict[str, Any] = {}
    if options.output.exists():
        found = json.loads(options.output.read_text(encoding="utf-8"))
    for part in parts:
        result = _run(known[part], options.resamples, options.seed)
        sys.stdout.write(f"{part}: {result.seconds:.0f} s\n")
        for metric in result.metrics:
            naive = f", naive {metric.naive_claimed}" if metric.naive_claimed else ""
            sys.stdout.write(
                f"  {metric.metric}: claimed {metric.claimed}, covered {metric.covered}{naive}, "
                f"half-width {100 * metric.median_half_width:.1f} %\n"
            )
        sys.stdout.flush()
        found[part] = result.as_dict() | {"resamples": options.resamples, "seed": options.seed}
        # In the order of the study, whichever part was run last.
        found = {name: found[name] for name in known if name in found}
        options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        page = options.output.with_suffix(".md")
        page.write_text(render(found), encoding="utf-8")
    return 0


def _run(
    scenario: Scenario | ReplayScenario, resamples: int, seed: int
) -> ScenarioResult | ReplayResult:
    if isinstance(scenario, ReplayScenario):
        return run_replay_scenario(scenario, resamples=resamples, seed=seed)
    return run_scenario(scenario, resamples=resamples, seed=seed)


if __name__ == "__main__":
    sys.exit(main())

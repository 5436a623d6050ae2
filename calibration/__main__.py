"""Run the calibration study; write its results as JSON, and the page that shows them.

Parts can be run one after another; each is added to the JSON file that is there already. Ctrl-C
ends a part; with --keep its runs on the replay and on this machine are not lost, and the same
command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import Progress, TaskID

from calibration.attribution_aa import (
    AttributionScenario,
    attribution_scenarios,
    run_attribution_scenario,
)
from calibration.kept import KeptRuns
from calibration.local_aa import (
    LocalResult,
    check_local,
    judge_local,
    measure_local,
)
from calibration.noise import NoiseScenario, noise_scenarios, run_noise_scenario
from calibration.page import render
from calibration.replay_aa import (
    ReplayResult,
    ReplayScenario,
    check_replay,
    replay_scenarios,
    run_replay_scenario,
)
from calibration.study import (
    Scenario,
    ScenarioResult,
    run_scenario,
    scenarios,
)
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.targets.options import LOCAL_EXECUTOR, count, executor
from pytest_dynamo_bench.targets.replay.runner import Runner, SimulationCache

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 130, 143

_Computed = Scenario | NoiseScenario | AttributionScenario | ReplayScenario

_LOCAL = ("local", "local-all")
_ONLY_BY_NAME = ("local",)
# The constants of the procedure were chosen on seeds 0, 1 and 777 to 779.
_SEED = 5
_KEEP = Path("calibration-runs")
_EPILOG = """\
examples:
  python -m calibration
  python -m calibration aa-same power-10-1000-3 --scale 0.1
  python -m calibration local --pairs 15 --keep runs --minutes 4

"local" brings a configuration up twice per pair, about 50 s each time; numbers
mean something on a machine that does nothing else. All other parts are computed.

exit codes: 0 done, 1 something failed, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM"""


def main() -> int:
    """Run the parts that were asked for.

    Returns:
        The exit code.
    """
    options = _parser([*_known(1), _LOCAL[0]]).parse_args()
    known = _known(options.scale)
    unknown = [part for part in options.parts if part not in (*known, _LOCAL[0])]
    if unknown:
        names = ", ".join((*known, _LOCAL[0]))
        sys.stderr.write(f"there is no part {unknown[0]!r}; parts: {names}\n")
        return EXIT_USAGE
    parts: list[str] = options.parts or [name for name in known if name not in _ONLY_BY_NAME]
    if _LOCAL[0] in parts and options.keep is None:
        options.keep = _KEEP
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        if any(isinstance(known.get(part), ReplayScenario) for part in parts):
            check_replay()
        if _LOCAL[0] in parts:
            check_local()
    except TargetError as error:
        sys.stderr.write(f"{error}; or name the parts that do without it\n")
        return EXIT_USAGE
    try:
        for part in parts:
            _write(_results(part, known.get(part), options), options, [*known, *_LOCAL])
    except DynamoBenchError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        kept = f"; finished runs are in {options.keep}" if options.keep else ""
        sys.stderr.write(f"interrupted; finished parts are in {options.output}{kept}\n")
        return EXIT_INTERRUPTED
    return 0


def _known(scale: float) -> dict[str, _Computed]:
    return {
        **scenarios(scale), **noise_scenarios(scale), **attribution_scenarios(scale),
        **replay_scenarios(scale),
    }  # fmt: skip


def _parser(parts: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration",
        description=f"{__doc__}\nparts: {', '.join(parts)}",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART",
        help=f"all but {' and '.join(_ONLY_BY_NAME)} when none is given",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("docs/calibration.json"), metavar="FILE",
        help="results, and the page beside it; %(default)s by default",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, default=1.0, help="share of the comparisons; 1 by default"
    )
    parser.add_argument("--resamples", type=int, default=500, help="%(default)s by default")
    parser.add_argument(
        "--seed", type=int, default=_SEED,
        help="of all that is random; %(default)s by default, on which nothing was tuned",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=Path, metavar="DIR",
        help="keep runs of the replay and of this machine there, and use those that are there; "
        f"{_KEEP} for the part local by default",
    )  # fmt: skip
    parser.add_argument(
        "--executor", type=executor, default=LOCAL_EXECUTOR, metavar="WHERE",
        help="where the replay's parts are simulated: local, or dask:ADDRESS; %(default)s by "
        "default",
    )  # fmt: skip
    parser.add_argument(
        "--processes", type=count, metavar="N",
        help="simulations at a time on this machine; as many as it has cores by default",
    )  # fmt: skip
    parser.add_argument(
        "--pairs", type=int, default=15, help="of the part local; %(default)s by default"
    )
    parser.add_argument(
        "--minutes", type=float,
        help="of the part local: begin no run that would end later than this from now",
    )  # fmt: skip
    return parser


def _terminate(*_: object) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


class _OnTerminal:
    """Shows how a part gets on; in a log, a line for every run on this machine."""

    def __init__(self, part: str) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(console=self._console, transient=True)
        self._part = part
        self._task: TaskID = self._bar.add_task(part, total=None)

    def __enter__(self) -> _OnTerminal:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def comparisons(self, done: int, of: int) -> None:
        """So many comparisons are made."""
        self._bar.update(self._task, completed=done, total=of)

    def stage(self, name: str) -> None:
        """A run, or a stage of it, has begun."""
        self._bar.update(self._task, description=f"{self._part}: {name}", total=None)
        if not self._console.is_terminal and name.startswith("run "):
            sys.stderr.write(f"{self._part}: {name}\n")

    def requests(self, done: int, failed: int, total: int) -> None:
        """So many requests of a run have ended."""
        self._bar.update(self._task, completed=done, total=total)


def _results(
    part: str, scenario: _Computed | None, options: argparse.Namespace
) -> dict[str, ScenarioResult | ReplayResult | LocalResult]:
    how: dict[str, Any] = {"resamples": options.resamples, "seed": options.seed}
    with _OnTerminal(part) as shown:
        if isinstance(scenario, Scenario):
            return {part: run_scenario(scenario, tell=shown.comparisons, **how)}
        if isinstance(scenario, NoiseScenario):
            return {part: run_noise_scenario(scenario, tell=shown.comparisons, **how)}
        if isinstance(scenario, AttributionScenario):
            return {part: run_attribution_scenario(scenario, tell=shown.comparisons, **how)}
        if isinstance(scenario, ReplayScenario):
            cache = SimulationCache(directory=options.keep and options.keep / "replay")
            runner = Runner(options.executor, options.processes, cache)
            found = run_replay_scenario(scenario, runner=runner, tell=shown.comparisons, **how)
            return {part: found}
        if options.pairs < 1:
            raise TargetError(f"--pairs: must be at least 1, got {options.pairs}")
        until = None if options.minutes is None else time.monotonic() + 60 * options.minutes
        runs = measure_local(options.pairs, KeptRuns(options.keep), shown, until=until)
    if len(runs) < 2 * options.pairs:
        sys.stdout.write(
            f"{len(runs)} of {2 * options.pairs} runs are made; the same command goes on\n"
        )
    return dict(judge_local(runs, **how)) if len(runs) > 1 else {}


def _write(
    results: dict[str, ScenarioResult | ReplayResult | LocalResult],
    options: argparse.Namespace,
    order: list[str],
) -> None:
    """Print results, and add them to the JSON file and the page."""
    found: dict[str, Any] = {}
    if options.output.exists():
        found = json.loads(options.output.read_text(encoding="utf-8"))
    for part, result in results.items():
        sys.stdout.write(f"{part}: {result.seconds:.0f} s\n")
        for metric in result.metrics:
            naive = f", naive {metric.naive_claimed}" if metric.naive_claimed else ""
            half = metric.median_half_width
            width = "no interval" if half is None else f"half-width {100 * half:.1f} %"
            sys.stdout.write(
                f"  {metric.metric}: claimed {metric.claimed}, covered {metric.covered}{naive}, "
                f"{width}\n"
            )
        found[part] = result.as_dict() | {"resamples": options.resamples, "seed": options.seed}
    sys.stdout.flush()
    # In the order of the study, whichever part was run last.
    found = {name: found[name] for name in order if name in found}
    write_whole(options.output, (json.dumps(found, indent=1) + "\n").encode())
    write_whole(options.output.with_suffix(".md"), render(found).encode())


if __name__ == "__main__":
    sys.exit(main())

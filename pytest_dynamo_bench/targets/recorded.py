"""Results of AIPerf, instead of a measurement.

What was measured elsewhere by ``aiperf profile`` becomes a run like any other, so that a claim can
be checked on it. Nothing is started and nothing is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pytest_dynamo_bench.aiperf_results import AiperfResults, read_aiperf_results
from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.errors import NotMeasuredError, TargetError
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.base import PlannedRun, Progress
from pytest_dynamo_bench.traffic import (
    Concurrency,
    FixedSchedule,
    Schedule,
    Traffic,
    TrafficRequest,
)

_BLOCK_TOKENS = 512
_NOT_DEPLOYED = "was measured by AIPerf before this session; what was deployed was not checked"


class RecordedTarget:
    """Gives back what AIPerf measured.

    Args:
        name: the target that it was measured on, as claims name it.
        results: for each configuration the directories that AIPerf wrote, one for each repeat.

    Raises:
        ResultsError: a directory cannot be read.
    """

    def __init__(self, name: str, results: Mapping[str, Sequence[Path]]) -> None:
        self.name = name
        self.measured_elsewhere = "AIPerf"
        self._results: dict[str, list[AiperfResults]] = {
            configuration: [read_aiperf_results(path) for path in paths]
            for configuration, paths in results.items()
        }

    def check(self, benchmark: Benchmark) -> None:
        """See that every result belongs to a configuration of the benchmark.

        Raises:
            TargetError: one does not.
        """
        known = [configuration.name for configuration in benchmark.configurations]
        for name in self._results:
            if name not in known:
                raise TargetError(
                    f"--dynamo-aiperf-results: there is no configuration {name!r}; "
                    f"configurations: {', '.join(known)}"
                )

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """What AIPerf sent to the first configuration, as far as its records tell."""
        name, (results, *_) = next(iter(self._results.items()))
        requests = sorted(
            (
                TrafficRequest(
                    r.request_id, r.session_id, r.turn, r.scheduled_ms, 0.0, r.input_tokens,
                    r.output_tokens, (),
                )
                for r in results.records
            ),
            key=lambda request: request.timestamp_ms,
        )  # fmt: skip
        history = (f"sent by AIPerf, according to its records of {name}",)
        return Traffic(tuple(requests), _schedule(results), _BLOCK_TOKENS, history)

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What was not checked: who sent the requests, and what was deployed."""
        return (
            "requests were sent and timed by AIPerf, not by this plugin",
            f"{configuration.name}: {_NOT_DEPLOYED}",
        )

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """The run that AIPerf made.

        Raises:
            NotMeasuredError: there are no results of this configuration, or not so many.
        """
        configuration, repeat = planned.configuration, planned.repeat
        found = self._results.get(configuration.name, [])
        if repeat >= len(found):
            lacks = (
                f"there are {len(found)} AIPerf results for it, but repeat {repeat + 1} is needed"
                if found
                else "there are no AIPerf results for it"
            )
            raise NotMeasuredError(
                f"{configuration.name}: {lacks}; give --dynamo-aiperf-results "
                f"{configuration.name}=DIR"
            )
        results = found[repeat]
        progress.stage("reading the results of AIPerf")
        failed = sum(not record.succeeded for record in results.records)
        progress.requests(len(results.records), failed, len(results.records))
        return Run(
            benchmark=planned.benchmark.name,
            configuration=configuration.name,
            target=self.name,
            gpus=configuration.gpus,
            records=results.records,
            started_at=results.started_at,
            deployed={"note": _NOT_DEPLOYED},
            observed={
                "sent_by": "aiperf",
                "aiperf_version": results.version,
                "aiperf_command": results.command,
                "aiperf_records": str(results.path),
            },
            traffic={
                "schedule": _schedule(results).description,
                "history": list(planned.traffic.history),
            },
            problems=results.problems,
        )


def _schedule(results: AiperfResults) -> Schedule:
    if results.schedule == "fixed":
        return FixedSchedule()
    return Concurrency(results.concurrency or 1)

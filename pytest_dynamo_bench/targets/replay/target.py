"""The replay target: Dynamo's own discrete-event simulation of a configuration.

The traffic is sent in full and in simulated time; the schedulers, KV caches and the router
are Dynamo's, the time of an engine's steps comes from a profile. Each run is a separate process.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import Benchmark, Claim, Configuration, traffic_for
from pytest_dynamo_bench.dynamo.abilities import abilities, untried
from pytest_dynamo_bench.engines import EngineProfile, with_surcharge
from pytest_dynamo_bench.errors import DeploymentError, DynamoBenchError, TargetError
from pytest_dynamo_bench.features import Caveat
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.aftermath import unexpected
from pytest_dynamo_bench.targets.base import PlannedRun, Progress
from pytest_dynamo_bench.targets.options import LOCAL_EXECUTOR
from pytest_dynamo_bench.targets.replay.arguments import (
    bare_command,
    engine_arguments,
    engine_key,
    find_profiles,
    not_expressed,
    one_prefill_at_a_time,
    profile_contents,
    ranks_as_workers,
    simulated_host_tiers,
    simulating_dynamo,
)
from pytest_dynamo_bench.targets.replay.caveats import NO_VISION, caveats
from pytest_dynamo_bench.targets.replay.pricing import PrefixPricing
from pytest_dynamo_bench.targets.replay.runner import Runner, as_error
from pytest_dynamo_bench.targets.replay.running import SimulationError
from pytest_dynamo_bench.targets.replay.simulation import Simulated, Simulation, lean
from pytest_dynamo_bench.traffic import Concurrency, Traffic


@dataclass(frozen=True)
class ReplayTarget:
    """Measures configurations by simulating them.

    Attributes:
        profile_directories: where to look for engine profiles before the shipped ones.
        seed: decides ties in Dynamo's KV router; None leaves them to chance, as in a real
            deployment, and makes runs differ.
        speedup: divides the times between arrivals; 2 is twice the load.
        timeout_seconds: a simulation that takes longer is ended.
        prefix_pricing: how attending to what comes before a prefill's new tokens is paid for,
            which Dynamo's table leaves out (see :mod:`pytest_dynamo_bench.engines.pricing`).
            ``traffic`` adds its mean cost, for the prompts as they are, to every new token:
            the same for all configurations, unless what one finds in its caches makes that
            wrong by more than 5 %, which a simulation of a tenth of the sessions tells
            beforehand where it could be. ``measured`` adds the cost for the prompts with what
            each configuration found in its caches. ``none`` leaves the table as it is.
        runner: where simulations are made, and what need not be made again.
    """

    profile_directories: tuple[Path, ...] = ()
    seed: int | None = 0
    speedup: float = 1.0
    timeout_seconds: float = 1800.0
    prefix_pricing: PrefixPricing = "traffic"
    runner: Runner = field(default_factory=Runner)
    name: str = field(default="replay", init=False)

    def check(self, benchmark: Benchmark) -> None:
        """Whether its Dynamo is installed and every configuration can be simulated.

        Raises:
            TargetError: it isn't, or one cannot; the message says what to install or change.
        """
        for configuration in benchmark.configurations:
            simulating_dynamo(configuration)
            engine_arguments(benchmark, configuration, self.profiles(benchmark, configuration))
        self.runner.check()

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """The benchmark's traffic in full.

        Raises:
            TrafficError: the traffic cannot be read.
        """
        return benchmark.traffic.load()

    def caveats(self, benchmark: Benchmark, configuration: Configuration) -> tuple[Caveat, ...]:
        """The simplifications that apply to a configuration, as data."""
        profiles = self.profiles(benchmark, configuration)
        return caveats(
            benchmark,
            configuration,
            profiles,
            prefix_priced=self.prefix_pricing != "none",
            ranks_as_workers=ranks_as_workers(benchmark),
            one_prefill_at_a_time=one_prefill_at_a_time(configuration),
            host_tiers=simulated_host_tiers(benchmark, configuration),
            shared_blocks_once=abilities(simulating_dynamo(configuration)).shared_blocks_once,
        )

    def why_not_claimed(self, benchmark: Benchmark) -> str:
        """What of the benchmark is not simulated at all, so that nothing is claimed; or empty."""
        return str(NO_VISION) if benchmark.traffic.load().images is not None else ""

    def why_not_assumed(self, benchmark: Benchmark, claim: Claim) -> str:
        """Why the simulations do not have the simplification that a claim assumes; or empty.

        Empty too where they cannot be made, which :meth:`check` explains.
        """
        try:
            sides = [benchmark.configuration(name) for name in (claim.treatment, claim.baseline)]
            made = {caveat.id for side in sides for caveat in self.caveats(benchmark, side)}
            dynamos = ", ".join(sorted({str(simulating_dynamo(side)) for side in sides}))
        except TargetError:
            return ""
        if claim.assumes in made:
            return ""
        return (
            f"it holds for simulations with the simplification {claim.assumes!r}, which that of "
            f"{dynamos} does not have"
        )

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What isn't expressed of the configuration, then what is simplified."""
        return (
            *not_expressed(benchmark, configuration),
            *map(str, self.caveats(benchmark, configuration)),
        )

    def profiles(
        self, benchmark: Benchmark, configuration: Configuration
    ) -> tuple[EngineProfile, ...]:
        """The engine profile of each role.

        Raises:
            TargetError: there is none for a role; the message says how to make it.
        """
        return find_profiles(benchmark, configuration, self.profile_directories)

    def simulation(
        self,
        benchmark: Benchmark,
        configuration: Configuration,
        traffic: Traffic,
        repeat: int = 0,
    ) -> Simulation:
        """A run as data: all that it depends on.

        Args:
            traffic: the benchmark's; the configuration gets what is its own of it.
            repeat: varies the seed that decides ties in the KV router.

        Raises:
            TargetError: the configuration cannot be simulated.
        """
        traffic = traffic_for(traffic, configuration)
        profiles = self.profiles(benchmark, configuration)
        arguments = engine_arguments(benchmark, configuration, profiles)
        contents = {}
        for worker, profile in zip(configuration.workers, profiles, strict=True):
            contents[engine_key(worker)] = profile.content
            del arguments[engine_key(worker)]["planner_profile_data"]
        arguments |= {
            "trace_format": "mooncake",
            "trace_block_size": traffic.block_tokens,
            "arrival_speedup_ratio": self.speedup,
        }
        if isinstance(traffic.schedule, Concurrency):
            arguments["replay_concurrency"] = traffic.schedule.sessions
        return Simulation(
            configuration.name,
            arguments,
            contents,
            lean(traffic),
            None if self.seed is None else self.seed + repeat,
            self.prefix_pricing,
            self.timeout_seconds,
            configuration.dynamo,
            simulating_dynamo(configuration).build,
        )

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Simulate the traffic, as the configuration is to get it, through the configuration.

        What a repeat varies is the seed that decides ties in the KV router.

        ``directory`` gets ``replay-job.json`` (what the simulation was given),
        ``replay.log``, and the profile that was used if it isn't a shipped one.

        Raises:
            TargetError: the configuration cannot be simulated.
            DeploymentError: the simulation ended with an error; the message has the log's end.
        """
        progress.stage("simulating")
        ((_, outcome),) = self._measured([planned])
        if not isinstance(outcome, Run):
            raise outcome
        failed = sum(not record.succeeded for record in outcome.records)
        progress.requests(len(outcome.records), failed, len(outcome.records))
        return outcome

    def keeping(self, directory: Path) -> ReplayTarget:
        """This target with a directory of what has been simulated, which is used and added to."""
        cache = replace(self.runner.cache, directory=directory)
        return replace(self, runner=replace(self.runner, cache=cache))

    @property
    def at_a_time(self) -> int:
        """How many simulations are made at a time."""
        return self.runner.at_a_time

    def measure_all(
        self, planned: Sequence[PlannedRun], progress: Progress
    ) -> Iterator[tuple[PlannedRun, Run | DynamoBenchError]]:
        """Simulate several runs at a time, each as :meth:`measure` does.

        They come in the order in which they end, but repeats of a configuration in theirs. When
        the caller is interrupted, or closes the iterator, those under way are ended at once.
        """
        if not planned:
            return
        local = self.runner.executor == LOCAL_EXECUTOR
        where = f", {min(self.at_a_time, len(planned))} at a time"
        progress.stage(
            f"simulating {len(planned)} runs{where if local else f' on {self.runner.executor}'}"
        )
        total = sum(len(item.traffic.requests) for item in planned)
        done = failed = 0
        outcomes: dict[tuple[str, int], Run | DynamoBenchError] = {}
        turns: dict[str, deque[PlannedRun]] = defaultdict(deque)
        for item in sorted(planned, key=lambda item: item.repeat):
            turns[item.configuration.name].append(item)
        for item, outcome in self._measured(planned):
            requests, name = len(item.traffic.requests), item.configuration.name
            done += requests
            if isinstance(outcome, Run):
                failed += sum(not record.succeeded for record in outcome.records)
            else:
                failed += requests
            progress.requests(done, failed, total)
            outcomes[name, item.repeat] = outcome
            while turns[name] and (name, turns[name][0].repeat) in outcomes:
                item = turns[name].popleft()
                yield item, outcomes.pop((name, item.repeat))

    def _measured(
        self, planned: Sequence[PlannedRun]
    ) -> Iterator[tuple[PlannedRun, Run | DynamoBenchError]]:
        jobs: dict[int, Simulation] = {}
        started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

        def failed(item: PlannedRun, error: Exception) -> tuple[PlannedRun, DynamoBenchError]:
            name = item.configuration.name
            return item, unexpected(error, item.directory, f"simulating {name}")

        for number, item in enumerate(planned):
            try:
                jobs[number] = self.simulation(
                    item.benchmark, item.configuration, item.traffic, item.repeat
                )
            except Exception as error:
                yield failed(item, error)
        for number, outcome, _ in self.runner.outcomes(jobs):
            item, job = planned[number], jobs[number]
            if isinstance(outcome, Exception):
                yield failed(item, _with_log(as_error(outcome, job), item.directory))
                continue
            try:
                run = self._run(item, job, outcome, started_at)
            except Exception as error:
                yield failed(item, error)
            else:
                yield item, run

    def _run(
        self, planned: PlannedRun, job: Simulation, simulated: Simulated, started_at: str
    ) -> Run:
        """What came out of a simulation as a run; its directory gets what explains it."""
        benchmark, configuration = planned.benchmark, planned.configuration
        profiles = self.profiles(benchmark, configuration)
        dynamo = simulating_dynamo(configuration)
        tiers = simulated_host_tiers(benchmark, configuration)
        arguments = dict(job.arguments)
        for worker, profile in zip(configuration.workers, profiles, strict=True):
            name, path = engine_key(worker), profile.path
            if name == job.prefilling and simulated.charged_ms_per_token:
                path = planned.directory / f"{profile.name}-with-prefix-priced.npz"
                planned.directory.mkdir(parents=True, exist_ok=True)
                with_surcharge(profile.tables, simulated.charged_ms_per_token).write(path)
            arguments[name] = {**arguments[name], "planner_profile_data": str(path)}
        given = json.dumps({"arguments": arguments, "seed": job.seed}, indent=2)
        _write(planned.directory, {"replay-job.json": given + "\n", "replay.log": simulated.log})
        traffic = traffic_for(planned.traffic, configuration)
        run = plain_run(benchmark, configuration, job, simulated)
        return replace(
            run,
            started_at=started_at,
            deployed={
                "engine_arguments": {
                    key: {**arguments[key], "planner_profile_data": content}
                    for key, content in profile_contents(configuration, profiles).items()
                },
                "workers": {key: arguments[key] for key in arguments if key.endswith("_workers")},
                "router_mode": arguments["router_mode"],
                "router_config": arguments.get("router_config", {}),
                "profiles": [profile.name for profile in profiles],
                "prefix_pricing": self.prefix_pricing,
                "command": bare_command(dynamo, arguments),
                "speedup": self.speedup,
                **({"host_tiers": {k: vars(v) for k, v in tiers.items()}} if tiers else {}),
            },
            observed={
                "dynamo": dynamo.version,
                "seeding": simulated.seeding,
                "prefill_pricing": simulated.prefill_pricing,
                "report": simulated.report,
                "simulation_seconds": round(simulated.seconds, 3),
                "simulation_peak_memory_mb": simulated.peak_memory_mb,
                "wall_seconds": round(simulated.wall_seconds, 3),
                "caveats": [vars(caveat) for caveat in self.caveats(benchmark, configuration)],
            },
            traffic={
                "history": list(traffic.history),
                "requests": len(traffic.requests),
                "schedule": traffic.schedule.description,
            },
            problems=_problems(simulated, job.seed, configuration),
            notes=untried(dynamo),
        )


def plain_run(
    benchmark: Benchmark, configuration: Configuration, job: Simulation, simulated: Simulated
) -> Run:
    """What came out of a simulation as a run, with what metrics need."""
    return Run(
        benchmark.name, configuration.name, "replay", configuration.gpus, job.records(simulated),
        "", simulated=True,
    )  # fmt: skip


def _with_log(error: Exception, directory: Path) -> Exception:
    """The error with the place of its log, which is written there."""
    if not isinstance(error, SimulationError):
        return error
    _write(directory, {"replay.log": error.log})
    return DeploymentError(f"{error}\nlog: {directory / 'replay.log'}")


def _write(directory: Path, texts: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")


def describe(
    target: ReplayTarget, benchmark: Benchmark, configuration: Configuration
) -> dict[str, Any]:
    """What a simulation of this configuration is given, traffic aside, as plain data.

    Raises:
        TargetError: it cannot be expressed.
    """
    profiles = target.profiles(benchmark, configuration)
    return {
        **engine_arguments(benchmark, configuration, profiles),
        "profiles": [profile.name for profile in profiles],
        "limitations": list(target.limitations(benchmark, configuration)),
    }


def _problems(
    simulated: Simulated, seed: int | None, configuration: Configuration
) -> tuple[str, ...]:
    if seed is not None and simulated.seeding != "seeded" and configuration.router == "kv":
        return (f"the simulation is not reproducible: {simulated.seeding}",)
    return ()

"""The replay target: Dynamo's own discrete-event simulation of a configuration.

The traffic is sent in full and in simulated time; the schedulers, KV caches and the router
are Dynamo's, the time of an engine's steps comes from a profile. Each run is a process of its
own.
"""

from __future__ import annotations

import datetime
import importlib.util
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker, traffic_for
from pytest_dynamo_bench.dynamo_release import REQUIREMENT
from pytest_dynamo_bench.engines import EngineProfile, PrefillPricing
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError
from pytest_dynamo_bench.features import Caveat
from pytest_dynamo_bench.parallel import cores
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.targets.aftermath import unexpected
from pytest_dynamo_bench.targets.base import PlannedRun, Progress, Unwatched
from pytest_dynamo_bench.targets.replay.arguments import (
    bare_command,
    engine_arguments,
    find_profiles,
    not_expressed,
    profile_contents,
    ranks_as_workers,
)
from pytest_dynamo_bench.targets.replay.caveats import NO_VISION, caveats
from pytest_dynamo_bench.targets.replay.pricing import (
    CLOSE_ENOUGH,
    PrefixPricing,
    charge,
    charged_and_source,
    is_close,
    pilot_of,
    priced_prefills,
)
from pytest_dynamo_bench.targets.replay.results import read_rows, to_records, write_trace
from pytest_dynamo_bench.targets.replay.running import RunningSimulations
from pytest_dynamo_bench.traffic import Concurrency, Traffic, ideal_cached_tokens

_MOST_SIMULATIONS = 3


@dataclass(frozen=True)
class _Simulated:
    """One simulation: what Dynamo was given, what it said, and what prefilling cost.

    ``charged_ms_per_token`` is what was added to the time of each new token of a prefill.
    """

    arguments: Mapping[str, Any]
    result: Mapping[str, Any]
    records: tuple[RequestRecord, ...]
    pricing: PrefillPricing
    charged_ms_per_token: float

    @property
    def priced(self) -> dict[str, float]:
        """What prefilling was charged, and what it would cost by the source."""
        return charged_and_source(self.pricing, self.charged_ms_per_token)

    @property
    def charged_rightly(self) -> bool:
        """Whether that is what the source says, to 5 %."""
        return is_close(self.priced["charged_share_of_source"])


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
        processes: simulations at a time; None for as many as there are cores for this process.
    """

    profile_directories: tuple[Path, ...] = ()
    seed: int | None = 0
    speedup: float = 1.0
    timeout_seconds: float = 1800.0
    prefix_pricing: PrefixPricing = "traffic"
    processes: int | None = None
    name: str = field(default="replay", init=False)
    _running: RunningSimulations | None = field(
        default=None, repr=False, compare=False, kw_only=True
    )

    def check(self, benchmark: Benchmark) -> None:
        """Whether ai-dynamo is installed and every configuration can be simulated.

        Raises:
            TargetError: it isn't, or one cannot; the message says what to install or change.
        """
        if importlib.util.find_spec("dynamo") is None or not _has_replay():
            raise TargetError(
                f"the replay target needs Dynamo's replay: pip install {REQUIREMENT!r}"
            )
        for configuration in benchmark.configurations:
            engine_arguments(benchmark, configuration, self.profiles(benchmark, configuration))

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
        )

    def why_not_claimed(self, benchmark: Benchmark) -> str:
        """What of the benchmark is not simulated at all, so that nothing is claimed; or empty."""
        return str(NO_VISION) if benchmark.traffic.load().images is not None else ""

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

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Simulate the traffic, as the configuration is to get it, through the configuration.

        What a repeat varies is the seed that decides ties in the KV router.

        ``directory`` gets ``replay-job.json`` (what the simulation was given),
        ``replay.log``, and the profile that was used if it isn't a shipped one.

        Raises:
            TargetError: the configuration cannot be simulated.
            DeploymentError: the simulation ended with an error; the message has the log's end.
        """
        if planned.repeat and self.seed is not None:
            other = replace(self, seed=self.seed + planned.repeat)
            return other.measure(replace(planned, repeat=0), progress)
        benchmark, configuration = planned.benchmark, planned.configuration
        traffic = traffic_for(planned.traffic, configuration)
        planned = replace(planned, traffic=traffic)
        started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        began = time.perf_counter()
        planned.directory.mkdir(parents=True, exist_ok=True)
        charged, pilot = self._first_charge(planned, progress)
        for attempt in range(_MOST_SIMULATIONS):
            progress.stage("simulating" if attempt == 0 else "simulating again, repriced")
            done = self._simulated(planned, charged)
            if self.prefix_pricing == "none" or (
                done.charged_rightly and (self.prefix_pricing == "traffic" or pilot or attempt)
            ):
                break
            charged = done.pricing.surcharge_ms_per_token
        records, result, arguments = done.records, done.result, done.arguments
        profiles = self.profiles(benchmark, configuration)
        failed = sum(not record.succeeded for record in records)
        progress.requests(len(records), failed, len(records))
        return Run(
            benchmark=benchmark.name,
            configuration=configuration.name,
            target=self.name,
            gpus=configuration.gpus,
            records=records,
            started_at=started_at,
            simulated=True,
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
                "command": bare_command(arguments),
                "speedup": self.speedup,
            },
            observed={
                "dynamo": metadata.version("ai-dynamo"),
                "seeding": result["seeding"],
                "prefill_pricing": done.priced
                | {"simulations": attempt + 1, "pilot_requests": pilot},
                "report": result["report"],
                "simulation_seconds": round(result["seconds"], 3),
                "simulation_peak_memory_mb": result["peak_memory_mb"],
                "wall_seconds": round(time.perf_counter() - began, 3),
                "caveats": [vars(caveat) for caveat in self.caveats(benchmark, configuration)],
            },
            traffic={
                "history": list(traffic.history),
                "requests": len(traffic.requests),
                "schedule": traffic.schedule.description,
            },
            problems=_problems(result, self.seed, configuration),
        )

    @property
    def at_a_time(self) -> int:
        """How many simulations are made at a time."""
        return self.processes or cores()

    def measure_all(
        self, planned: Sequence[PlannedRun], progress: Progress
    ) -> Iterator[tuple[PlannedRun, Run | DynamoBenchError]]:
        """Simulate several runs at a time, each as :meth:`measure` does.

        They come in the order in which they end, but repeats of a configuration in theirs. When
        the caller is interrupted, or closes the iterator, those under way are ended at once.
        """
        if not planned:
            return
        at_a_time = min(self.at_a_time, len(planned))
        progress.stage(f"simulating {len(planned)} runs, {at_a_time} at a time")
        total = sum(len(item.traffic.requests) for item in planned)
        done = failed = 0
        running = RunningSimulations()
        target = replace(self, _running=running)
        pool = ThreadPoolExecutor(at_a_time, "simulation")
        try:
            futures: dict[Future[Run], PlannedRun] = {
                pool.submit(target.measure, item, Unwatched()): item for item in planned
            }
            outcomes: dict[tuple[str, int], Run | DynamoBenchError] = {}
            turns: dict[str, deque[PlannedRun]] = defaultdict(deque)
            for item in sorted(planned, key=lambda item: item.repeat):
                turns[item.configuration.name].append(item)
            for future in as_completed(futures):
                item = futures[future]
                name = item.configuration.name
                outcome: Run | DynamoBenchError
                try:
                    outcome = future.result()
                except Exception as error:
                    outcome = unexpected(error, item.directory, f"simulating {name}")
                    failed += len(item.traffic.requests)
                else:
                    failed += sum(not record.succeeded for record in outcome.records)
                done += len(item.traffic.requests)
                progress.requests(done, failed, total)
                outcomes[name, item.repeat] = outcome
                while turns[name] and (name, turns[name][0].repeat) in outcomes:
                    item = turns[name].popleft()
                    yield item, outcomes.pop((name, item.repeat))
        finally:
            running.end()
            pool.shutdown(wait=True, cancel_futures=True)

    def _prefilling(
        self, benchmark: Benchmark, configuration: Configuration
    ) -> tuple[Worker, EngineProfile]:
        """The workers that process prompts, with their profile."""
        profiles = self.profiles(benchmark, configuration)
        pairs = zip(configuration.workers, profiles, strict=True)
        return next((worker, profile) for worker, profile in pairs if worker.mode != "decode")

    def _first_charge(self, planned: PlannedRun, progress: Progress) -> tuple[float, int]:
        """What each new token is charged at first, ms, and the requests of a pilot for it.

        Without anything in the caches, the charge is the same for all configurations. Where that
        could be wrong by more than 5 % for what a cache might hold at best, a tenth of the
        sessions is simulated to see whether it is, which saves simulating all of them twice.
        """
        if self.prefix_pricing == "none":
            return 0.0, 0
        traffic = planned.traffic
        worker, profile = self._prefilling(planned.benchmark, planned.configuration)
        common = priced_prefills(worker, profile, traffic, None).surcharge_ms_per_token
        at_best = priced_prefills(worker, profile, traffic, ideal_cached_tokens(traffic))
        part = pilot_of(traffic)
        if (
            is_close(charged_and_source(at_best, common)["charged_share_of_source"])
            or not worker.prefix_caching
            or not part.requests
        ):
            return common, 0
        progress.stage(f"pilot of {len(part.requests)} requests, to price prefixes")
        done = self._simulated(replace(planned, traffic=part), common)
        # The caches of a pilot are colder than those of the whole: what an ideal cache would find
        # in both says by how much.
        colder = priced_prefills(worker, profile, part, ideal_cached_tokens(part))
        if not colder.surcharge_ms_per_token:
            return common, len(part.requests)
        warmer = at_best.surcharge_ms_per_token / colder.surcharge_ms_per_token
        found = done.pricing
        charged = warmer * found.surcharge_ms_per_token
        difference = (common - charged) * found.new_tokens / found.source_ms
        rightly = self.prefix_pricing == "traffic" and abs(difference) <= CLOSE_ENOUGH
        return common if rightly else charged, len(part.requests)

    def _simulated(self, planned: PlannedRun, charged_ms_per_token: float) -> _Simulated:
        """Simulate traffic once, with so much charged for each new token of a prefill."""
        benchmark, configuration = planned.benchmark, planned.configuration
        traffic, directory = planned.traffic, planned.directory
        worker, profile = self._prefilling(benchmark, configuration)
        arguments = engine_arguments(
            benchmark, configuration, self.profiles(benchmark, configuration)
        )
        with tempfile.TemporaryDirectory(prefix="replay-", dir=directory) as scratch:
            trace, rows = Path(scratch) / "trace.jsonl", Path(scratch) / "requests.jsonl"
            write_trace(traffic.requests, trace)
            arguments |= {
                "trace_files": str(trace),
                "trace_format": "mooncake",
                "trace_block_size": traffic.block_tokens,
                "arrival_speedup_ratio": self.speedup,
                "report_jsonl_path": str(rows),
            }
            if isinstance(traffic.schedule, Concurrency):
                arguments["replay_concurrency"] = traffic.schedule.sessions
            charge(arguments, worker, profile, charged_ms_per_token, directory)
            result = (self._running or RunningSimulations()).simulate(
                {"arguments": arguments, "seed": self.seed},
                Path(scratch),
                planned,
                self.timeout_seconds,
            )
            records = to_records(traffic, read_rows(rows), configuration, self.speedup)
        cached = [record.cached_tokens or 0 for record in records]
        return _Simulated(
            arguments,
            result,
            records,
            priced_prefills(worker, profile, traffic, cached),
            charged_ms_per_token,
        )


def _has_replay() -> bool:
    try:
        return importlib.util.find_spec("dynamo.replay") is not None
    except ImportError:
        return False


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
    result: Mapping[str, Any], seed: int | None, configuration: Configuration
) -> tuple[str, ...]:
    if seed is not None and result["seeding"] != "seeded" and configuration.router == "kv":
        return (f"the simulation is not reproducible: {result['seeding']}",)
    return ()

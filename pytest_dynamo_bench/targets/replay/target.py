"""The replay target: Dynamo's own discrete-event simulation of a configuration.

The traffic is sent in full and in simulated time; the schedulers, KV caches and the router
are Dynamo's, the time of an engine's steps comes from a profile. Each run is a process of its
own.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import msgspec

from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker, traffic_for
from pytest_dynamo_bench.dynamo_options import option_arguments
from pytest_dynamo_bench.dynamo_release import REQUIREMENT
from pytest_dynamo_bench.engines import (
    EngineProfile,
    PrefillPricing,
    device_blocks,
    find_profile,
    price_prefills,
    with_surcharge,
)
from pytest_dynamo_bench.errors import DeploymentError, DynamoBenchError, TargetError
from pytest_dynamo_bench.features import Caveat, feature_limits, features_lacking
from pytest_dynamo_bench.outside import Amount, Count, Tokens, decoded
from pytest_dynamo_bench.parallel import cores
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.targets.aftermath import unexpected
from pytest_dynamo_bench.targets.base import PlannedRun, Progress, Unwatched
from pytest_dynamo_bench.targets.option_check import ParsedCommand, parse_command, refuse_unknown
from pytest_dynamo_bench.targets.replay import child
from pytest_dynamo_bench.targets.replay.caveats import NO_VISION, caveats
from pytest_dynamo_bench.traffic import (
    Concurrency,
    Traffic,
    TrafficRequest,
    ideal_cached_tokens,
)

PrefixPricing = Literal["none", "traffic", "measured"]
ROUTERS = {"round-robin": "round_robin", "kv": "kv_router"}
_MAX_HASH_ID = 2**32 - 1
_LOG_LINES = 20
_DEFAULT_MAX_NUM_SEQS = 256
_DEFAULT_STEP_TOKENS = 8192
# Dynamo's replay hands a prompt over to a decode worker only when the prefill worker has no
# other prompt in work, so that a prefill worker that is never idle hands over nothing.
_PREFILLS_AT_A_TIME = 1
_MOST_SIMULATIONS = 3
_CLOSE_ENOUGH = 0.05
_PILOT_DIVISOR = 10
_LEAST_PILOT_REQUESTS = 500
_MARKER = "pytest-dynamo-bench keeps the names of sessions"


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
        return _priced(self.pricing, self.charged_ms_per_token)

    @property
    def charged_rightly(self) -> bool:
        """Whether that is what the source says, to 5 %."""
        return _close(self.priced["charged_share_of_source"])


class _RunningSimulations:
    """The simulating processes of several threads, which can be ended from another one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._ended = False

    def run(self, command: Sequence[str], log: Path, timeout_seconds: float) -> int:
        """Run a command that writes to a log, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was ended.
            DeploymentError: all have been ended.
        """
        # DYN_LOG: at info Dynamo's router writes a line per request, which takes longer than
        # the simulation.
        environment = {**os.environ, "DYN_LOG": os.environ.get("DYN_LOG", "error")}
        with log.open("wb") as output:
            with self._lock:
                if self._ended:
                    raise DeploymentError("simulations were ended")
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL, env=environment,
                )  # fmt: skip
                self._running.add(process)
            try:
                return process.wait(timeout_seconds)
            finally:
                _kill(process)
                with self._lock:
                    self._running.discard(process)

    def end(self) -> None:
        """End those that run, and start no more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.kill()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended.

    Not by its own ``wait``: a signal handler that raises in the midst of that, such as Ctrl-C's,
    can leave its lock taken, and the next call would wait for ever.
    """
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process.pid, 0)
        process.returncode = -signal.SIGKILL


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
    _running: _RunningSimulations | None = field(
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
            engine_arguments(self, benchmark, configuration)

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
            *_not_expressed(benchmark, configuration),
            *map(str, self.caveats(benchmark, configuration)),
        )

    def profiles(
        self, benchmark: Benchmark, configuration: Configuration
    ) -> tuple[EngineProfile, ...]:
        """The engine profile of each role.

        Raises:
            TargetError: there is none for a role; the message says how to make it.
        """
        return tuple(self._profile(benchmark, worker) for worker in configuration.workers)

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
                    for key, content in self._profile_contents(benchmark, configuration).items()
                },
                "workers": {key: arguments[key] for key in arguments if key.endswith("_workers")},
                "router_mode": arguments["router_mode"],
                "router_config": arguments.get("router_config", {}),
                "profiles": [p.name for p in self.profiles(benchmark, configuration)],
                "prefix_pricing": self.prefix_pricing,
                "command": _bare_command(arguments),
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
        running = _RunningSimulations()
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

    def _profile(self, benchmark: Benchmark, worker: Worker) -> EngineProfile:
        found = find_profile(
            benchmark.model,
            benchmark.hardware.gpu,
            benchmark.engine,
            worker,
            self.profile_directories,
        )
        if found is None:
            words = [
                "python -m pytest_dynamo_bench.engines.make",
                f"--model {benchmark.model} --gpu {benchmark.hardware.gpu}",
                f"--engine {benchmark.engine} --tp {worker.tp}",
            ]
            words += [f"--attention-dp {worker.attention_dp}"] if worker.attention_dp > 1 else []
            words += [f"--moe-ep {worker.moe_ep}"] if worker.moe_ep else []
            if worker.speculative:
                words.append(f"--draft-tokens {worker.speculative.draft_tokens}")
            raise TargetError(
                f"benchmark {benchmark.name!r}: there is no engine profile of this deployment, so "
                f"that its timing isn't known; make one with: {' '.join(words)}"
            )
        return found

    def _profile_contents(
        self, benchmark: Benchmark, configuration: Configuration
    ) -> dict[str, str]:
        """Name and digest of each role's profile, by the name of its engine arguments.

        They stand for the path that Dynamo is given, which is another one in every run where
        prefixes are priced, and on every machine, so that no stored run could be compared with.
        """
        profiles = self.profiles(benchmark, configuration)
        return {
            _engine_key(worker): f"{profile.name}, sha256 {_digest(profile.path)}"
            for worker, profile in zip(configuration.workers, profiles, strict=True)
        }

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
        common = _pricing(worker, profile, traffic, None).surcharge_ms_per_token
        at_best = _pricing(worker, profile, traffic, ideal_cached_tokens(traffic))
        part = _pilot(traffic)
        if (
            _close(_priced(at_best, common)["charged_share_of_source"])
            or not worker.prefix_caching
            or not part.requests
        ):
            return common, 0
        progress.stage(f"pilot of {len(part.requests)} requests, to price prefixes")
        done = self._simulated(replace(planned, traffic=part), common)
        # The caches of a pilot are colder than those of the whole: what an ideal cache would find
        # in both says by how much.
        colder = _pricing(worker, profile, part, ideal_cached_tokens(part))
        if not colder.surcharge_ms_per_token:
            return common, len(part.requests)
        warmer = at_best.surcharge_ms_per_token / colder.surcharge_ms_per_token
        found = done.pricing
        charged = warmer * found.surcharge_ms_per_token
        difference = (common - charged) * found.new_tokens / found.source_ms
        rightly = self.prefix_pricing == "traffic" and abs(difference) <= _CLOSE_ENOUGH
        return common if rightly else charged, len(part.requests)

    def _simulated(self, planned: PlannedRun, charged_ms_per_token: float) -> _Simulated:
        """Simulate traffic once, with so much charged for each new token of a prefill."""
        benchmark, configuration = planned.benchmark, planned.configuration
        traffic, directory = planned.traffic, planned.directory
        worker, profile = self._prefilling(benchmark, configuration)
        arguments = engine_arguments(self, benchmark, configuration)
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
            _charge(arguments, worker, profile, charged_ms_per_token, directory)
            result = self._simulate(configuration, arguments, Path(scratch), directory)
            records = to_records(traffic, _read_rows(rows), configuration, self.speedup)
        cached = [record.cached_tokens or 0 for record in records]
        return _Simulated(
            arguments,
            result,
            records,
            _pricing(worker, profile, traffic, cached),
            charged_ms_per_token,
        )

    def _simulate(
        self,
        configuration: Configuration,
        arguments: Mapping[str, Any],
        scratch: Path,
        directory: Path,
    ) -> dict[str, Any]:
        result_path = scratch / "result.json"
        job = {"arguments": arguments, "seed": self.seed, "result": str(result_path)}
        job_path, log_path = directory / "replay-job.json", directory / "replay.log"
        job_path.write_text(json.dumps(job, indent=2) + "\n", encoding="utf-8")
        command = [sys.executable, child.__file__, str(job_path), str(os.getpid())]
        try:
            code = (self._running or _RunningSimulations()).run(
                command, log_path, self.timeout_seconds
            )
        except subprocess.TimeoutExpired:
            raise DeploymentError(
                f"configuration {configuration.name!r}: the simulation took longer than "
                f"{self.timeout_seconds:g} s and was ended; log: {log_path}"
            ) from None
        if code:
            tail = log_path.read_text("utf-8", errors="replace").splitlines()[-_LOG_LINES:]
            raise DeploymentError(
                f"configuration {configuration.name!r}: the simulation ended with exit code "
                f"{code}; the end of {log_path}:\n" + "\n".join(tail)
            )
        try:
            result = decoded(result_path.read_bytes(), _Result)
        except (OSError, ValueError) as error:
            raise DeploymentError(
                f"configuration {configuration.name!r}: the simulation ended without a result that "
                f"can be read ({error}); log: {log_path}"
            ) from None
        found: dict[str, Any] = msgspec.to_builtins(result)
        return found


def _charge(
    arguments: dict[str, Any],
    worker: Worker,
    profile: EngineProfile,
    ms_per_token: float,
    directory: Path,
) -> None:
    """Have the prefilling workers use their profile with a surcharge on new tokens."""
    if ms_per_token == 0:
        return
    path = directory / f"{profile.name}-with-prefix-priced.npz"
    with_surcharge(profile.tables, ms_per_token).write(path)
    name = _engine_key(worker)
    arguments[name] = {**arguments[name], "planner_profile_data": str(path)}


def _engine_key(worker: Worker) -> str:
    """What Dynamo's replay calls the engine arguments of a role."""
    return f"{'extra' if worker.mode == 'aggregated' else worker.mode}_engine_args"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _pricing(
    worker: Worker,
    profile: EngineProfile,
    traffic: Traffic,
    cached_tokens: Sequence[int] | None,
) -> PrefillPricing:
    """Price the prompts of a traffic; None where no token is cached."""
    inputs = [request.input_tokens for request in traffic.requests]
    step_tokens = worker.max_num_batched_tokens or _DEFAULT_STEP_TOKENS
    return price_prefills(profile.tables, inputs, cached_tokens or [0] * len(inputs), step_tokens)


def _pilot(traffic: Traffic) -> Traffic:
    """The first tenth of a long traffic's sessions; without requests if that saves nothing."""
    sessions = list(dict.fromkeys(request.session_id for request in traffic.requests))
    wanted = set(sessions[: len(sessions) // _PILOT_DIVISOR])
    part = [request for request in traffic.requests if request.session_id in wanted]
    return replace(traffic, requests=part if len(part) >= _LEAST_PILOT_REQUESTS else [])


def _close(share: float) -> bool:
    return abs(share - 1) <= _CLOSE_ENOUGH


def _priced(pricing: PrefillPricing, charged_ms_per_token: float) -> dict[str, float]:
    """What prefilling was charged in a run, and what it would cost by the source."""
    charged_ms = pricing.table_ms + charged_ms_per_token * pricing.new_tokens
    return {
        "surcharge_us_per_token": round(1000 * charged_ms_per_token, 3),
        "charged_seconds": round(charged_ms / 1000, 3),
        "source_seconds": round(pricing.source_ms / 1000, 3),
        "charged_share_of_source": round(charged_ms / max(pricing.source_ms, 1e-9), 4),
    }


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
    return {
        **engine_arguments(target, benchmark, configuration),
        "profiles": [profile.name for profile in target.profiles(benchmark, configuration)],
        "limitations": list(target.limitations(benchmark, configuration)),
    }


def engine_arguments(
    target: ReplayTarget, benchmark: Benchmark, configuration: Configuration
) -> dict[str, Any]:
    """A configuration as arguments of ``dynamo.replay.run_trace_replay``, traffic aside.

    Raises:
        TargetError: it cannot be expressed.
    """
    if configuration.router not in ROUTERS:
        raise TargetError(
            f"configuration {configuration.name!r}: router {configuration.router!r} cannot be "
            f"simulated; the replay has {', '.join(map(repr, ROUTERS))}"
        )
    router = ROUTERS[configuration.router]
    if _routing_targets(configuration) < 2:
        router = "round_robin"
    arguments: dict[str, Any] = {"router_mode": router, "replay_mode": "offline"}
    routing = _frontend(configuration).effect(configuration.frontend_args)
    if routing and router == ROUTERS["kv"]:
        arguments["router_config"] = routing
    profiles = target.profiles(benchmark, configuration)
    for worker, profile in zip(configuration.workers, profiles, strict=True):
        engine = _engine(benchmark, configuration, worker, profile)
        count = worker.replicas
        if ranks_as_workers(benchmark):
            count *= worker.attention_dp
        elif worker.attention_dp > 1:
            engine["dp_size"] = worker.attention_dp
        if worker.mode == "aggregated":
            arguments |= {"extra_engine_args": engine, "num_workers": count}
        else:
            arguments |= {
                f"{worker.mode}_engine_args": engine,
                f"num_{worker.mode}_workers": count,
            }
    return arguments


def ranks_as_workers(benchmark: Benchmark) -> bool:
    """Whether ranks of attention data parallelism are simulated as workers of their own.

    Dynamo's replay has no attention data parallelism in a split. Where a comparison has that,
    all of its configurations are simulated the same way, so that they can be compared.
    """
    return any(
        configuration.disaggregated and worker.attention_dp > 1
        for configuration in benchmark.configurations
        for worker in configuration.workers
    )


def _routing_targets(configuration: Configuration) -> int:
    """Workers or ranks that the router has to choose from, in the larger pool."""
    return max(worker.replicas * worker.attention_dp for worker in configuration.workers)


def _engine(
    benchmark: Benchmark, configuration: Configuration, worker: Worker, profile: EngineProfile
) -> dict[str, Any]:
    """Engine arguments of one role; per rank under attention data parallelism."""
    engine: dict[str, Any] = {
        "engine_type": _engine_type(benchmark),
        "block_size": configuration.block_size,
        "num_gpu_blocks": device_blocks(benchmark, configuration, worker),
        "enable_prefix_caching": worker.prefix_caching,
        "planner_profile_data": str(profile.path),
        "worker_type": worker.mode,
    }
    if worker.mode == "prefill":
        engine["max_num_seqs"] = _PREFILLS_AT_A_TIME
    elif worker.max_num_seqs is not None:
        engine["max_num_seqs"] = worker.max_num_seqs
    if worker.max_num_batched_tokens is not None:
        engine["max_num_batched_tokens"] = worker.max_num_batched_tokens
    bandwidth = benchmark.hardware.kv_transfer_gb_per_second
    if configuration.disaggregated and bandwidth is not None:
        engine["kv_transfer_bandwidth"] = bandwidth
        engine["kv_bytes_per_token"] = profile.dimensions.kv_bytes_per_token
    if worker.speculative is not None and worker.mode != "prefill":
        rates = worker.speculative.acceptance_rates
        if not rates:
            raise TargetError(
                f"configuration {configuration.name!r}: a simulation cannot know how many drafts "
                "are accepted; give SpeculativeDecoding its acceptance_rates"
            )
        engine["aic_nextn"] = worker.speculative.draft_tokens
        engine["aic_nextn_accept_rates"] = ",".join(f"{rate:g}" for rate in rates)
    return engine | _mocker(configuration, worker).effect(worker.engine_args)


def _frontend(configuration: Configuration) -> ParsedCommand:
    """What Dynamo makes of the frontend's options."""
    given = configuration.frontend_args
    if not given:
        return ParsedCommand()
    program = "dynamo.frontend"
    arguments = ["--router-mode", configuration.router, *option_arguments(given)]
    parsed = parse_command(program, arguments, {})
    refuse_unknown(f"configuration {configuration.name!r}", program, given, parsed)
    return parsed


def _mocker(configuration: Configuration, worker: Worker) -> ParsedCommand:
    """What the mocker makes of those options of a worker that it has; others are an engine's."""
    if not worker.engine_args:
        return ParsedCommand()
    program = "dynamo.mocker"
    known = parse_command(program, [], {}).known(worker.engine_args)
    parsed = parse_command(program, option_arguments(known), {})
    refuse_unknown(f"configuration {configuration.name!r}", program, known, parsed)
    return parsed


def _options_without_effect(configuration: Configuration) -> Iterator[str]:
    """The options and variables that a simulation knows nothing of, a sentence each."""
    given, variables = configuration.frontend_args, dict(configuration.env)
    routed = configuration.router == "kv" and _routing_targets(configuration) > 1
    for name in _frontend(configuration).without_effect(given) if routed else given:
        yield f"The frontend's --{name} has no effect in a simulation."
    for worker in configuration.workers:
        for name in _mocker(configuration, worker).without_effect(worker.engine_args):
            yield f"--{name} of the {worker.mode} workers has no effect in a simulation."
        variables |= worker.env
    for name in variables:
        yield f"The variable {name} has no effect in a simulation."


def _engine_type(benchmark: Benchmark) -> str:
    """The scheduler that is simulated, the same for all configurations of a comparison.

    The replay has no split for TensorRT-LLM's scheduler; vLLM's takes its place.
    """
    if benchmark.engine == "trtllm" and any(c.disaggregated for c in benchmark.configurations):
        return "vllm"
    return benchmark.engine


def _not_expressed(benchmark: Benchmark, configuration: Configuration) -> Iterable[str]:
    """What of the configuration the arguments above leave out or replace."""
    if _engine_type(benchmark) != benchmark.engine:
        yield (
            "Dynamo's replay has no prefill/decode split for TensorRT-LLM: in all configurations "
            "of this comparison its scheduler is simulated by vLLM's, with TensorRT-LLM's step "
            "times."
        )
    for worker in configuration.workers:
        if worker.kv_blocks is None:
            yield (
                f"KV blocks of the {worker.mode} workers are computed from the model's and the "
                "GPU's numbers, not taken from the deployment."
            )
        for name, default in (
            ("max_num_seqs", _DEFAULT_MAX_NUM_SEQS),
            ("max_num_batched_tokens", _DEFAULT_STEP_TOKENS),
        ):
            if name == "max_num_seqs" and worker.mode == "prefill":
                continue
            if getattr(worker, name) is None:
                yield f"{name} of the {worker.mode} workers is the replay's default, {default}."
    yield from _options_without_effect(configuration)
    yield from features_lacking(configuration)
    yield from feature_limits(configuration, "simulated")


def write_trace(requests: Sequence[TrafficRequest], path: Path) -> None:
    """Write requests in the Mooncake form that Dynamo's replay reads.

    Unlike the form that AIPerf reads, a later turn has its whole prompt. Every request names
    its session, by which its result is found again; but Dynamo drops the names where no
    session has a second turn. Such a trace gets one more session, of two requests of one token
    each, an hour after the last; its results are dropped. On a fixed schedule that leaves
    all others as they were; in a closed loop a step of the very last requests may have a
    token more.
    """
    ids: Mapping[int, int] | None = None
    if any(request.hash_ids and max(request.hash_ids) > _MAX_HASH_ID for request in requests):
        distinct = dict.fromkeys(block for request in requests for block in request.hash_ids)
        ids = {block: index for index, block in enumerate(distinct)}
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            hash_ids = request.hash_ids
            row: dict[str, Any] = {
                "session_id": request.session_id,
                "input_length": request.input_tokens,
                "output_length": request.output_tokens,
                "hash_ids": list(hash_ids) if ids is None else [ids[block] for block in hash_ids],
            }
            if request.turn == 0:
                row["timestamp"] = request.timestamp_ms
            else:
                row["delay"] = request.delay_ms
            file.write(json.dumps(row, separators=(",", ":")) + "\n")
        if not any(request.turn for request in requests):
            last_ms = max((request.timestamp_ms for request in requests), default=0.0)
            marker = {
                "session_id": _MARKER, "input_length": 1, "output_length": 1, "hash_ids": [0],
            }  # fmt: skip
            file.write(json.dumps(marker | {"timestamp": last_ms + 3_600_000}) + "\n")
            file.write(json.dumps(marker | {"delay": 0}) + "\n")


class _Row(msgspec.Struct):
    """What Dynamo's replay says of a request."""

    input_length: Tokens
    requested_output_length: Tokens
    output_length: Tokens
    terminal_status: str
    arrival_time_ms: Amount
    session_id: str | None = None
    turn_index: Count | None = None
    first_token_ms: Amount | None = None
    last_token_ms: Amount | None = None
    terminal_time_ms: Amount | None = None
    reused_input_tokens: Tokens | None = None
    prefill_route_overlap_tokens: Tokens | None = None
    prefill_worker_idx: Count | None = None
    decode_worker_idx: Count | None = None


class _Result(msgspec.Struct):
    """What the child says of a simulation."""

    report: dict[str, Any]
    seconds: Amount
    seeding: str
    peak_memory_mb: Count | None
    kv_offload_compiled: bool


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The requests of a simulation's report.

    Raises:
        DeploymentError: a line is none; the message names it and the field.
    """
    rows: list[dict[str, Any]] = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(msgspec.to_builtins(decoded(line, _Row)))
            except ValueError as error:
                raise DeploymentError(
                    f"what Dynamo's replay wrote cannot be read, request {number} ({error}); is it "
                    "another version of ai-dynamo than the one that is supported?"
                ) from None
    return rows


def to_records(
    traffic: Traffic,
    rows: Sequence[Mapping[str, Any]],
    configuration: Configuration,
    speedup: float = 1.0,
) -> tuple[RequestRecord, ...]:
    """Per-request results of a replay as records; requests without a result have an error.

    The replay knows when the first and the last token came, not those between: ``chunk_ms``
    has these two. It counts time from the first arrival; records count from the start of the
    traffic.
    """
    start_ms = min((request.timestamp_ms for request in traffic.requests), default=0.0) / speedup
    if rows and all(row["session_id"] is None for row in rows):
        found = _matched_by_length(traffic.requests, rows)
    else:
        by_turn = {(row["session_id"], row["turn_index"]): row for row in rows}
        found = [by_turn.get((request.session_id, request.turn)) for request in traffic.requests]
    return tuple(
        _record(request, row, start_ms, configuration)
        for request, row in zip(traffic.requests, found, strict=True)
    )


def _matched_by_length(
    requests: Sequence[TrafficRequest], rows: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any] | None]:
    """The result of each request where results don't name sessions.

    Dynamo leaves the names out where there is one worker. Requests with the same lengths are
    taken in the order in which they came and were served, which is the order of the trace
    unless such requests overtake each other.
    """
    order: dict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        order[row["input_length"], row["requested_output_length"]].append(row)
    for alike in order.values():
        alike.sort(key=lambda row: (row["arrival_time_ms"], row["first_token_ms"] or math.inf))
    waiting = {lengths: iter(alike) for lengths, alike in order.items()}
    none: Iterator[Mapping[str, Any]] = iter(())
    return [
        next(waiting.get((request.input_tokens, request.output_tokens), none), None)
        for request in requests
    ]


def _record(
    request: TrafficRequest,
    row: Mapping[str, Any] | None,
    start_ms: float,
    configuration: Configuration,
) -> RequestRecord:
    if row is None or row["terminal_status"] != "completed" or row["first_token_ms"] is None:
        status = "never started" if row is None else f"ended as {row['terminal_status']!r}"
        return RequestRecord(
            request.request_id, request.session_id, request.turn, request.timestamp_ms, None, (),
            None, request.input_tokens, request.output_tokens,
            error=f"in the simulation the request {status}",
        )  # fmt: skip
    arrival_ms = row["arrival_time_ms"] + start_ms
    first_ms, last_ms = row["first_token_ms"] + start_ms, row["last_token_ms"] + start_ms
    overlap = row["prefill_route_overlap_tokens"]
    # Dynamo leaves the index out where there is one worker.
    mode = "decode" if configuration.disaggregated else "aggregated"
    decode_worker = f"{mode}-{row['decode_worker_idx'] or 0}"
    prefill_worker = decode_worker
    if row["prefill_worker_idx"] is not None:
        prefill_worker = f"prefill-{row['prefill_worker_idx']}"
    return RequestRecord(
        request_id=request.request_id,
        session_id=request.session_id,
        turn=request.turn,
        scheduled_ms=arrival_ms,
        sent_ms=arrival_ms,
        chunk_ms=(first_ms, last_ms) if row["output_length"] > 1 else (first_ms,),
        end_ms=row["terminal_time_ms"] + start_ms,
        input_tokens=request.input_tokens,
        output_tokens=request.output_tokens,
        prompt_tokens=row["input_length"],
        completion_tokens=row["output_length"],
        cached_tokens=row["reused_input_tokens"],
        router_hit_rate=None if overlap is None else overlap / request.input_tokens,
        prefill_worker=prefill_worker,
        decode_worker=decode_worker,
    )


def _problems(
    result: Mapping[str, Any], seed: int | None, configuration: Configuration
) -> tuple[str, ...]:
    if seed is not None and result["seeding"] != "seeded" and configuration.router == "kv":
        return (f"the simulation is not reproducible: {result['seeding']}",)
    return ()


def _bare_command(arguments: Mapping[str, Any]) -> str:
    """The same simulation as a command of Dynamo's own, to be pasted into a shell."""
    words = ["python", "-m", "dynamo.replay", "trace.jsonl"]
    for name, value in arguments.items():
        if name in ("trace_files", "report_jsonl_path"):
            continue
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)

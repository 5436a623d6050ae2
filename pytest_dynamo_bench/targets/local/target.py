"""The local target: bring a configuration up as processes, send real requests, take it down."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import platform
import re
import shutil
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import psutil

from pytest_dynamo_bench.benchmark import (
    SCALES,
    Benchmark,
    Configuration,
    ScaleName,
    Size,
)
from pytest_dynamo_bench.dynamo.abilities import untried
from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.engines import (
    device_blocks,
    find_profile,
    host_tiers,
    model_dimensions,
)
from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.features import Simulation, feature_limits
from pytest_dynamo_bench.load.aiperf import AiperfGenerator, find_aiperf
from pytest_dynamo_bench.load.chat import count_words
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import Generator, LoadGenerator
from pytest_dynamo_bench.outside import decoded
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import PlannedRun, Progress, Tally
from pytest_dynamo_bench.targets.frontend_metrics import scrape
from pytest_dynamo_bench.targets.local.block_hashes import block_hashes
from pytest_dynamo_bench.targets.local.cache_hits import (
    with_cached_tokens,
    with_hits_of_both_tiers,
    with_host_tokens,
)
from pytest_dynamo_bench.targets.local.commands import (
    LOOPBACK,
    Ports,
    check_options,
    check_programs,
    kv_blocks,
    process_specs,
)
from pytest_dynamo_bench.targets.local.engine_events import (
    EngineEvents,
    read_events,
    with_decode_steps,
)
from pytest_dynamo_bench.targets.local.image_engine import ImageEngine
from pytest_dynamo_bench.targets.local.model_directory import write_model_directory
from pytest_dynamo_bench.targets.local.processes import Processes, tail
from pytest_dynamo_bench.targets.local.scaling import in_words, sized, survived
from pytest_dynamo_bench.targets.local.vision.deployment import VisionWorkers
from pytest_dynamo_bench.targets.local.vision.pollers import Pollers, lower_poller_priority
from pytest_dynamo_bench.targets.local.vllm.deployment import VllmWorkers
from pytest_dynamo_bench.targets.running import run
from pytest_dynamo_bench.traffic import (
    Concurrency,
    NoiseImages,
    Traffic,
    TrafficRequest,
    describe,
)

_READY_SECONDS = 90.0
_POLL_SECONDS = 0.1
_WATCH_SECONDS = 0.5
_ATTEMPTS = 3
_PORT_TAKEN = re.compile(r"address (already )?in use|EADDRINUSE|os error 98", re.IGNORECASE)
# Prompts shorter than a block of the cache leave no trace in it.
_WARM_UP_TOKENS = 8
_WARM_UP_BLOCK_ID = 2**64 - 1
# Separate images, too small to take room from others in a cache of embeddings.
_WARM_UP_IMAGES = NoiseImages(32, 32, seed=2**32 - 1)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class LocalOptions:
    """How this machine is used.

    Attributes:
        scale: how much of a benchmark's traffic is sent, as the benchmark's ``sizes`` say.
        seconds: another length of each configuration's traffic than that of the scale.
        frontend_port: a port that the frontend must use; a free one when None.
        seed: chooses among equally good cuts.
        load: the load generator: ``own`` or ``aiperf``.
        load_processes: that the own load generator runs in.
        engine: ``mocker``, with a vision worker of ours for images, or ``vllm``, Dynamo's real
            backend for images only.
    """

    scale: ScaleName = "standard"
    seconds: float | None = None
    frontend_port: int | None = None
    seed: int = 0
    load: str = "own"
    load_processes: int = 1
    engine: str = "mocker"


class LocalTarget:
    """Dynamo's real frontend and router with mocker workers, as child processes on loopback."""

    name = "local"

    def __init__(self, options: LocalOptions | None = None) -> None:
        self._options = options or LocalOptions()
        self._images: ImageEngine = (
            VllmWorkers() if self._options.engine == "vllm" else VisionWorkers()
        )

    def check(self, benchmark: Benchmark) -> None:
        """Find out whether Dynamo and the engine are installed and the asked port is free.

        Raises:
            TargetError: says what to install or change.
        """
        self._images.check(benchmark)
        for configuration in benchmark.configurations:
            for dynamo in self._images.dynamos(configuration).values():
                for module in ("dynamo.frontend", "dynamo.mocker"):
                    if module not in dynamo.modules:
                        raise TargetError(
                            f"configuration {configuration.name!r}: {dynamo} has no {module}; name "
                            "another release with --dynamo-version"
                        )
        if self._options.load == "aiperf":
            find_aiperf()
        port = self._options.frontend_port
        if port is not None and not _is_free(port):
            raise TargetError(
                f"port {port} on {LOOPBACK} is in use by another process; use another "
                "--dynamo-frontend-port, or leave the option out to use a free port"
            )
        images = benchmark.traffic.load().images is not None
        for configuration in benchmark.configurations:
            if configuration.gives_options:
                check_options(benchmark, configuration, images=images)
            if not images:
                check_programs(benchmark, configuration)

    def size(self, benchmark: Benchmark) -> Size:
        """How much of the benchmark's traffic is sent, after all options."""
        return benchmark.size(self._options.scale).lasting(self._options.seconds)

    def traffic(self, benchmark: Benchmark) -> Traffic:
        """The benchmark's traffic at the size that the options ask for.

        Raises:
            TrafficError: the traffic cannot be read, or is too short for such a cut.
        """
        return sized(benchmark, self._options.scale, self.size(benchmark), self._options.seed)

    def not_measured(self, benchmark: Benchmark, configurations: Iterable[str]) -> str:
        """Why claims about these configurations cannot be judged so; or empty."""
        if why := self._images.not_served(benchmark):
            return why
        brought_up = self.size(benchmark).configurations
        missing = [n for n in configurations if brought_up is not None and n not in brought_up]
        if not missing:
            return ""
        larger = SCALES[SCALES.index(self._options.scale) + 1 :][:1]
        remedy = f"; use --dynamo-scale={larger[0]}" if larger else ""
        return f"{', '.join(missing)} is not started at scale {self._options.scale}{remedy}"

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What is modelled here, and by what."""
        if benchmark.traffic.load().images is not None:
            return self._images.limitations(benchmark, configuration, self.traffic(benchmark))
        found = [
            "workers are Dynamo's mockers: scheduling, KV cache and routing are real, step times "
            "are modelled",
            "all workers share this machine; the network between them is modelled",
        ]
        fast = self.size(benchmark).fast_forward
        if fast != 1:
            found.append(
                f"modelled time runs {fast:g} times faster than real time, so HTTP, routing and "
                f"tokenizing, which are real, weigh {fast:g} times as much as they should"
            )
        for worker in configuration.workers:
            if worker.kv_blocks is None and kv_blocks(benchmark, configuration, worker):
                found.append(
                    f"{worker.mode} workers: KV blocks are computed from the model and the GPU"
                )
            profile = find_profile(
                benchmark.model, benchmark.hardware.gpu, benchmark.engine, worker
            )
            found.append(
                f"{worker.mode} workers: step times of engine profile {profile.name}, "
                f"{profile.provenance['tool']}"
                if profile is not None
                else f"{worker.mode} workers: there is no engine profile of {benchmark.model} on "
                f"{benchmark.hardware.gpu} with tp={worker.tp}, so step times are Dynamo's generic "
                "built-in model"
            )
        tiers = host_tiers(benchmark, configuration, benchmark.engine)
        modelled = Simulation(benchmark, configuration, host_tiers=tiers)
        if tiers and configuration.disaggregated:
            found.append(
                "hits of the KV cache are unknown: blocks that come back from the host tier look "
                "like computed ones, and a response has the hits of its decode worker"
            )
        found += feature_limits(modelled, "stand-in")
        return tuple(found)

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Start, warm, measure and stop; see :class:`~..base.Target`.

        Raises:
            DeploymentError: the configuration failed to start.
            UnavailableError: it needs a package that isn't installed.
        """
        images = self._images if planned.traffic.images is not None else None
        if images is not None:
            images.check_configuration(planned.benchmark, planned.configuration)
        measuring = _Measurement(
            planned, progress, self._options, self.size(planned.benchmark), images,
            self._images.dynamos(planned.configuration),
        )  # fmt: skip
        return run(measuring.run())


def _portable(text: str, scratch: Path) -> str:
    """Without paths that mean something on this machine only."""
    package = Path(__file__).parents[2]
    return text.replace(str(scratch), "<scratch>").replace(str(package), f"<{package.name}>")


class _PortTakenError(DeploymentError):
    """Another process took a port between choosing it and binding it."""


class _Measurement:
    """One configuration from nothing to a run and back to nothing."""

    def __init__(
        self,
        planned: PlannedRun,
        progress: Progress,
        options: LocalOptions,
        size: Size,
        images: ImageEngine | None,
        dynamos: Mapping[str, DynamoEnvironment],
    ) -> None:
        self._images = images
        self._dynamos = dynamos
        self._processor_use: list[float] = []
        self._pollers = Pollers()
        self._size = size
        self._fast_forward = size.fast_forward
        self._ramp_seconds = size.ramp_seconds
        self._benchmark, self._configuration = planned.benchmark, planned.configuration
        self._traffic = planned.traffic
        self._directory = planned.directory
        self._logs = planned.directory / "logs"
        self._progress = progress
        self._options = options
        self._host_tiers = (
            {}
            if images is not None
            else host_tiers(self._benchmark, self._configuration, self._benchmark.engine)
        )

    async def run(self) -> Run:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await self._attempt()
            except _PortTakenError:
                if attempt == _ATTEMPTS or self._options.frontend_port is not None:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _attempt(self) -> Run:
        self._logs.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="dynamo-bench-"))
        try:
            self._progress.stage("starting")
            (scratch / "discovery").mkdir()
            ports = _choose_ports(self._options.frontend_port)
            serving = None
            if self._images is None:
                write_model_directory(scratch / "model", model_dimensions(self._benchmark.model))
            else:
                self._images.write_model(scratch / "model", self._benchmark)
                serving = self._images.serving(
                    self._benchmark, self._configuration, self._traffic, scratch
                )
            specs = process_specs(
                self._benchmark, self._configuration, scratch, self._logs, ports,
                self._fast_forward, serving,
            )  # fmt: skip
            after = Aftermath(self._directory)
            after.note(untried(*self._dynamos.values()))
            started = time.monotonic()
            with after.once_measured("stopping"):
                async with Processes(specs, scratch) as processes:
                    model = str(scratch / "model")
                    async with _frontend(ports) as frontend:
                        await self._until_ready(processes, frontend, model)
                        ready_seconds = time.monotonic() - started
                        self._progress.stage(f"ready after {ready_seconds:.1f} s")
                        run = await self._measure(processes, frontend, ports, model, scratch, after)
                    self._progress.stage("stopping")
            # As it reads back from JSON.
            described = json.loads(json.dumps(self._configuration.as_dict()))
            deployed = {
                "model": self._benchmark.model,
                "engine": self._images.name if self._images else "mocker",
                "router": self._configuration.router,
                "workers": self._configuration.replicas,
                # Command lines have ports and paths in them, so that a stored run is compared
                # by this: what was asked of the workers.
                "block_size": self._configuration.block_size,
                "fast_forward": self._fast_forward,
                "engines": {item["mode"]: item for item in described["workers"]},
                "frontend_args": described["frontend_args"],
                "env": described["env"],
                "processes": {
                    spec.name: [_portable(part, scratch) for part in spec.argv[1:]]
                    for spec in specs
                },
                "environment": {
                    key: _portable(value, scratch)
                    for key, value in specs[0].environment.items()
                    if key.startswith(("DYN_", "HF_HUB_OFFLINE"))
                },
                "ready_seconds": round(ready_seconds, 2),
            }
            if self._host_tiers:
                deployed["host_tiers"] = {k: vars(tier) for k, tier in self._host_tiers.items()}
            return dataclasses.replace(
                run, deployed=deployed, problems=after.problems, notes=after.notes
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _until_ready(
        self, processes: Processes, frontend: httpx.AsyncClient, model: str
    ) -> None:
        """Wait until the frontend lists our model with all its workers, then ask it once.

        The model's name is a directory made for this deployment, so that an answer cannot
        come from another frontend.
        """
        seen = 0
        seconds = self._images.ready_seconds if self._images else _READY_SECONDS
        try:
            async with asyncio.timeout(seconds):
                while True:
                    self._raise_if_dead(processes, "during startup")
                    with contextlib.suppress(httpx.HTTPError, ValueError):
                        seen = await _workers_of(frontend, model)
                    if seen >= self._configuration.replicas:
                        return
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            logs = "\n".join(
                f"{name}.log ends:\n{processes.log_tail(name)}" for name in processes.pids
            )
            raise DeploymentError(
                f"{self._configuration.name} was not ready after {seconds:.0f} s: the frontend "
                f"listed {seen} of {self._configuration.replicas} workers\n{logs}"
            ) from None

    async def _measure(
        self,
        processes: Processes,
        frontend: httpx.AsyncClient,
        ports: Ports,
        model: str,
        scratch: Path,
        after: Aftermath,
    ) -> Run:
        server = Server(f"http://{LOOPBACK}:{ports.frontend}/v1/chat/completions")
        self._progress.stage("warming")
        await self._unless_dead(
            processes, self._warm_up(server, model, scratch), "while warming up"
        )
        if any(worker.frontend_decoding for worker in self._configuration.workers):
            self._pollers = await lower_poller_priority(processes.pids.values())
        self._progress.stage("measuring")
        used = _cpu_seconds(processes)
        generator = self._generator(server, model)
        with after.sending(generator):
            await self._send(processes, generator)
        records, started_at = generator.records(), generator.started_at
        observed: dict[str, Any] = {}
        with after.step("looking at the machine and its processes"):
            observed |= {
                **_versions(self._dynamos),
                "machine": _machine(),
                "processor_use": [round(share, 2) for share in self._processor_use],
                "load_generator": generator.health(),
                "cpu_seconds": {
                    name: round(seconds - used.get(name, 0.0), 2)
                    for name, seconds in _cpu_seconds(processes).items()
                },
            }
        if not after.problems:
            with after.step("asking the frontend what it saw"):
                observed |= await self._observe(frontend, model, after)
        with after.step("reading what the workers said of the requests"):
            records, reported = (
                self._with_engine_events(records, scratch, started_at, after)
                if self._images is None
                else _with_images(self._images, records, scratch)
            )
            observed |= reported
        return self._run(records, observed, started_at)

    def _with_engine_events(
        self, records: list[RequestRecord], scratch: Path, started_at: str, after: Aftermath
    ) -> tuple[list[RequestRecord], dict[str, Any]]:
        events = read_events(scratch / "events.jsonl")
        if events.unreadable:
            after.problems.append(f"{events.unreadable} mocker events were unreadable")
        start_wall_ms = datetime.fromisoformat(started_at).timestamp() * 1000
        records = self._with_mechanisms(records, events, start_wall_ms)
        prefilling = {record.prefill_worker for record in records}
        reported = {
            "engine_prefill_tokens": sum(
                tokens for worker, tokens in events.prefill_tokens.items() if worker in prefilling
            ),
            "engine_decode_steps": events.decode_steps,
            "evicted_blocks": events.removed_blocks,
        }
        return records, reported

    def _run(self, records: list[RequestRecord], observed: dict[str, Any], started_at: str) -> Run:
        whole = self._benchmark.traffic.load()
        return Run(
            benchmark=self._benchmark.name,
            configuration=self._configuration.name,
            target="local",
            gpus=self._configuration.gpus,
            records=records,
            started_at=started_at,
            stand_in_engines=True,
            observed=observed,
            traffic={
                "history": list(self._traffic.history),
                "schedule": self._traffic.schedule.description,
                **dataclasses.asdict(describe(self._traffic)),
                "published_and_sent": survived(
                    self._benchmark, self._configuration, whole, self._traffic
                ),
                "scaling": in_words(
                    self._benchmark, self._configuration, self._size, whole, self._traffic
                ),
            },
        )

    def _with_mechanisms(
        self, records: list[RequestRecord], events: EngineEvents, start_wall_ms: float
    ) -> list[RequestRecord]:
        """The records with what the engines' events tell of the features at work."""
        size = self._configuration.block_size
        records = with_decode_steps(records, events, start_wall_ms, self._fast_forward)
        worker = next(item for item in self._configuration.workers if item.mode != "decode")
        if not worker.prefix_caching:
            # Such an engine stores no blocks, and finds none.
            return [dataclasses.replace(record, cached_tokens=0) for record in records]
        prompts = block_hashes(
            self._dynamos[worker.mode], self._traffic.requests, self._traffic.block_tokens, size
        )
        counted = with_cached_tokens(
            records, prompts, events, start_wall_ms, size, self._fast_forward
        )
        if worker.kv_offload is None:
            return counted
        if worker.mode in self._host_tiers and self._configuration.disaggregated:
            # A response has the hits of the decode worker, which are others.
            return [dataclasses.replace(record, cached_tokens=None) for record in records]
        if worker.mode in self._host_tiers:
            return with_hits_of_both_tiers(counted, records)
        device = device_blocks(self._benchmark, self._configuration, worker)
        return with_host_tokens(counted, prompts, size, device)

    def _generator(self, server: Server, model: str) -> Generator:
        if self._options.load == "aiperf":
            return AiperfGenerator(server, model, self._logs)
        return LoadGenerator(
            server, model, processes=self._options.load_processes, count_tokens=count_words,
            fast_forward=self._fast_forward, ramp_seconds=self._ramp_seconds,
        )  # fmt: skip

    async def _send(self, processes: Processes, generator: Generator) -> None:
        """Send the traffic.

        Raises:
            DeploymentError: a process died.
        """
        tally = Tally(self._progress, len(self._traffic.requests), generator.latest)
        watching = asyncio.ensure_future(self._watch_processor())
        try:
            await self._unless_dead(
                processes, generator.send(self._traffic, tally), "while measuring"
            )
        except DeploymentError as error:
            raise DeploymentError(
                f"{error}\n  ({tally.done} of {tally.total} requests had ended by then)"
            ) from None
        finally:
            watching.cancel()
        self._raise_if_dead(processes, "at the end of the run")

    async def _watch_processor(self) -> None:
        """Note how busy this machine is; one that has nothing left delays what it models.

        Threads that only take what is left do not count.
        """
        psutil.cpu_percent()
        polled, since = self._pollers.seconds(), time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            polled_before, polled = polled, self._pollers.seconds()
            began, since = since, time.monotonic()
            share = (polled - polled_before) / (since - began) / (psutil.cpu_count() or 1)
            self._processor_use.append(max(0.0, psutil.cpu_percent() / 100 - share))

    async def _warm_up(self, server: Server, model: str, scratch: Path) -> None:
        """Two short requests per worker, so that none has its first request measured."""
        count = 2 * self._configuration.replicas
        images = _WARM_UP_IMAGES if self._images is not None else None
        requests = [
            TrafficRequest(f"warm-{i}", f"warm-{i}", 0, 0.0, 0.0, _WARM_UP_TOKENS, 2,
                           (_WARM_UP_BLOCK_ID - i,), (i,) if images else ())
            for i in range(count)
        ]  # fmt: skip
        traffic = Traffic(requests, Concurrency(4), self._traffic.block_tokens, (), images)
        generator = LoadGenerator(server, model, request_timeout_seconds=30, processes=0)
        await generator.send(traffic, lambda whole: None)
        records = generator.records()
        if self._images is not None:
            records = self._images.with_measures(records, self._images.measures(scratch))
        for record in records:
            if record.error:
                raise DeploymentError(
                    f"{self._configuration.name} started but did not respond: {record.error}"
                )
            if record.prompt_tokens != _WARM_UP_TOKENS:
                raise DeploymentError(
                    f"{self._configuration.name} counts {record.prompt_tokens} tokens in a prompt "
                    f"of {_WARM_UP_TOKENS}; is this the right model?"
                )

    async def _observe(
        self, frontend: httpx.AsyncClient, model: str, after: Aftermath
    ) -> dict[str, Any]:
        counters, notes = await scrape(frontend, self._logs)
        after.note(notes)
        observed: dict[str, Any] = {"model": self._benchmark.model, "frontend": counters}
        try:
            observed["workers"] = await _workers_of(frontend, model)
        except (httpx.HTTPError, ValueError) as error:
            after.note([f"the number of workers at the end is unknown: {error!r}"])
        return observed

    async def _unless_dead(
        self, processes: Processes, work: Coroutine[Any, Any, T], when: str
    ) -> T:
        """Do the work, but cancel it as soon as a process ends."""
        working = asyncio.ensure_future(work)
        ended = asyncio.ensure_future(processes.died())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            self._raise_if_dead(processes, when)
            raise DeploymentError(f"{self._configuration.name} {when}: {ended.result()}")
        finally:
            for task in (working, ended):
                task.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)

    def _raise_if_dead(self, processes: Processes, when: str) -> None:
        if not (processes.exits or processes.failure):
            return
        logs = [tail(log, lines=100) for log in self._logs.glob("*.log")]
        kind = (
            _PortTakenError
            if when == "during startup" and any(_PORT_TAKEN.search(log) for log in logs)
            else DeploymentError
        )
        raise kind(f"{self._configuration.name} died {when}: {processes.exit_report()}")


@asynccontextmanager
async def _frontend(ports: Ports) -> AsyncIterator[httpx.AsyncClient]:
    address = f"http://{LOOPBACK}:{ports.frontend}"
    # Proxies of the environment are for the outside, never for loopback.
    async with httpx.AsyncClient(base_url=address, timeout=5, trust_env=False) as client:
        yield client


def _cpu_seconds(processes: Processes) -> dict[str, float]:
    """CPU time that each process of a deployment has used so far, with its children."""
    found = {}
    for name, pid in processes.pids.items():
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            every = [item.cpu_times() for item in (process, *process.children(recursive=True))]
            found[name] = sum(times.user + times.system for times in every)
    return found


def _versions(dynamos: Mapping[str, DynamoEnvironment]) -> dict[str, Any]:
    """The frontend's version of Dynamo, and those of the workers where they have others."""
    found = {role: dynamo.version for role, dynamo in dynamos.items()}
    frontend = found.pop("frontend")
    others = found if set(found.values()) != {frontend} else {}
    return {"dynamo_version": frontend} | ({"dynamo_of_workers": others} if others else {})


def _machine() -> str:
    """Processor and cores, on which the times of real processes depend."""
    processor, info = platform.machine(), Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text("utf-8"), re.M)
        processor = names[0] if names else processor
    return f"{processor}, {psutil.cpu_count()} cores"


class _Model(msgspec.Struct):
    id: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Instance(msgspec.Struct):
    endpoint: str = ""


class _Health(msgspec.Struct):
    instances: list[_Instance] = []


async def _workers_of(frontend: httpx.AsyncClient, model: str) -> int:
    """How many workers serve ``model``; 0 as long as the frontend does not list it.

    Raises:
        httpx.HTTPError, ValueError: it does not answer so.
    """
    listed = decoded((await frontend.get("/v1/models")).content, _Models)
    if model not in [entry.id for entry in listed.data]:
        return 0
    health = decoded((await frontend.get("/health")).content, _Health)
    return sum(instance.endpoint == "generate" for instance in health.instances)


def _with_images(
    engine: ImageEngine, records: list[RequestRecord], scratch: Path
) -> tuple[list[RequestRecord], dict[str, Any]]:
    measures = engine.measures(scratch)
    reported = {**engine.versions, **engine.summary(measures, records)}
    return engine.with_measures(records, measures), reported


def _choose_ports(frontend_port: int | None) -> Ports:
    """Free ports, all chosen at once so that they differ.

    Between here and the bind of the process that gets it, another process can take a port. The
    process then ends, and the deployment is tried again with other ports.
    """
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for sock in sockets:
            sock.bind((LOOPBACK, 0))
        frontend, publishers, subscribers = (sock.getsockname()[1] for sock in sockets)
    return Ports(frontend_port or frontend, publishers, subscribers)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((LOOPBACK, port))
        except OSError:
            return False
    return True

"""A simulation as data: what goes in, what comes out, and the function that makes one of the other.

Nothing of it names a path of the machine that asks for it, so that any machine with the same Dynamo
can make it.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

import pytest_dynamo_bench
from pytest_dynamo_bench.engines import PrefillPricing, with_surcharge
from pytest_dynamo_bench.engines.profiles import ProfileTables
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.replay.arguments import DEFAULT_STEP_TOKENS
from pytest_dynamo_bench.targets.replay.pricing import (
    CLOSE_ENOUGH,
    PrefixPricing,
    charged_and_source,
    charged_rightly,
    pilot_of,
    priced_at_best,
    priced_prefills,
)
from pytest_dynamo_bench.targets.replay.results import (
    Row,
    finished,
    matched,
    read_rows,
    to_records,
    write_trace,
)
from pytest_dynamo_bench.targets.replay.running import run_child
from pytest_dynamo_bench.traffic import Traffic

_MOST_SIMULATIONS = 3
_PACKAGE = Path(pytest_dynamo_bench.__file__).parent


@dataclass(frozen=True)
class Simulation:
    """All that a simulation depends on.

    Attributes:
        configuration: its name, for messages.
        arguments: of ``dynamo.replay.run_trace_replay``, without files.
        profiles: the ``.npz`` of each role, by the name of its engine arguments.
        traffic: as it is sent.
        seed: decides ties in the KV router; None leaves them to chance.
        prefix_pricing: see :class:`~pytest_dynamo_bench.targets.replay.target.ReplayTarget`.
        timeout_seconds: a replay that takes longer is ended.
        dynamo: whose replay it is, as a configuration names it.
        build: which build of it.
    """

    configuration: str
    arguments: Mapping[str, Any]
    profiles: Mapping[str, bytes]
    traffic: Traffic
    seed: int | None
    prefix_pricing: PrefixPricing
    timeout_seconds: float
    dynamo: str | None
    build: str

    @property
    def prefilling(self) -> str:
        """The name of the engine arguments of the workers that process prompts."""
        return next(name for name in self.profiles if not name.startswith("decode"))

    @functools.cached_property
    def tables(self) -> ProfileTables:
        """The profile of the workers that process prompts."""
        return ProfileTables.read(io.BytesIO(self.profiles[self.prefilling]))

    @property
    def step_tokens(self) -> int:
        """The most tokens of one of their steps."""
        engine = self.arguments[self.prefilling]
        return int(engine.get("max_num_batched_tokens") or DEFAULT_STEP_TOKENS)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what comes out; names and labels are no part of it.

        The package's code is: how a configuration is simulated is nowhere else to be read.
        """
        content = {
            "versions": versions(),
            "ai-dynamo": self.build,
            "arguments": self.arguments,
            "profiles": {name: _sha256(data) for name, data in self.profiles.items()},
            "seed": self.seed,
            "prefix_pricing": self.prefix_pricing,
            "requests": _sha256(msgspec.msgpack.encode(list(self.traffic.requests))),
        }
        return _sha256(json.dumps(content, sort_keys=True).encode())[:32]

    def records(self, simulated: Simulated) -> tuple[RequestRecord, ...]:
        """What came out, as a record for each request."""
        return to_records(
            self.traffic,
            simulated.rows,
            disaggregated="prefill_engine_args" in self.arguments,
            block_size=self.arguments[self.prefilling]["block_size"],
            speedup=self.arguments["arrival_speedup_ratio"],
        )


class Simulated(msgspec.Struct, frozen=True):
    """What came out of a simulation.

    Attributes:
        rows: what Dynamo says of each request, in the order of the traffic.
        report: Dynamo's own figures.
        seconds: that Dynamo took for the last replay; ``wall_seconds`` is all of the time.
        seeding: ``seeded``, or why it was not.
        charged_ms_per_token: what was added to the time of each new token of a prefill.
        prefill_pricing: what prefilling was charged, and what it would cost by the source.
        log: what the replay wrote.
    """

    rows: list[Row | None]
    report: dict[str, Any]
    seconds: float
    wall_seconds: float
    seeding: str
    peak_memory_mb: int | None
    charged_ms_per_token: float
    prefill_pricing: dict[str, float]
    log: str


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """What of the installation decides what a simulation gives, beside its Dynamo."""
    return {
        "pytest-dynamo-bench": pytest_dynamo_bench.__version__,
        "code": _code_digest(_PACKAGE),
    }


@functools.cache
def _code_digest(package: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(code)}\n".encode())
        digest.update(code)
    return digest.hexdigest()


def simulate(job: Simulation) -> Simulated:
    """Simulate the traffic, as often as it takes to charge prefills what they cost.

    Raises:
        SimulationError: Dynamo's replay ended with an error, or was ended.
    """
    began = time.perf_counter()
    charged, pilot = _first_charge(job)
    for attempt in range(1, _MOST_SIMULATIONS + 1):
        done = _replay(job, job.traffic, charged)
        if job.prefix_pricing == "none" or (
            charged_rightly(done.pricing, charged)
            and (job.prefix_pricing == "traffic" or pilot or attempt > 1)
        ):
            break
        if attempt < _MOST_SIMULATIONS:
            charged = done.pricing.surcharge_ms_per_token
    priced = charged_and_source(done.pricing, charged)
    return Simulated(
        rows=done.rows,
        report=done.said["report"],
        seconds=done.said["seconds"],
        wall_seconds=time.perf_counter() - began,
        seeding=done.said["seeding"],
        peak_memory_mb=done.said["peak_memory_mb"],
        charged_ms_per_token=charged,
        prefill_pricing={**priced, "simulations": attempt, "pilot_requests": pilot},
        log=done.log,
    )


def _first_charge(job: Simulation) -> tuple[float, int]:
    """What each new token is charged at first, ms, and the requests of a pilot for it.

    Without anything in the caches, the charge is the same for all configurations. Where that
    could be wrong by more than 5 % for what a cache might hold at best, a tenth of the
    sessions is simulated to see whether it is, which saves simulating all of them twice.
    """
    if job.prefix_pricing == "none":
        return 0.0, 0
    how = job.tables, job.step_tokens
    common = priced_prefills(*how, job.traffic).surcharge_ms_per_token
    at_best = priced_at_best(*how, job.traffic)
    part = pilot_of(job.traffic)
    if (
        charged_rightly(at_best, common)
        or not job.arguments[job.prefilling]["enable_prefix_caching"]
        or not part.requests
    ):
        return common, 0
    found = _replay(job, part, common).pricing
    # The caches of a pilot are colder than those of the whole: what an ideal cache would find
    # in both says by how much.
    colder = priced_at_best(*how, part)
    if not colder.surcharge_ms_per_token:
        return common, len(part.requests)
    warmer = at_best.surcharge_ms_per_token / colder.surcharge_ms_per_token
    charged = warmer * found.surcharge_ms_per_token
    difference = (common - charged) * found.new_tokens / found.source_ms
    rightly = job.prefix_pricing == "traffic" and abs(difference) <= CLOSE_ENOUGH
    return common if rightly else charged, len(part.requests)


@dataclass(frozen=True)
class _Replayed:
    """One replay: what Dynamo said of each request and of the whole, and what prefilling cost."""

    rows: list[Row | None]
    said: Mapping[str, Any]
    pricing: PrefillPricing
    log: str


def _replay(job: Simulation, traffic: Traffic, charged_ms_per_token: float) -> _Replayed:
    """Simulate a traffic once, with so much charged for each new token of a prefill.

    The files have no name, so that they are gone with the process, however that ends.
    """
    with ExitStack() as stack:

        def file(content: bytes = b"") -> tuple[int, Path]:
            opened = stack.enter_context(tempfile.TemporaryFile())
            opened.write(content)
            opened.flush()
            return opened.fileno(), Path(f"/dev/fd/{opened.fileno()}")

        files = {name: file() for name in ("trace", "rows", "result")}
        arguments: dict[str, Any] = {
            **job.arguments,
            "trace_files": str(files["trace"][1]),
            "report_jsonl_path": str(files["rows"][1]),
        }
        for name, content in job.profiles.items():
            if name == job.prefilling and charged_ms_per_token:
                tables = io.BytesIO()
                with_surcharge(job.tables, charged_ms_per_token).write(tables)
                content = tables.getvalue()
            files[name] = file(content)
            arguments[name] = {**arguments[name], "planner_profile_data": str(files[name][1])}
        write_trace(traffic.requests, files["trace"][1])
        given = {"arguments": arguments, "seed": job.seed, "result": str(files["result"][1])}
        files["job"] = file(json.dumps(given).encode())
        said, log = run_child(
            job.configuration,
            files["job"][1],
            files["result"][1],
            [number for number, _ in files.values()],
            job.timeout_seconds,
            job.dynamo,
        )
        rows = matched(traffic.requests, read_rows(files["rows"][1]))
    cached = [row.reused_input_tokens or 0 if finished(row) else 0 for row in rows]
    pricing = priced_prefills(job.tables, job.step_tokens, traffic, cached)
    return _Replayed(rows, said, pricing, log)


def lean(traffic: Traffic) -> Traffic:
    """The traffic with what a simulation uses of it."""
    return replace(traffic, images=None, history=())

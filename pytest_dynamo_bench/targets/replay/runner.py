"""The one place that has simulations made: where, how many at a time, and none of them twice."""

from __future__ import annotations

import importlib
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_dynamo_bench.dynamo.environment import resolve
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.files import write_whole
from pytest_dynamo_bench.targets.options import LOCAL_EXECUTOR
from pytest_dynamo_bench.targets.replay.running import LocalExecutor, SimulationError
from pytest_dynamo_bench.targets.replay.simulation import (
    Simulated,
    Simulation,
    simulate,
    versions,
)

Key = TypeVar("Key")
_IGNORED = "# Simulations, found by a hash of what went in; safe to delete.\n*\n"
_CONNECT_SECONDS = 10
_UNBOUNDED = 1_000_000
_PACKAGES = ("pytest-dynamo-bench", "ai-dynamo")


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class SimulationCache:
    """What has been simulated, found by the fingerprint of what went in.

    Attributes:
        memory: for as long as somebody has it; None keeps nothing there.
        directory: for good; made if need be, and hidden from git. None keeps nothing there.
    """

    memory: dict[str, bytes] | None = None
    directory: Path | None = None

    def get(self, job: Simulation) -> Simulated | None:
        """What came out; None where that is not known, or its file is damaged."""
        # Ties that are left to chance fall otherwise every time.
        if job.seed is None:
            return None
        data = (self.memory or {}).get(job.fingerprint)
        try:
            if data is None and self.directory is not None:
                data = self._path(self.directory, job).read_bytes()
            if data is None:
                return None
            return msgspec.msgpack.decode(zlib.decompress(data), type=Simulated)
        except (OSError, ValueError, zlib.error):
            return None

    def put(self, job: Simulation, simulated: Simulated) -> None:
        """Keep what came out."""
        if job.seed is None or (self.memory is None and self.directory is None):
            return
        data = zlib.compress(msgspec.msgpack.encode(simulated), 1)
        if self.memory is not None:
            self.memory[job.fingerprint] = data
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            ignore = self.directory / ".gitignore"
            if not ignore.exists():
                ignore.write_text(_IGNORED, encoding="utf-8")
            write_whole(self._path(self.directory, job), data)

    @staticmethod
    def _path(directory: Path, job: Simulation) -> Path:
        return directory / f"{job.fingerprint}.simulation"


@dataclass(frozen=True)
class Runner:
    """How simulations are made.

    Attributes:
        executor: ``local``, or ``dask:ADDRESS`` for the workers of a dask scheduler.
        processes: simulations at a time on this machine; None for as many as there are cores for
            this process. A scheduler has its own number.
        cache: what need not be simulated again.
    """

    executor: str = LOCAL_EXECUTOR
    processes: int | None = None
    cache: SimulationCache = field(default_factory=SimulationCache)

    @property
    def at_a_time(self) -> int:
        """The most simulations that are asked for at a time."""
        return (self.processes or cores()) if self.executor == LOCAL_EXECUTOR else _UNBOUNDED

    def check(self) -> None:
        """Check that simulations can run.

        Raises:
            TargetError: the scheduler cannot be reached, or its workers would simulate something
                else; the message says what to do.
        """
        if self.executor != LOCAL_EXECUTOR:
            with _dask(self.executor):
                pass

    def outcomes(
        self, jobs: Mapping[Key, Simulation]
    ) -> Iterator[tuple[Key, Simulated | Exception, bool]]:
        """Have every job simulated, equal ones once, what is known not at all.

        When the caller is interrupted, or closes the iterator, nothing more is begun, and what is
        under way on this machine is ended at once. It leaves nothing, also when this process is
        killed.

        Yields:
            Key and outcome in the order in which they end, and whether it was in the cache. An
            outcome that is an exception is a job's own.

        Raises:
            TargetError: as :meth:`check`.
        """
        wanted: dict[str | Key, list[Key]] = {}
        for key, job in jobs.items():
            found = self.cache.get(job)
            if found is not None:
                yield key, found, True
            else:
                wanted.setdefault(key if job.seed is None else job.fingerprint, []).append(key)
        if not wanted:
            return
        with self._executor(min(self.at_a_time, len(wanted))) as executor:
            futures = {executor.submit(simulate, jobs[same[0]]): same for same in wanted.values()}
            for future in as_completed(list(futures)):
                same = futures.pop(future)
                outcome: Simulated | Exception
                try:
                    outcome = future.result()
                except Exception as error:
                    outcome = error
                else:
                    self._keep(jobs[same[0]], outcome)
                for key in same:
                    yield key, outcome, False

    def _keep(self, job: Simulation, simulated: Simulated) -> None:
        """What came out is worth something although it cannot be kept."""
        try:
            self.cache.put(job, simulated)
        except OSError as error:
            warnings.warn(
                f"simulations are not kept: {self.cache.directory} cannot be written ({error}); "
                "give another --cache, or --no-cache",
                stacklevel=2,
            )

    def simulated(self, jobs: Mapping[Key, Simulation]) -> Iterator[tuple[Key, Simulated, bool]]:
        """As :meth:`outcomes`, but ended by the first that fails.

        Raises:
            DeploymentError: a simulation failed.
            TargetError: as :meth:`check`.
        """
        for key, outcome, known in self.outcomes(jobs):
            if isinstance(outcome, Exception):
                raise as_error(outcome, jobs[key])
            yield key, outcome, known

    @contextmanager
    def _executor(self, at_a_time: int) -> Iterator[Executor]:
        if self.executor != LOCAL_EXECUTOR:
            with _dask(self.executor) as executor:
                yield executor
            return
        local = LocalExecutor(at_a_time)
        try:
            yield local
        finally:
            local.shutdown(cancel_futures=True)


def as_error(outcome: Exception, job: Simulation) -> Exception:
    """Why a job failed; an engine's own error as one of ours."""
    if type(outcome).__module__.startswith("distributed"):
        return SimulationError(
            f"configuration {job.configuration!r}: the simulation was lost ({outcome}); a worker "
            "that ends in the midst of it often has too little memory"
        )
    return outcome


@contextmanager
def _dask(choice: str) -> Iterator[Executor]:
    """The workers of a scheduler, once it is known that they simulate as this process would."""
    address = choice.partition(":")[2]
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError:
        raise TargetError(
            f"executor {choice}: dask.distributed is not installed: "
            "pip install 'pytest-dynamo-bench[dask]'"
        ) from None
    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise TargetError(
            f"executor {choice}: no dask scheduler answers there within {_CONNECT_SECONDS} s "
            f"({error}); start one with: dask scheduler"
        ) from None
    with client:
        _check_workers(client, choice)
        executor = client.get_executor(pure=False)
        try:
            yield executor
        finally:
            executor.shutdown(wait=False)


def _check_workers(client: Any, choice: str) -> None:
    """See that there are workers, and that all of them have what this process has."""
    if not client.scheduler_info()["workers"]:
        raise TargetError(
            f"executor {choice}: the scheduler has no workers; start some with: dask worker "
            f"{choice.partition(':')[2]}"
        )
    own = {"ai-dynamo": resolve(None).version} | versions()
    # Functions of the standard library first, which a worker without the packages has too.
    asked = [(name, metadata.version, (name,)) for name in _PACKAGES]
    for name, function, arguments in (*asked, ("code", _code, ())):
        found = client.run(function, *arguments, on_error="return")
        for worker, version in found.items():
            if isinstance(version, metadata.PackageNotFoundError):
                raise TargetError(
                    f"executor {choice}: worker {worker} has no {name}; install "
                    f"{name}=={own[name]} there"
                )
            if version != own[name]:
                what = f"other code of {_PACKAGES[0]}" if name == "code" else f"{name} {version}"
                raise TargetError(
                    f"executor {choice}: worker {worker} has {what}, this process "
                    f"{'its own' if name == 'code' else own[name]}; the numbers would not be the "
                    "same: install the same on both"
                )


def _code() -> str:
    return versions()["code"]

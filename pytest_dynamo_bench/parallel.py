"""Many independent computations on the cores of this machine, that end at a signal.

The standard pool waits for what is running when it is shut down, and its processes live on
when their parent is killed. Simulations take minutes, so neither will do here.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from pytest_dynamo_bench.errors import DeploymentError

Key = TypeVar("Key")
Result = TypeVar("Result")
_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 5.0


class _Terminated(BaseException):
    """Ends the computation that a process is in, through its clean-up."""


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def compute_all(
    function: Callable[..., Result],
    jobs: Mapping[Key, tuple[Any, ...]],
    *,
    processes: int | None = None,
    shared: tuple[Any, ...] = (),
) -> Iterator[tuple[Key, Result]]:
    """Call ``function(*job, *shared)`` for every job, several at a time.

    When the caller is interrupted, or stops listening, computations under way are ended at
    once and clean up after themselves; no process is left behind, also when this process is
    killed (on Linux).

    Args:
        function: a function of a module, so that other processes can find it.
        jobs: arguments by key.
        processes: at a time; by default as many as there are cores for this one.
        shared: further arguments, the same for all jobs, sent to each process once.

    Yields:
        Key and result of each job, in the order in which they end.

    Raises:
        Exception: what ``function`` raised, for the first job that failed.
        DeploymentError: a process was killed.
    """
    if not jobs:
        return
    workers = min(len(jobs), processes or cores())
    # Spawned, not forked: the caller may have threads.
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    # Also what a killed process has left in it goes with it.
    with tempfile.TemporaryDirectory(prefix="dynamo-bench-", ignore_cleanup_errors=True) as place:
        pool = ProcessPoolExecutor(workers, context, _prepare, (function, shared, place))
        ended_well = False
        try:
            futures: dict[Future[Result], Key] = {
                pool.submit(_call, *job): key for key, job in jobs.items()
            }
            waiting = set(futures)
            while waiting:
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield futures[future], future.result()
            ended_well = True
        except BrokenProcessPool:
            raise DeploymentError(
                "a simulating process was ended from outside, perhaps for want of memory; with "
                "fewer processes at a time each has more"
            ) from None
        finally:
            if ended_well:
                pool.shutdown()
            else:
                computing = set(multiprocessing.active_children()) - before
                for process in computing:
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                _wait_or_kill(computing)


def _wait_or_kill(processes: Collection[BaseProcess]) -> None:
    """Wait for processes that got the signal to end, and kill those that have not after a while.

    An exception that is raised at the wrong moment, such as in a destructor, is lost, and the
    computation that it was to end goes on.
    """
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in processes:
        process.kill()
        process.join()


_function: Callable[..., Any] | None = None
_shared: tuple[Any, ...] = ()
_parent = 0
_directory = ""
_busy = False
_terminated = False


def _prepare(function: Callable[..., Any], shared: tuple[Any, ...], directory: str) -> None:
    """Run once in each process of the pool."""
    global _function, _shared, _parent, _directory
    _function, _shared, _parent, _directory = function, shared, os.getppid(), directory
    # A terminal's Ctrl-C goes to all processes; the parent decides what follows from it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != _parent:
            _leave()


def _leave() -> None:
    """End by itself: there is no pool any more that takes a result or ends this process."""
    with contextlib.suppress(OSError):
        # The last one out finds it empty.
        Path(_directory).rmdir()
    os._exit(1)


def _end(*_: object) -> None:
    """Leave the computation through its clean-up; an idle process is ended by its pool.

    Only the first signal does, so that a second one does not end the clean-up.
    """
    global _terminated
    first, _terminated = not _terminated, True
    if _busy:
        if first:
            raise _Terminated
    elif os.getppid() != _parent:
        _leave()


def _call(*job: Any) -> Any:
    """Compute one job, with a directory for temporary files that is gone afterwards.

    A signal can come between the making of a temporary directory and whatever would remove it,
    so that the directory of all of them is made and removed while none can.
    """
    global _busy
    assert _function is not None
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    directory = tempfile.mkdtemp(dir=_directory)
    elsewhere, tempfile.tempdir = tempfile.tempdir, directory
    try:
        try:
            _busy = True
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            if _terminated:
                raise _Terminated
            return _function(*job, *_shared)
        finally:
            _busy = False
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        tempfile.tempdir = elsewhere
        shutil.rmtree(directory, ignore_errors=True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if os.getppid() != _parent:
            _leave()

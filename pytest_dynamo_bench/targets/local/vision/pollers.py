"""NIXL's polling threads, kept from taking the time that everything else needs.

NIXL polls for transfers without a pause: two threads in Dynamo's frontend, and one in a
worker. In production they have their own cores. On a small machine they would take
most of what is there, and what was measured would be the competition for it. So they get the
lowest priority, and run when nothing else does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

_LOOK_SECONDS = 0.5
_POLLING_SHARE = 0.1
_LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class Pollers:
    """Threads that poll, each with its process.

    Attributes:
        threads: (process id, thread id).
    """

    threads: Sequence[tuple[int, int]] = ()

    def seconds(self) -> float:
        """CPU time that all of them have used so far."""
        used = {pid: _thread_seconds(pid) for pid in {pid for pid, _ in self.threads}}
        return sum(used[pid].get(thread, 0.0) for pid, thread in self.threads)


async def lower_poller_priority(pids: Iterable[int]) -> Pollers:
    """Find threads that are busy while nothing is asked of them, and lower their priority.

    To be called while no request is under way.
    """
    pids = list(pids)
    before = {pid: _thread_seconds(pid) for pid in pids}
    await asyncio.sleep(_LOOK_SECONDS)
    found = [
        (pid, thread)
        for pid in pids
        for thread, used in _thread_seconds(pid).items()
        if used - before[pid].get(thread, used) > _POLLING_SHARE * _LOOK_SECONDS
    ]
    for _, thread in found:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST_PRIORITY)
    return Pollers(tuple(found))


def _thread_seconds(pid: int) -> dict[int, float]:
    with contextlib.suppress(psutil.Error):
        return {t.id: t.user_time + t.system_time for t in psutil.Process(pid).threads()}
    return {}

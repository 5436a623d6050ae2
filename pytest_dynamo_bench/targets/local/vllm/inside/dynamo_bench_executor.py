"""vLLM's executor of a single worker, without a port that is open to other machines.

vLLM has PyTorch meet at a TCP store even where there is a single process, and such a store
listens on all interfaces. Here it meets at a file. And nothing outlives the engine: it ends with
the process that started it, however that ends, and its lock has no name in shared memory that
would stay there.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
from pathlib import Path

from vllm.v1.executor import uniproc_executor

_PR_SET_PDEATHSIG = 1


class LoopbackExecutor(uniproc_executor.UniProcExecutor):  # type: ignore[misc,unused-ignore]
    """The executor, with a file as the place to meet."""

    def _init_executor(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Locks for forked processes lose their name at once; this one is in one process only.
        uniproc_executor.Lock = multiprocessing.get_context("fork").Lock
        super()._init_executor()

    def _distributed_args(self) -> tuple[str, int, int]:
        _, rank, local_rank = super()._distributed_args()
        store = Path(os.environ["TMPDIR"]) / f"store-{os.getpid()}"
        return f"file://{store}", rank, local_rank

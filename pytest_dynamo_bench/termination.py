"""SIGTERM as Ctrl-C, for as long as something is measured and for this process only."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_blocked_here = threading.local()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt in the main thread when SIGTERM comes.

    Not by raising SIGINT: a shell's background jobs and many CI runners ignore that. A handler
    installed by other code, before or meanwhile, stays. Processes that are forked
    meanwhile get the system's default back.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    _guard_forks()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        _restore()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt("SIGTERM")


def _restore() -> None:
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


# A signal that reaches a forked process before Python has set itself up there is lost when it
# has a handler of Python's; blocked, it waits until there is none.


def _before_fork() -> None:
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        _blocked_here.by_us = signal.SIGTERM not in old


def _after_fork() -> None:
    if getattr(_blocked_here, "by_us", False):
        _blocked_here.by_us = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _after_fork_in_child() -> None:
    _restore()
    _after_fork()


_forks_are_guarded = False


def _guard_forks() -> None:
    """Have the functions above called at every fork; that cannot be undone, but once is enough."""
    global _forks_are_guarded
    if not _forks_are_guarded:
        _forks_are_guarded = True
        os.register_at_fork(
            before=_before_fork,
            after_in_parent=_after_fork,
            after_in_child=_after_fork_in_child,
        )

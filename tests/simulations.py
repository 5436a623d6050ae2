"""Watches the simulating processes of a process that a test has started."""

import time

import psutil


def wait_for_simulations(process, count):
    """The processes that a process has started, once so many of them are simulating."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        simulating = [
            child for child in children
            if child.is_running() and any("replay_child" in word for word in child.cmdline())
        ]  # fmt: skip
        if len(simulating) >= count:
            return children
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("no simulation was started")

"""Watches the simulating processes of a process, of this one or one that a test has started."""

import time

import psutil


def simulating(pid=None):
    """The simulating processes below a process."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any("replay/child.py" in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def wait_for_simulations(process, count):
    """The processes that a process has started, once so many of them are simulating."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(process.pid).children(recursive=True)
        if len(simulating(process.pid)) >= count:
            return children
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("no simulation was started")

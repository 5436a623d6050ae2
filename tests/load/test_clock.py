"""Kernel timestamps on the monotonic clock, also when somebody sets the time."""

from __future__ import annotations

import time

from pytest_dynamo_bench.load.clock import TOLERANCE_NS, ReceiveClock

HOUR = 3_600_000_000_000


class Clocks:
    """Clocks that a test sets."""

    def __init__(self) -> None:
        self.now = 10 * HOUR
        self.offset = 1000 * HOUR
        self.took = 100

    def __call__(self) -> tuple[int, int, int]:
        return self.now, self.now + self.offset + self.took // 2, self.now + self.took


def test_the_real_clocks_agree_to_a_fraction_of_a_millisecond():
    clock = ReceiveClock()
    real, seen = time.time_ns(), time.monotonic_ns()
    time.sleep(0.001)
    clock.check()
    stamp = clock.monotonic_ns(real, seen)
    assert stamp is not None
    assert abs(stamp - seen) < 1_000_000
    assert clock.steps == 0
    assert clock.uncertainty_ns < 1_000_000


def test_a_stamp_counts_only_between_two_readings():
    clocks = Clocks()
    clock = ReceiveClock(clocks)
    clocks.now += 1_000_000
    stamp = clocks.now + clocks.offset
    seen = clocks.now + 5_000
    assert clock.monotonic_ns(stamp, seen) is None
    clocks.now += 1_000_000
    clock.check()
    assert clock.monotonic_ns(stamp, seen) == seen - 5_000


def test_a_step_is_noticed_and_what_was_seen_around_it_is_not_converted():
    clocks = Clocks()
    clock = ReceiveClock(clocks)
    clocks.now += 1_000_000
    before = clocks.now
    clock.check()
    clocks.now += 1_000_000
    between = clocks.now
    clocks.offset -= HOUR
    clocks.now += 1_000_000
    clock.check()
    clocks.now += 1_000_000
    after = clocks.now
    clocks.now += 1_000_000
    clock.check()
    assert clock.steps == 1
    assert clock.monotonic_ns(before + clocks.offset + HOUR, before) == before
    assert clock.monotonic_ns(between + clocks.offset + HOUR, between) is None
    assert clock.monotonic_ns(between + clocks.offset, between) is None
    assert clock.monotonic_ns(after + clocks.offset, after) == after
    # Stamped before the step and seen after it: it would be an hour wrong.
    assert clock.monotonic_ns(before + clocks.offset + HOUR, after) is None


def test_a_slow_reading_is_no_step():
    clocks = Clocks()
    clock = ReceiveClock(clocks)
    clocks.took, clocks.offset = 500_000, clocks.offset + 200_000
    clock.check()
    assert clock.steps == 0
    clocks.took, clocks.offset = 100, clocks.offset + 10 * TOLERANCE_NS
    clock.check()
    assert clock.steps == 1


def test_impossible_stamps_are_refused():
    clocks = Clocks()
    clock = ReceiveClock(clocks)
    clocks.now += 1_000_000_000
    clock.check()
    seen = clocks.now - 1000
    assert clock.monotonic_ns(seen + clocks.offset + 1_000_000, seen) is None
    assert clock.monotonic_ns(seen + clocks.offset - 100_000_000_000, seen) is None

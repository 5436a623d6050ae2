"""Kernel timestamps on the monotonic clock, also when somebody sets the time."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_dynamo_bench.load.clock import TOLERANCE_NS, ReceiveClock

pytestmark = pytest.mark.alone

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


def checked_clock():
    """A clock that has been compared over an hour, and the time of the last comparison."""
    clocks = Clocks()
    clock = ReceiveClock(clocks)
    clocks.now += HOUR
    clock.check()
    return clock, clocks.now, clocks.offset


@pytest.mark.parametrize("place", [0, 2, 4])
def test_among_many_stamps_one_that_is_a_minute_old_or_to_come_is_refused(place):
    clock, now, offset = checked_clock()
    seen = now - 1_000_000
    stamps = np.full(5, seen - 1000 + offset)
    assert clock.monotonic_array_ns(stamps, seen, seen).tolist() == [seen - 1000] * 5
    for wrong in (seen - 100_000_000_000, now + 1_000_000):
        stamps[place] = wrong + offset
        assert clock.monotonic_array_ns(stamps, seen, seen) is None


def test_of_no_stamps_nothing_can_be_said():
    clock, now, _ = checked_clock()
    with pytest.raises(ValueError, match="zero-size"):
        clock.monotonic_array_ns(np.array([], dtype=np.int64), now, now)


AGES = st.lists(st.integers(-100_000, 70_000_000_000), min_size=1, max_size=5)


@given(AGES, st.integers(0, 90_000_000_000))
def test_what_is_converted_at_once_is_converted_the_same_one_by_one(ages, seen_before):
    clock, now, offset = checked_clock()
    seen = now - seen_before
    stamps = np.array([seen - age + offset for age in ages])
    found = clock.monotonic_array_ns(stamps, seen, seen)
    one_by_one = [clock.monotonic_ns(int(stamp), seen) for stamp in stamps]
    if found is None:
        assert None in one_by_one
    else:
        assert found.tolist() == one_by_one

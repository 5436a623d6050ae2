"""Kernel receive timestamps on the monotonic clock.

The kernel stamps packets with CLOCK_REALTIME, which NTP and people set; everything else is
measured with CLOCK_MONOTONIC. The offset between the two is constant unless the time is set:
slewing moves both alike. It is taken once and compared again and again; a stamp
counts only when the comparisons before and after it agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pytest_dynamo_bench.arrays import IntArray

TOLERANCE_NS = 20_000
_READINGS = 5
_OLDEST_NS = 60_000_000_000


@dataclass(slots=True)
class _Segment:
    """A time in which the offset was the same, from its first to its last reading."""

    offset_ns: int
    from_ns: int
    until_ns: int


def _read() -> tuple[int, int, int]:
    before = time.monotonic_ns()
    real = time.time_ns()
    return before, real, time.monotonic_ns()


class ReceiveClock:
    """Converts kernel timestamps; detects changes of the clock.

    Args:
        read: monotonic, real and monotonic time again, in ns, taken one after the other.
    """

    def __init__(self, read: Callable[[], tuple[int, int, int]] = _read) -> None:
        self._read_clocks = read
        offset, width, now = self._offset()
        self._segments = [_Segment(offset, now, now)]
        self._width = width

    @property
    def steps(self) -> int:
        """How often the time was set since the first reading."""
        return len(self._segments) - 1

    @property
    def uncertainty_ns(self) -> int:
        """How exactly the offset is known: half the time that reading both clocks took."""
        return -(-self._width // 2)

    def check(self, since_ns: int | None = None) -> None:
        """Compare the clocks again. Stamps seen until now can be converted afterwards.

        Args:
            since_ns: a comparison after that time, monotonic, is good enough; None: it must be new.
        """
        last = self._segments[-1]
        if since_ns is not None and last.until_ns > since_ns:
            return
        offset, width, now = self._offset()
        if abs(offset - last.offset_ns) <= TOLERANCE_NS + width:
            last.until_ns = now
        else:
            self._segments.append(_Segment(offset, now, now))

    def monotonic_ns(self, real_ns: int, seen_ns: int) -> int | None:
        """A kernel stamp on the monotonic clock.

        Args:
            real_ns: the stamp, CLOCK_REALTIME.
            seen_ns: when the event loop noticed that there was something to read, monotonic;
                the packet may have come a little later, while others were being read.

        Returns:
            None when the time was set about then, or the stamp cannot be right.
        """
        for segment in reversed(self._segments):
            if segment.from_ns <= seen_ns <= segment.until_ns:
                stamp = real_ns - segment.offset_ns
                in_order = max(segment.from_ns if self.steps else 0, seen_ns - _OLDEST_NS) <= stamp
                return stamp if in_order and stamp <= segment.until_ns + TOLERANCE_NS else None
        return None

    def monotonic_array_ns(
        self, real_ns: IntArray, first_seen_ns: int, last_seen_ns: int
    ) -> IntArray | None:
        """Many stamps at once, where all of them are beyond doubt.

        Args:
            real_ns: (n,) stamps, CLOCK_REALTIME.
            first_seen_ns, last_seen_ns: as for :meth:`monotonic_ns`, the earliest and the latest.

        Returns:
            (n,) the stamps on the monotonic clock; or None: then each has to be looked at.

        Raises:
            ValueError: there are none.
        """
        last = self._segments[-1]
        if self.steps or not last.from_ns <= first_seen_ns <= last_seen_ns <= last.until_ns:
            return None
        stamps: IntArray = real_ns - last.offset_ns
        oldest, latest = int(stamps.min()), int(stamps.max())
        possible = oldest >= last_seen_ns - _OLDEST_NS and latest <= last.until_ns + TOLERANCE_NS
        return stamps if possible else None

    def _offset(self) -> tuple[int, int, int]:
        """Real minus monotonic time, how long the reading took, and when it was."""
        before, real, after = min(
            (self._read_clocks() for _ in range(_READINGS)), key=lambda r: r[2] - r[0]
        )
        return real - (before + after) // 2, after - before, after

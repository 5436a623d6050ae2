"""What all traffic that is generated, and not read, has in common."""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator

from pytest_dynamo_bench.traffic.images import Images
from pytest_dynamo_bench.traffic.model import Schedule, Traffic, TrafficRequest, TrafficSource
from pytest_dynamo_bench.traffic.mooncake import BLOCK_TOKENS


class GeneratedTraffic(TrafficSource):
    """Traffic that a generator makes: the same for the same fields, so that it is made once."""

    schedule: Schedule

    @property
    @abc.abstractmethod
    def _source(self) -> str:
        """What is made, for the traffic's history."""

    @property
    def _images(self) -> Images | None:
        """Those that requests name by number; none for text alone."""
        return None

    @abc.abstractmethod
    def generate(self) -> Iterator[TrafficRequest]:
        """The requests one by one."""

    @property
    def description(self) -> str:
        return f"{self._source}, {self.schedule.description}"

    def load(self) -> Traffic:
        return _load(self)


@functools.lru_cache(maxsize=4)
def _load(source: GeneratedTraffic) -> Traffic:
    requests = tuple(source.generate())
    return Traffic(requests, source.schedule, BLOCK_TOKENS, (source._source,), source._images)

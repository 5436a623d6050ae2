"""A target that measures nothing: it makes up runs, so that the plugin can be tested fast."""

from __future__ import annotations

import numpy as np

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.traffic import FixedSchedule, Traffic, TrafficRequest

REQUESTS = 200


class FakeTarget:
    """TTFT is 100 ms and some noise, times what ``factors`` says of the configuration.

    Args:
        factors: configuration to factor.
        broken: configurations that do not come up.
        failing: configurations of which every tenth request fails.
        error: what every configuration's startup ends with.
        noise: relative standard deviation of the time to first token.
        slower: by what share of the first run each repeat is slower than the one before.
    """

    name = "local"

    def __init__(self, factors=None, broken=(), failing=(), noise=0.05, error=None, slower=0.0):
        self.factors = factors or {}
        self.broken, self.failing, self.noise = broken, failing, noise
        self.error, self.slower = error, slower
        self.measured = []

    def check(self, benchmark):
        pass

    def traffic(self, benchmark):
        requests = tuple(
            TrafficRequest(f"{i:04d}", f"{i:04d}", 0, 50.0 * i, 0.0, 512, 3, (i,))
            for i in range(REQUESTS)
        )
        return Traffic(requests, FixedSchedule(), 512, ("made up",))

    def limitations(self, benchmark, configuration):
        return ("everything is made up",)

    def measure(self, planned, progress):
        configuration, traffic, repeat = planned.configuration, planned.traffic, planned.repeat
        self.measured.append(configuration.name)
        print(f"MEASURED {configuration.name}")  # noqa: T201
        progress.stage("starting")
        if self.error is not None:
            raise DeploymentError(self.error)
        if configuration.name in self.broken:
            raise DeploymentError(f"{configuration.name} did not come up: no such model")
        progress.stage("measuring")
        random = np.random.default_rng([len(configuration.name), repeat])
        factor = self.factors.get(configuration.name, 1.0) * (1 + self.slower * repeat)
        records = []
        for index, request in enumerate(traffic.requests):
            sent = request.timestamp_ms
            first = sent + factor * 100 * (1 + self.noise * random.standard_normal())
            failed = configuration.name in self.failing and index % 10 == 0
            records.append(
                RequestRecord(
                    request.request_id, request.session_id, 0, sent, sent,
                    (first, first + 10, first + 20), first + 21, 512, 3,
                    prompt_tokens=512, completion_tokens=3, cached_tokens=0, status=200,
                    error="HTTP 500: <b>oops</b>" if failed else None,
                )
            )  # fmt: skip
            progress.requests(index + 1, 0, REQUESTS)
        return Run(
            planned.benchmark.name, configuration.name, self.name, configuration.gpus, records,
            "2026-01-01T00:00:00+00:00",
        )  # fmt: skip

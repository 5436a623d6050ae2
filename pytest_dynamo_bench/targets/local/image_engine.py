"""The seam between the local target and what serves its traffic with images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.traffic import Traffic

Measures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ImageServing:
    """What of a deployment's processes is different where there are images.

    Attributes:
        commands: the workers' command lines by name.
        python: the interpreter that runs the frontend.
        variables: what frontend and workers get beside every deployment's environment.
    """

    commands: Mapping[str, Sequence[str]]
    python: str
    variables: Mapping[str, str] = field(default_factory=dict)


class ImageEngine(Protocol):
    """Takes the place of Dynamo's mockers, which have no vision encoder."""

    @property
    def name(self) -> str:
        """As in reports."""

    @property
    def ready_seconds(self) -> float:
        """How long it may take to start."""

    @property
    def versions(self) -> Mapping[str, str]:
        """The versions of its packages, for the run's record."""

    def dynamos(self, configuration: Configuration) -> Mapping[str, DynamoEnvironment]:
        """Which Dynamo runs the frontend of a configuration, and the workers of each role.

        Raises:
            TargetError: one of them is not there.
        """

    def not_served(self, benchmark: Benchmark) -> str:
        """Why nothing is measured of a benchmark with this engine; or empty."""

    def check(self, benchmark: Benchmark) -> None:
        """Check, before anything is started, whether it is installed.

        Raises:
            TargetError: it isn't, or the benchmark is none for it; says what to do.
        """

    def check_configuration(self, benchmark: Benchmark, configuration: Configuration) -> None:
        """Find out whether it can serve a configuration.

        Raises:
            UnavailableError: a package is missing; the message says how to install it.
            TargetError: the configuration is of a kind that it isn't.
        """

    def limitations(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic
    ) -> tuple[str, ...]:
        """What is Dynamo's, what is not, and what is only modelled; for reports."""

    def write_model(self, directory: Path, benchmark: Benchmark) -> None:
        """Write what frontend and workers read of the model."""

    def serving(
        self, benchmark: Benchmark, configuration: Configuration, traffic: Traffic, directory: Path
    ) -> ImageServing:
        """The processes of a deployment whose files are in ``directory``."""

    def measures(self, directory: Path) -> Measures:
        """What the workers wrote of each request's images, by the frontend's name of it."""

    def with_measures(
        self, records: Sequence[RequestRecord], measures: Measures
    ) -> list[RequestRecord]:
        """The records with what their images took."""

    def summary(self, measures: Measures, records: Sequence[RequestRecord]) -> dict[str, Any]:
        """What is kept of all measured requests together, by name."""

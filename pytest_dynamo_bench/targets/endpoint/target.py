"""The endpoint target: measure what is already deployed, and leave it as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.errors import DeploymentError, DynamoBenchError, TargetError
from pytest_dynamo_bench.plain_text import did_you_mean
from pytest_dynamo_bench.records import Run
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import PlannedRun, Progress
from pytest_dynamo_bench.targets.endpoint.switch import switch
from pytest_dynamo_bench.targets.running import run
from pytest_dynamo_bench.targets.service import measure
from pytest_dynamo_bench.targets.service.address import Access, Address, check_url
from pytest_dynamo_bench.targets.service.probe import (
    choose_model,
    wait_for_models,
)
from pytest_dynamo_bench.traffic import Traffic

_NAMED = re.compile(r"([a-z0-9][a-z0-9._/-]*)=(.*)")


@dataclass(frozen=True)
class EndpointOptions:
    """What the user says of his servers.

    Attributes:
        urls: by configuration, or by ``benchmark/configuration``; "" is for all others.
        access: keys, headers, TLS.
        model: the served name of the model, where it is not the benchmark's.
        switch_command: an argument list with a placeholder, run before each configuration.
        switch_seconds: limit for the command.
        ready_seconds: limit for the server to list the model (after a switch, say).
        seconds: length of the traffic that is cut from the benchmark's; None for all of it.
        seed: chooses among equally good cuts.
        load_processes: processes that send.
        same_prompts: send the same words in every run.
    """

    urls: Mapping[str, str]
    access: Access = field(default_factory=Access)
    model: str | None = None
    switch_command: Sequence[str] | None = None
    switch_seconds: float = 1800
    ready_seconds: float = 60
    seconds: float | None = None
    seed: int = 0
    load_processes: int = 1
    same_prompts: bool = False


def parse_urls(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=URL`` or ``URL`` as addresses by configuration; "" stands for all.

    Raises:
        TargetError: one is not a URL, or names are duplicates.
    """
    found: dict[str, str] = {}
    for text in texts:
        named = _NAMED.fullmatch(text)
        name, url = named.groups() if named else ("", text)
        if name in found:
            raise TargetError(f"--dynamo-endpoint: {name or 'a URL without a name'} is a duplicate")
        found[name] = check_url("--dynamo-endpoint" + (f" {name}" if name else ""), url)
    return found


class EndpointTarget:
    """Servers that speak OpenAI's chat completions, each taken to be one configuration.

    Raises:
        TargetError: no address is given, or the switch command cannot be run.
    """

    name = "endpoint"

    def __init__(self, options: EndpointOptions) -> None:
        if not options.urls:
            raise TargetError(
                "target 'endpoint' needs an address for each configuration: "
                "--dynamo-endpoint NAME=URL, or one URL and --dynamo-switch-command"
            )
        self._options = options
        self._secrets = options.access.secrets
        if any(url.startswith("https:") for url in options.urls.values()):
            options.access.tls.context()

    def check(self, benchmark: Benchmark) -> None:
        """Find out whether every configuration has an address that answers.

        Raises:
            TargetError: it hasn't, or the server has another model.
        """
        missing = [c.name for c in benchmark.configurations if self._url(benchmark, c) is None]
        if missing:
            raise TargetError(self._no_address(benchmark, missing))
        shared = self._sharing(benchmark)
        if shared and self._options.switch_command is None:
            raise TargetError(
                f"{shared[0]} is the address of {' and '.join(shared[1])}; comparing a server with "
                "itself is meaningless. Give each its own --dynamo-endpoint NAME=URL, or use "
                "--dynamo-switch-command"
            )
        if self._options.switch_command is not None:
            return
        for url in dict.fromkeys(self._url(benchmark, item) for item in benchmark.configurations):
            assert url is not None
            address = Address(url, self._options.access)
            try:
                listed = run(wait_for_models(address, 0))
            except DeploymentError as error:
                raise TargetError(self._secrets.redact(str(error))) from None
            choose_model(url, listed, benchmark.model, self._options.model)

    def traffic(self, benchmark: Benchmark) -> Traffic:
        options = self._options
        return measure.whole_or_cut(benchmark.traffic.load(), options.seconds, options.seed)

    def limitations(self, benchmark: Benchmark, configuration: Configuration) -> tuple[str, ...]:
        """What was not checked."""
        found = [
            "only the server's model was checked; that it is this configuration is taken on trust",
        ]
        if self._options.switch_command is None:
            found.append(
                "the server was not restarted before the run; prompts were "
                + (
                    "the same as in other runs and may have been cached"
                    if self._options.same_prompts
                    else "new in this run and not cached, but its caches may have held others"
                )
            )
        return tuple(found)

    def measure(self, planned: PlannedRun, progress: Progress) -> Run:
        """Switch if there is a command, then warm and measure; see :class:`~..base.Target`."""
        try:
            self._switch(planned, progress)
            return self._measure(planned, progress)
        except DynamoBenchError as error:
            raise type(error)(self._secrets.redact(str(error))) from None

    def _switch(self, planned: PlannedRun, progress: Progress) -> None:
        command = self._options.switch_command
        if command is None:
            return
        progress.stage("switching")
        switch(
            list(command),
            planned.benchmark.name,
            planned.configuration.name,
            planned.directory / "logs" / "switch.log",
            seconds=self._options.switch_seconds,
            secrets=self._secrets,
        )

    def _measure(self, planned: PlannedRun, progress: Progress) -> Run:
        benchmark, options = planned.benchmark, self._options
        url = self._url(benchmark, planned.configuration)
        if url is None:
            raise TargetError(self._no_address(benchmark, [planned.configuration.name]))
        after = Aftermath(planned.directory)
        measuring = measure.measure_service(
            planned,
            Address(url, options.access),
            progress,
            after,
            ready_seconds=options.ready_seconds,
            served_model=options.model,
            salt=0 if options.same_prompts else measure.new_salt(),
            processes=options.load_processes,
        )
        found = run(measuring)
        with after.step("checking for cached prompts"):
            warm = measure.warm_tokens(found.records, planned.traffic)
            if warm is not None:
                found.observed["cached_tokens_at_start"] = warm
        deployed = {
            "url": url,
            "model": options.model or benchmark.model,
            "prompts": "same words in every run" if options.same_prompts else "words of their own",
        }
        return measure.as_run(planned, self.name, found, deployed, after, self._secrets)

    def _url(self, benchmark: Benchmark, configuration: Configuration) -> str | None:
        urls = self._options.urls
        for key in (f"{benchmark.name}/{configuration.name}", configuration.name, ""):
            if key in urls:
                return urls[key]
        return None

    def _sharing(self, benchmark: Benchmark) -> tuple[str, list[str]] | None:
        names: dict[str, list[str]] = {}
        for item in benchmark.configurations:
            names.setdefault(self._url(benchmark, item) or "", []).append(item.name)
        return next(((url, found) for url, found in names.items() if len(found) > 1), None)

    def _no_address(self, benchmark: Benchmark, missing: Sequence[str]) -> str:
        known = [item.name for item in benchmark.configurations]
        hints = []
        for given in self._options.urls:
            name = given.rpartition("/")[2]
            if name and name not in known:
                meant = did_you_mean(name, missing, before="; ", cutoff=0.5)
                hints.append(f"{given!r} is not one of its configurations{meant}")
        hint = f" ({'; '.join(hints)})" if hints else ""
        return (
            f"no address is given for {', '.join(missing)}{hint}; give --dynamo-endpoint "
            f"{missing[0]}=URL, or exclude its claims with -k"
        )

"""Measure a service that is up: warm it, send the traffic, ask it what it saw."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.errors import DeploymentError, TargetError
from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.plain_text import Secrets
from pytest_dynamo_bench.records import RequestRecord, Run
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import PlannedRun, Progress, Tally, Unwatched
from pytest_dynamo_bench.targets.frontend_metrics import scrape
from pytest_dynamo_bench.targets.service.address import Address
from pytest_dynamo_bench.targets.service.probe import (
    Service,
    choose_model,
    probe,
    wait_for_models,
)
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficRequest, cut, describe
from pytest_dynamo_bench.traffic.images import NoiseImages
from pytest_dynamo_bench.traffic.prompts import WORDS

_WARM_UP_OUTPUT = 4
_WARM_UP_WORDS = 16
_WARM_UP_AT_A_TIME = 4
_FEWEST_WARM_UPS = 8
_ID_BITS = 40
_SALT_BITS = 24


@dataclass(frozen=True)
class Measured:
    """What came of sending a traffic to a service.

    Attributes:
        records: of the requests that ended.
        started_at: wall-clock start, ISO 8601, UTC.
        observed: what the load generator, and the service where it was asked, say of themselves.
    """

    records: list[RequestRecord]
    started_at: str
    observed: dict[str, Any]


def whole_or_cut(traffic: Traffic, seconds: float | None, seed: int) -> Traffic:
    """The traffic in full, or cut to a length.

    Raises:
        TargetError: a closed loop cannot be cut to a length in seconds.
    """
    if seconds is None:
        return traffic
    if isinstance(traffic.schedule, Concurrency):
        raise TargetError(
            "--dynamo-seconds: a closed loop has no duration to cut; leave the option out, or give "
            "the configurations fewer requests"
        )
    return cut(traffic, seconds, seed=seed)


def new_salt() -> int:
    """A number that no other run has, for :func:`salted`."""
    return secrets.randbelow(2**_SALT_BITS - 2) + 1


def salted(traffic: Traffic, salt: int) -> Traffic:
    """The same traffic in other words.

    Lengths, schedule, and which requests share how much of their prompts stay as they are. Only
    the words differ from those of every other salt, so that no prompt can be in a cache from an
    earlier run; and so do images that are made. Those of files are what they are.

    Args:
        salt: 0 leaves the traffic as it is.

    Raises:
        ValueError: a block id is too large to be given another name.
    """
    if salt == 0:
        return traffic
    if not 0 <= salt < 2**_SALT_BITS:
        raise ValueError(f"salt {salt} is outside 0 … 2**{_SALT_BITS} - 1")
    requests = []
    for request in traffic.requests:
        if request.hash_ids and max(request.hash_ids) >= 2**_ID_BITS:
            raise ValueError(f"request {request.request_id}: block ids must be below 2**{_ID_BITS}")
        ids = tuple((salt << _ID_BITS) + block_id for block_id in request.hash_ids)
        requests.append(dataclasses.replace(request, hash_ids=ids))
    images = traffic.images
    if isinstance(images, NoiseImages):
        images = dataclasses.replace(images, seed=images.seed + (salt << _ID_BITS))
    return dataclasses.replace(traffic, requests=tuple(requests), images=images)


async def measure_service(
    planned: PlannedRun,
    address: Address,
    progress: Progress,
    after: Aftermath,
    *,
    ready_seconds: float,
    served_model: str | None = None,
    salt: int = 0,
    processes: int = 1,
) -> Measured:
    """Ask a service what it is, warm it, send the traffic, and ask it what it saw.

    Args:
        after: keeps what goes wrong once the load has begun.
        ready_seconds: how long it may take to list the model.
        served_model: what it calls the benchmark's model, where that is another name.
        salt: for :func:`salted`.
        processes: of the load generator.

    Raises:
        DeploymentError: it does not answer.
        TargetError: it does not have the model.
    """
    progress.stage("asking")
    wanted = planned.benchmark.model
    listed = await wait_for_models(address, ready_seconds, wanted=served_model or wanted)
    service = await probe(address, choose_model(address.url, listed, wanted, served_model))
    progress.stage("warming")
    count = max(_FEWEST_WARM_UPS, 2 * planned.configuration.replicas)
    await warm_up(service, planned.traffic.block_tokens, count)
    progress.stage("measuring")
    traffic = salted(planned.traffic, salt)
    sent = await send(service, traffic, progress, processes=processes, after=after)
    with after.step("asking the server what it saw"):
        seen, notes = await observe(service, planned.directory / "logs")
        after.note(notes)
        sent.observed.update(seen)
    return sent


def as_run(
    planned: PlannedRun,
    target: str,
    found: Measured,
    deployed: Mapping[str, Any],
    after: Aftermath,
    secrets: Secrets,
) -> Run:
    """What was measured as a run of a target, without secrets."""
    traffic = planned.traffic
    return Run(
        benchmark=planned.benchmark.name,
        configuration=planned.configuration.name,
        target=target,
        gpus=planned.configuration.gpus,
        records=found.records,
        started_at=found.started_at,
        deployed=secrets.clean(dict(deployed)),
        observed=secrets.clean(found.observed),
        traffic={
            "history": list(traffic.history),
            "schedule": traffic.schedule.description,
            **dataclasses.asdict(describe(traffic)),
        },
        problems=[secrets.redact(problem) for problem in after.problems],
        notes=[secrets.redact(note) for note in after.notes],
    )


async def warm_up(service: Service, block_tokens: int, count: int) -> None:
    """Send a few short requests, so that no worker has its first request measured.

    Raises:
        DeploymentError: one of them failed.
    """
    tokens = _WARM_UP_WORDS + service.dialect.template_tokens
    blocks = -(-tokens // block_tokens)
    # Block ids that neither a traffic nor a salted one has, different in every run.
    top = (new_salt() << _ID_BITS) + (1 << _ID_BITS) - 1
    requests = []
    for index in range(count):
        name, first = f"warm-{index}", top - index * blocks
        ids = tuple(first - block for block in range(blocks))
        requests.append(TrafficRequest(name, name, 0, 0.0, 0.0, tokens, _WARM_UP_OUTPUT, ids))
    traffic = Traffic(requests, Concurrency(_WARM_UP_AT_A_TIME), block_tokens, ())
    sent = await send(service, traffic, Unwatched(), request_timeout_seconds=300, processes=0)
    for record in sent.records:
        if record.error:
            raise DeploymentError(
                f"{service.address.url} lists {service.model!r} but does not respond: "
                f"{record.error}"
            )


async def send(
    service: Service,
    traffic: Traffic,
    progress: Progress,
    *,
    request_timeout_seconds: float = 1200,
    prepared: Callable[[], Awaitable[None]] | None = None,
    processes: int = 1,
    after: Aftermath | None = None,
) -> Measured:
    """Send a traffic to a service, and wait until everything has ended.

    Args:
        progress: shows how many requests have ended.
        prepared: awaited when everything is ready to be sent.
        processes: of the load generator; 0 for a few requests whose times do not matter.
        after: has the records written, and keeps what ends the load before its time.

    Raises:
        LoadError: a process of the load generator died, and nothing was measured until then.
    """
    access = service.address.access
    generator = LoadGenerator(
        Server(service.address.chat_url, access.headers, access.tls.context),
        service.model,
        request_timeout_seconds=request_timeout_seconds,
        processes=processes,
        dialect=service.dialect,
    )
    tally = Tally(progress, len(traffic.requests), generator.latest)
    sending = generator.send(traffic, tally, prepared=prepared)
    if after is None:
        await sending
    else:
        with after.sending(generator):
            await sending
    observed = {"load_generator": generator.health()}
    return Measured(generator.records(), generator.started_at, observed)


def warm_tokens(records: Sequence[RequestRecord], traffic: Traffic) -> int | None:
    """Prompt tokens that a KV router took for cached though no request of this run sent them.

    It stands in where the engines do not report cached tokens. Only first turns count, since a
    later one repeats what the session generated.

    Returns:
        None where the server has no such router.
    """
    first_block = {request.request_id: request.hash_ids[:1] for request in traffic.requests}
    seen: set[tuple[int, ...]] = set()
    known, warm = False, 0.0
    for record in sorted(records, key=lambda record: record.sent_ms or record.scheduled_ms):
        block = first_block.get(record.request_id, ())
        if block not in seen and record.turn == 0 and record.router_hit_rate is not None:
            known = True
            warm += record.router_hit_rate * record.input_tokens
        seen.add(block)
    return round(warm) if known else None


async def observe(service: Service, directory: Path) -> tuple[dict[str, Any], list[str]]:
    """What the service says of itself: its model, and the frontend's counters where it is Dynamo.

    The metrics are also written to ``directory``.

    Returns:
        That, and notes of what is missing.
    """
    observed: dict[str, Any] = {
        "model": service.model,
        "is_dynamo": service.is_dynamo,
        "prompt_words": len(service.dialect.words or WORDS),
        "template_tokens": service.dialect.template_tokens,
        "forced_output_length": service.dialect.forced_length,
    }
    if not service.is_dynamo:
        return observed, []
    async with service.address.client() as client:
        counters, notes = await scrape(client, directory, service.address.access.secrets.redact)
    return observed | {"frontend": counters}, notes

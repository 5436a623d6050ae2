"""The features of Dynamo that benchmarks compare: a row for each, with all there is to know of it.

Markers, ``Configuration.features``, what differs between two configurations, attribution, the
caveats of a simulation and what a report says of a feature at work all read :data:`FEATURES`.
A new feature is a new row here, and a field of ``Configuration`` or ``Worker`` where it needs one.

Configurations, runs and metrics are handed in: nothing of the package is imported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_dynamo_bench.benchmark import Benchmark, Configuration, Worker, WorkerMode
    from pytest_dynamo_bench.metrics import Metrics
    from pytest_dynamo_bench.records import Engines


@dataclass(frozen=True)
class Caveat:
    """A simplification of a simulation.

    Attributes:
        id: short and stable, for reports and for tests.
        text: what is simplified.
        effect: what that does to a claim: which configuration it favors, or that it favors none.
    """

    id: str
    text: str
    effect: str

    def __str__(self) -> str:
        return f"{self.text} {self.effect}"


@dataclass(frozen=True)
class Simulation:
    """A configuration as it is simulated, by replay or by engines that stand in for others.

    Attributes:
        host_tiers: the workers with KV offload whose host tier is Dynamo's own, by mode.
        ranks_as_workers: ranks of attention data parallelism are simulated as workers.
        one_prefill_at_a_time: prefill workers of a split process one prompt at a time.
        shared_blocks_once: a prefix of several running requests is read once in a decode step.
    """

    benchmark: Benchmark
    configuration: Configuration
    ranks_as_workers: bool = False
    one_prefill_at_a_time: bool = False
    host_tiers: Collection[str] = ()
    shared_blocks_once: bool = True

    @property
    def without_host_tier(self) -> str:
        """The workers with KV offload that have no host tier of Dynamo's own, in words."""
        found = [
            worker.mode
            for worker in self.configuration.workers
            if worker.kv_offload is not None and worker.mode not in self.host_tiers
        ]
        return " and ".join(found)


@dataclass(frozen=True)
class Observation:
    """What there is to look at, to say what a feature did in a run.

    Attributes:
        kv_bytes_per_token: of the benchmark's model; None where the model is not known.
    """

    benchmark: Benchmark
    configuration: Configuration
    metrics: Metrics
    kv_bytes_per_token: float | None = None


def _no_caveats(simulation: Simulation) -> tuple[Caveat, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A feature of Dynamo, or another thing that configurations may differ in.

    Attributes:
        id: short and stable, as stored results, attributions and markers call it.
        name: as Dynamo's documentation calls it; empty where it is only a field.
        marked: a marker of pytest, and one of ``Configuration.features``.
        aliases: other markers for it.
        used: whether a configuration has it switched on; for a feature with a ``worker_field``
            it is on where that field of any worker is not ``off``.
        fields: fields of the configuration that carry it.
        worker_field: the field of a worker that carries it.
        off: the value of ``worker_field`` without the feature.
        entry: of fields that have options or variables of Dynamo by name, the one that carries it.
        shown_by: in a split, the role whose field is the configuration's choice.
        roles: the roles in which ``worker_field`` is a choice; elsewhere it is the layout's.
        layout: it is carried by all that no other feature claims of the workers.
        otherwise: what a change is called with which the feature is neither switched on nor off.
        session_header: a header that requests have to name their session in.
        lacks: what the feature would need to do anything in a configuration; or empty.
        seen: what was measured of its mechanism in a run, with units.
        modelled: by what the engines of a run are, what of the feature is a model there and
            not the thing itself; empty for nothing.
        limits: by what the engines of a run are, sentences on what is not modelled.
        absent: what a simulation does not have of the feature at all.
        caveats: what a simulation simplifies where the feature is used.
    """

    id: str
    name: str = ""
    marked: bool = True
    aliases: tuple[str, ...] = ()
    used: Callable[[Configuration], bool] | None = None
    fields: tuple[str, ...] = ()
    worker_field: str = ""
    off: Any = None
    entry: str = ""
    shown_by: WorkerMode = "prefill"
    roles: tuple[WorkerMode, ...] = ("aggregated", "prefill", "decode")
    layout: bool = False
    otherwise: str = ""
    session_header: str = ""
    lacks: Callable[[Configuration], str] | None = None
    seen: Callable[[Observation], str] | None = None
    modelled: Mapping[Engines, Callable[[Observation], str]] = field(default_factory=dict)
    limits: Mapping[Engines, Callable[[Simulation], Iterator[str]]] = field(default_factory=dict)
    absent: Callable[[Simulation], tuple[Caveat, ...]] = _no_caveats
    caveats: Callable[[Simulation], tuple[Caveat, ...]] = _no_caveats

    def is_used(self, configuration: Configuration) -> bool:
        """Whether a configuration has it switched on."""
        if self.used is not None:
            return self.used(configuration)
        given = [self.value(configuration, name) for name in self.fields if self.entry]
        if self.worker_field:
            given += [self.value(worker, self.worker_field) for worker in configuration.workers]
        return any(value != self.off for value in given)

    def value(self, holder: Configuration | Worker, name: str) -> Any:
        """What a configuration or a worker has in a field of the feature."""
        found = getattr(holder, name)
        return found.get(self.entry) if self.entry else found

    def change(self, baseline: Configuration, treatment: Configuration) -> str:
        """What its change from one configuration to another is called."""
        switched = self.is_used(baseline) != self.is_used(treatment)
        return self.id if switched or not self.otherwise else self.otherwise


# Fields that have options or variables of Dynamo by name, and what one of those is called.
OPTION_FIELDS: Mapping[str, str] = {
    "frontend_args": "frontend --{}", "engine_args": "--{}", "env": "env {}",
}  # fmt: skip


def with_options(*configurations: Configuration) -> tuple[Feature, ...]:
    """The table, with a row for every option and variable that any of the configurations gives."""
    rows: dict[str, Feature] = {}
    for configuration in configurations:
        for name, entry in _options_of(configuration):
            id_ = f"{name.removesuffix('_args')}.{entry}"
            rows[id_] = Feature(id=id_, marked=False, fields=(name,), entry=entry)
        for worker in configuration.workers:
            for name, entry in _options_of(worker):
                id_ = f"{'engine' if name == 'engine_args' else 'worker-env'}.{entry}"
                rows[id_] = Feature(id=id_, marked=False, worker_field=name, entry=entry)
    taken = {(row.fields, row.worker_field, row.entry) for row in FEATURES if row.entry}
    return (
        *FEATURES,
        *(
            row
            for _, row in sorted(rows.items())
            if (row.fields, row.worker_field, row.entry) not in taken
        ),
    )


def _options_of(holder: Configuration | Worker) -> list[tuple[str, str]]:
    return [(name, key) for name in OPTION_FIELDS for key in getattr(holder, name, ())]


def used_features(configuration: Configuration) -> frozenset[str]:
    """The ids of the marked features that a configuration has switched on."""
    return frozenset(row.id for row in FEATURES if row.marked and row.is_used(configuration))


def feature_markers() -> dict[str, Feature]:
    """Every marker, with its feature."""
    return {name: row for row in FEATURES if row.marked for name in (row.id, *row.aliases)}


def markers_of(configuration: Configuration) -> set[str]:
    """The markers of the features that a configuration has switched on."""
    used = used_features(configuration)
    return {marker for marker, row in feature_markers().items() if row.id in used}


def session_header(configuration: Configuration) -> str:
    """The header that names a request's session to a configuration; empty without one."""
    used = (row.session_header for row in FEATURES if row.is_used(configuration))
    return next(filter(None, used), "")


def feature_limits(simulation: Simulation, engines: Engines) -> Iterator[str]:
    """What such engines do not have of the features of a configuration, a sentence each."""
    for row in FEATURES:
        if engines in row.limits and row.is_used(simulation.configuration):
            yield from row.limits[engines](simulation)


def features_lacking(configuration: Configuration) -> Iterator[str]:
    """Which features of a configuration can do nothing, and what they would need."""
    for row in FEATURES:
        if row.lacks is not None and row.is_used(configuration) and row.lacks(configuration):
            yield row.lacks(configuration)


def absent_features(simulation: Simulation) -> Iterator[Caveat]:
    """The features of a configuration that a simulation does not have at all."""
    for row in FEATURES:
        if row.is_used(simulation.configuration):
            yield from row.absent(simulation)


def feature_caveats(simulation: Simulation) -> Iterator[Caveat]:
    """What a simulation simplifies of the features that a configuration uses."""
    for row in FEATURES:
        if row.is_used(simulation.configuration):
            yield from row.caveats(simulation)


# ---------------------------------------------------------------------------------------
# What a report says of each
# ---------------------------------------------------------------------------------------


def _always(text: str) -> Callable[[Observation], str]:
    return lambda seen: text


def _known(value: float, text: str) -> str:
    return text if math.isfinite(value) else "not seen on this target"


def _routing(seen: Observation) -> str:
    requests = seen.metrics.requests
    rate = requests.numbers("router_hit_rate")
    told = rate == rate  # not NaN, and features are read where numpy is not loaded
    found = seen.metrics.value("kv_hit_rate")
    saw = _known(found, f"{100 * found:.1f} % of prompt tokens were cached on their worker")
    if told.any():
        given = requests.numbers("input_tokens")[told]
        share = (rate[told] * given).sum() / given.sum()
        saw += f"; the router expected {100 * share:.1f} %"
    given_up = seen.metrics.value("given_up_reuse")
    if not math.isfinite(given_up):
        # For single requests only a simulation has it.
        counters = seen.metrics.run.observed.get("frontend")
        counted = counters.get("router_given_up_share") if isinstance(counters, Mapping) else None
        given_up = counted if isinstance(counted, float) else math.nan
    if math.isfinite(given_up):
        saw += f"; it gave up {100 * given_up:.1f} % that another worker had cached"
    return saw


def _one_worker(configuration: Configuration) -> str:
    most = max(worker.replicas * worker.attention_dp for worker in configuration.workers)
    alone = "There is only one worker, so KV routing has no choice."
    return alone if most < 2 else ""


def _sessions(seen: Observation) -> str:
    same = seen.metrics.value("same_worker_share")
    return _known(same, f"{100 * same:.1f} % of later turns went to the worker of the turn before")


def _split(seen: Observation) -> str:
    metrics = seen.metrics
    requests = metrics.requests
    prefill, decode = (
        set(requests.texts(name)[~requests.failed]) - {None, ""}
        for name in ("prefill_worker", "decode_worker")
    )
    apart = metrics.value("split_share")
    saw = (
        f"{_known(apart, f'{100 * apart:.0f} %')} of requests were prefilled and decoded on "
        f"different workers: {len(prefill)} and {len(decode)} workers"
    )
    transfer = metrics.value("kv_transfer_time.mean")
    if math.isfinite(transfer):
        saw += f"; the handover of a request took {transfer:.1f} ms on average (upper bound)"
    return saw


def _transfer(seen: Observation) -> str:
    """The time that moving a prompt's KV cache is modelled to take."""
    bandwidth = seen.benchmark.hardware.kv_transfer_gb_per_second
    if bandwidth is None:
        return "the network, without transfer time"
    requests = seen.metrics.requests
    prompts = requests.numbers("input_tokens")[~requests.failed]
    if not len(prompts) or seen.kv_bytes_per_token is None:
        return "the network"
    tokens = prompts.mean()
    took_ms = tokens * seen.kv_bytes_per_token / bandwidth / 1e6
    return f"the network, {took_ms:.1f} ms for the KV cache of a mean prompt at {bandwidth:g} GB/s"


def _split_caveats(simulation: Simulation) -> tuple[Caveat, ...]:
    known = simulation.benchmark.hardware.kv_transfer_gb_per_second is not None
    found = (_TRANSFER_UNSHARED if known else _TRANSFER_FREE,)
    return (*found, _PREFILL_ONE_AT_A_TIME) if simulation.one_prefill_at_a_time else found


def _reuse_caveats(simulation: Simulation) -> tuple[Caveat, ...]:
    workers = simulation.configuration.workers
    decoding = any(w.prefix_caching and w.mode != "prefill" for w in workers)
    return (_SHARED_BLOCKS_ONCE,) if decoding and simulation.shared_blocks_once else ()


def _speculation(seen: Observation) -> str:
    steps = seen.metrics.value("tokens_per_step")
    return _known(steps, f"{steps:.2f} tokens per step")


def _drafts_not_decoded(configuration: Configuration) -> str:
    return "".join(
        "Speculative decoding on prefill workers has no effect: they do not decode."
        for worker in configuration.workers
        if worker.speculative is not None and worker.mode == "prefill"
    )


def _offload(seen: Observation) -> str:
    hits = seen.metrics.value("host_hit_rate")
    evicted = seen.metrics.run.observed.get("evicted_blocks")
    saw = _known(hits, f"{100 * hits:.1f} % of prompt tokens came from host memory")
    tiers = "the GPU" if "host_tiers" in seen.metrics.run.deployed else "both tiers"
    return saw if evicted is None else f"{saw}, {evicted:,} blocks were evicted from {tiers}"


def _offload_modelled(seen: Observation) -> str:
    """What stands for host memory: Dynamo's own tier over a modelled link, or more blocks."""
    links = [
        " and ".join(
            f"{gb_per_second:g} GB/s to {end}" if gb_per_second else f"no time to {end}"
            for end, gb_per_second in (
                ("the GPU", tier["to_gpu_gb_per_second"]),
                ("the host", tier["to_host_gb_per_second"]),
            )
        )
        for tier in seen.metrics.run.deployed.get("host_tiers", {}).values()
    ]
    if links:
        return f"the link between GPU and host memory: {'; '.join(dict.fromkeys(links))}"
    if seen.metrics.run.simulated:
        return ""
    return "host memory as extra blocks of the cache; onboarding takes no time"


def _offload_limits(simulation: Simulation) -> Iterator[str]:
    if simulation.without_host_tier:
        yield (
            f"{simulation.without_host_tier} workers: KV offload is modelled, because this "
            "Dynamo's mocker has none for them: host memory is extra blocks of the same cache, "
            "and onboarding blocks takes no time, which favors KV offload"
        )
    for caveat in _offload_caveats(simulation):
        yield f"{caveat.text} {caveat.effect}".rstrip(".")


def _offload_absent(simulation: Simulation) -> tuple[Caveat, ...]:
    if not simulation.without_host_tier:
        return ()
    return (
        Caveat(
            "kv-offload-absent",
            f"This Dynamo's replay has no KV offload for the {simulation.without_host_tier} "
            "workers: none at all, none for their engine, or none with drafts.",
            "No claim about KV offload is possible here; they are simulated without it.",
        ),
    )


def _offload_caveats(simulation: Simulation) -> tuple[Caveat, ...]:
    offloads = [
        worker.kv_offload
        for worker in simulation.configuration.workers
        if worker.kv_offload is not None and worker.mode in simulation.host_tiers
    ]
    free = [
        name
        for name in ("to_host_gb_per_second", "to_gpu_gb_per_second")
        if any(getattr(offload, name) is None for offload in offloads)
    ]
    if not free:
        return ()
    return (
        Caveat(
            "host-link-free",
            "Moving KV blocks between GPU and host memory takes no time, because KvOffload's "
            f"{' and '.join(free)} {'is' if len(free) == 1 else 'are'} not given.",
            "Favors KV offload.",
        ),
    )


def _ranks(seen: Observation) -> str:
    worker = next(item for item in seen.configuration.workers if item.attention_dp > 1)
    requests = seen.metrics.requests
    part = "decode" if worker.mode == "decode" else "prefill"
    places, ranks = requests.texts(f"{part}_worker"), requests.numbers(f"{part}_rank")
    known = ranks == ranks
    prompts = Counter(zip(places[known], ranks[known], strict=True))
    total = worker.replicas * worker.attention_dp
    if not prompts:
        return f"{total} {worker.mode} ranks; which rank served a request is not visible here"
    busiest = max(prompts.values()) / sum(prompts.values())
    return (
        f"{len(prompts)} of {total} {worker.mode} ranks served requests, the busiest "
        f"{100 * busiest:.1f} % of them"
    )


def _experts(seen: Observation) -> str:
    spread = (f"{w.moe_ep} ({w.mode})" for w in seen.configuration.workers if w.wideep)
    return f"experts over {', '.join(spread)} GPUs"


def _wideep_on_stand_ins(simulation: Simulation) -> Iterator[str]:
    for worker in simulation.configuration.workers:
        if worker.wideep:
            yield (
                f"{worker.mode} workers: WideEP kernels are not modelled; step times only account "
                f"for experts spread over {worker.moe_ep} GPUs"
            )


def _wideep_simulated(simulation: Simulation) -> Iterator[str]:
    for worker in simulation.configuration.workers:
        if worker.wideep:
            yield f"The WideEP kernels of the {worker.mode} workers are not simulated."


def _decoding(seen: Observation) -> str:
    here = seen.metrics.value("worker_decode_share")
    transfer = seen.metrics.value("image_transfer_time.mean")
    saw = _known(here, f"{100 * (1 - here):.0f} % of images were decoded in the frontend")
    if math.isfinite(transfer):
        saw += f"; reading the pixels of a request took {transfer:.1f} ms"
    return saw


def _embeddings(seen: Observation) -> str:
    metrics = seen.metrics
    found = metrics.value("embedding_hit_rate")
    saw = _known(found, f"{100 * found:.1f} % of images were found")
    beside = metrics.run.observed.get("encoder_cache")
    if beside:
        saw += f", and {beside['hits']:,} in vLLM's encoder cache"
    cache = metrics.run.observed.get("embedding_cache")
    if cache:
        saw += (
            f"; {cache['entries']:,} embeddings in {cache['bytes'] / 1e6:,.1f} of "
            f"{cache['capacity_bytes'] / 1e6:,.1f} MB, {cache['evictions']:,} evicted; the "
            f"encoder took {metrics.value('encoder_time.mean'):.1f} ms per request"
        )
    return saw


def _whose_cache(seen: Observation) -> str:
    if seen.metrics.run.deployed.get("engine") == "vllm":
        return "a toy model's encoder on the CPU; the cache is Dynamo's"
    return "the cache and the encoder are this plugin's, not the engine's"


def _placement(seen: Observation) -> str:
    configuration = seen.configuration
    spans = {f"{w.mode} workers span {w.nodes} nodes" for w in configuration.workers if w.nodes > 1}
    laid = f"workers over {configuration.nodes} nodes" if configuration.nodes > 1 else ""
    return "; ".join([*([laid] if laid else []), *sorted(spans)])


def _nodes_on_stand_ins(simulation: Simulation) -> Iterator[str]:
    configuration = simulation.configuration
    for worker in configuration.workers:
        if worker.nodes > 1:
            yield (
                f"{worker.mode} workers: spanning {worker.nodes} nodes is modelled in the step "
                "times only"
            )
    if configuration.nodes > 1:
        yield (
            f"placement on {configuration.nodes} nodes is modelled by the bandwidth of KV "
            "transfers only"
        )


def _nodes_simulated(simulation: Simulation) -> Iterator[str]:
    configuration = simulation.configuration
    for worker in configuration.workers:
        if worker.nodes > 1:
            yield (
                f"A {worker.mode} worker spans {worker.nodes} nodes, which is simulated in its "
                "step times only."
            )
    if configuration.nodes > 1:
        yield (
            f"Placement on {configuration.nodes} nodes is simulated by the bandwidth of KV "
            "transfers only."
        )


_SIMULATED_TIES = Caveat(
    "seeded-ties",
    "Dynamo's KV router breaks ties between equally good workers at random. The simulation uses a "
    "fixed seed to be reproducible.",
    "Other seeds give slightly different results. Use several before you rely on a small effect.",
)
_NO_AFFINITY = Caveat(
    "session-affinity-absent",
    "Dynamo's replay has no session affinity: the router places each turn independently.",
    "No claim about session affinity is possible here.",
)
_TRANSFER_FREE = Caveat(
    "kv-transfer-free",
    "KV transfers take no time, because the hardware's kv_transfer_gb_per_second is not given.",
    "Favors disaggregated configurations.",
)
_TRANSFER_UNSHARED = Caveat(
    "kv-transfer-unshared",
    "Each KV transfer gets the full bandwidth and starts after the whole prompt is processed.",
    "Favors disaggregated configurations under load. On hardware, layers are sent as they finish, "
    "which the simulation does not credit them for.",
)
_PREFILL_ONE_AT_A_TIME = Caveat(
    "prefill-one-at-a-time",
    "This Dynamo's replay hands a finished prompt over to decode only when its prefill worker is "
    "idle (fixed in 1.5). Prefill workers of disaggregated configurations are therefore simulated "
    "with one prompt at a time, in order of arrival, regardless of max_num_seqs.",
    "Favors disaggregated configurations under load: prompts do not share a step, and the first "
    "of them is done sooner.",
)
_SHARED_BLOCKS_ONCE = Caveat(
    "shared-blocks-once",
    "A decode step is priced by the distinct KV blocks in use: a prefix shared by several running "
    "requests is read once.",
    "Decoding is slightly too cheap with high reuse, which favors KV routing.",
)
_DRAFTS_AS_MTP = Caveat(
    "drafts-as-mtp",
    "Speculative decoding is multi-token prediction with given acceptance rates. A separate draft "
    "head costs nothing, and a prefix hit loses its last block.",
    "The gain follows from the given acceptance rates and does not measure them.",
)
_RANKS_IN_STEP = Caveat(
    "ranks-in-step",
    "Ranks of attention data parallelism have separate KV caches and batches, but step together.",
    "Every rank waits for the slowest, as on hardware. Requests are not balanced over ranks as an "
    "engine does.",
)
_RANKS_AS_WORKERS = Caveat(
    "ranks-as-workers",
    "Dynamo's replay does not support attention data parallelism with disaggregation. Each rank is "
    "simulated as a separate worker, in all configurations of this comparison.",
    "Ranks do not wait for each other, and the router sees each of them. On hardware a prompt on "
    "one rank holds up decoding on all, so this favors aggregated configurations, most of all "
    "under load.",
)
_WIDEEP_BY_TABLE = Caveat(
    "wideep-by-table",
    "Expert parallelism affects step times only through the number of GPUs that experts are spread "
    "over. WideEP kernels and expert load balancing are not modelled.",
    "Experts count as evenly loaded in all configurations; different kernels show no effect.",
)

# ---------------------------------------------------------------------------------------
# The table, in the order in which reports and attributions name them
# ---------------------------------------------------------------------------------------

FEATURES: tuple[Feature, ...] = (
    Feature(
        id="kv_routing",
        name="KV routing",
        used=lambda c: c.router == "kv",
        fields=("router",),
        otherwise="router",
        lacks=_one_worker,
        seen=_routing,
        caveats=lambda simulation: (_SIMULATED_TIES,),
    ),
    Feature(
        id="session_affinity",
        name="session affinity",
        fields=("frontend_args",),
        entry="router-session-affinity-ttl-secs",
        session_header="x-dynamo-session-id",
        seen=_sessions,
        absent=lambda simulation: (_NO_AFFINITY,),
    ),
    Feature(
        id="pd_split",
        name="prefill/decode split",
        used=lambda c: c.disaggregated,
        fields=("nodes",),
        layout=True,
        otherwise="workers",
        seen=_split,
        modelled={"stand-in": _transfer, "simulated": _transfer},
        caveats=_split_caveats,
    ),
    Feature(
        # Decode workers keep no prefix cache; that is part of disaggregation.
        id="prefix_caching",
        marked=False,
        worker_field="prefix_caching",
        off=False,
        roles=("aggregated", "prefill"),
        caveats=_reuse_caveats,
    ),
    Feature(
        id="spec_decode",
        name="speculative decoding",
        worker_field="speculative",
        shown_by="decode",
        lacks=_drafts_not_decoded,
        seen=_speculation,
        modelled={"stand-in": _always("accepted drafts, drawn at the given rates")},
        caveats=lambda simulation: (_DRAFTS_AS_MTP,),
    ),
    Feature(
        id="kv_offload",
        name="KV offload",
        aliases=("offload",),
        worker_field="kv_offload",
        seen=_offload,
        modelled={"stand-in": _offload_modelled, "simulated": _offload_modelled},
        limits={"stand-in": _offload_limits},
        absent=_offload_absent,
        caveats=_offload_caveats,
    ),
    Feature(
        id="attention_dp",
        name="attention data parallelism",
        marked=False,
        used=lambda c: any(worker.attention_dp > 1 for worker in c.workers),
        seen=_ranks,
        modelled={"stand-in": _always("step times, from the profile")},
        caveats=lambda s: (_RANKS_AS_WORKERS if s.ranks_as_workers else _RANKS_IN_STEP,),
    ),
    Feature(
        id="moe_ep",
        name="expert parallelism",
        marked=False,
        used=lambda c: any((worker.moe_ep or 1) > 1 for worker in c.workers),
        caveats=lambda simulation: (_WIDEEP_BY_TABLE,),
    ),
    Feature(
        id="wideep",
        name="WideEP",
        worker_field="wideep",
        off=False,
        shown_by="decode",
        seen=_experts,
        modelled=dict.fromkeys(
            ("stand-in", "simulated"), _always("in the profile's step times only, not its kernels")
        ),
        limits={"stand-in": _wideep_on_stand_ins, "simulated": _wideep_simulated},
    ),
    Feature(
        id="frontend_decoding",
        name="frontend decoding",
        worker_field="frontend_decoding",
        off=False,
        seen=_decoding,
    ),
    Feature(
        id="embedding_cache",
        name="embedding cache",
        worker_field="embedding_cache_gib",
        seen=_embeddings,
        modelled={"stand-in": _whose_cache},
    ),
    Feature(
        id="multi_node",
        name="multi-node",
        used=lambda c: c.nodes > 1 or any(worker.nodes > 1 for worker in c.workers),
        seen=_placement,
        modelled={"stand-in": _always("all on one machine")},
        limits={"stand-in": _nodes_on_stand_ins, "simulated": _nodes_simulated},
    ),
    Feature(id="block_size", marked=False, fields=("block_size",)),
    Feature(id="load", marked=False, fields=("concurrency", "requests")),
)

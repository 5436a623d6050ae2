"""What an author of a benchmark writes: plain data, checked when the module is imported.

A :class:`Benchmark` is a question with its model, hardware, traffic, configurations and
claims. Nothing here knows where a configuration is brought up; targets read this data.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from pytest_dynamo_bench.dynamo_options import (
    ENGINE_FIELDS,
    FRONTEND_FIELDS,
    checked_options,
    checked_variables,
    shown_variables,
)
from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.features import session_header, used_features
from pytest_dynamo_bench.metric_definitions import full_name, metric_of
from pytest_dynamo_bench.traffic import Concurrency, Traffic, TrafficSource, beginning

RouterMode = Literal[
    "round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted", "direct", "kv"
]
WorkerMode = Literal["aggregated", "prefill", "decode"]
Role = Literal["baseline", "treatment", "promoted"]
ClaimKind = Literal["effect", "mechanism", "control"]
Engine = Literal["vllm", "sglang", "trtllm"]
ScaleName = Literal["smoke", "standard", "full"]
SCALES: tuple[ScaleName, ...] = get_args(ScaleName)

# What a configuration is called and what is said about it does not change what it does.
_OLD_PROMOTED = "winner"
LABELS = ("name", "role", "published", "note")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def _fail(owner: str, problem: str) -> None:
    raise BenchmarkError(f"{owner}: {problem}")


def _check_choice(owner: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        _fail(owner, f"{name}: {value!r} is not one of {', '.join(map(repr, choices))}")


def _check_positive(owner: str, name: str, value: float | None) -> None:
    if value is not None and (isinstance(value, bool) or not value > 0):
        _fail(owner, f"{name}: must be greater than 0, got {value!r}")


def _check_name(owner: str, value: object) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        _fail(
            owner,
            f"name: {value!r} must be lower-case letters, digits, '.', '_' or '-', "
            "since it becomes a directory and a test id",
        )


@dataclass(frozen=True)
class Goodput:
    """The service-level objectives that a request must meet to count as good.

    A request is good when it succeeded and every limit given holds for it; goodput is good
    requests per second (AIPerf's ``--goodput``). Limits are in milliseconds.
    """

    time_to_first_token_ms: float | None = None
    inter_token_latency_ms: float | None = None
    request_latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = dataclasses.asdict(self)
        if all(value is None for value in limits.values()):
            _fail("Goodput", f"give at least one limit: {', '.join(limits)}")
        for name, value in limits.items():
            _check_positive("Goodput", name, value)

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits that are given, by metric, in milliseconds."""
        given = dataclasses.asdict(self).items()
        return {name.removesuffix("_ms"): limit for name, limit in given if limit is not None}


@dataclass(frozen=True)
class Hardware:
    """The machines that the benchmark is about; a simulated target takes its timing from them.

    ``kv_transfer_gb_per_second`` is the bandwidth between two workers, in 10^9 bytes per
    second, over which a prefill/decode split moves its KV cache.
    """

    gpu: str
    count: int
    nodes: int = 1
    kv_transfer_gb_per_second: float | None = None

    def __post_init__(self) -> None:
        _check_positive("Hardware", "count", self.count)
        _check_positive("Hardware", "nodes", self.nodes)
        _check_positive("Hardware", "kv_transfer_gb_per_second", self.kv_transfer_gb_per_second)


@dataclass(frozen=True)
class Size:
    """How much of its traffic a benchmark sends on ``local`` at one scale.

    Traffic with a fixed schedule is cut to what passes in ``seconds``. Of a closed loop the
    first ``turns`` of so many ``sessions`` are sent, with as many in flight as ever; ``seconds``
    then says about how long that takes, so that ``--dynamo-seconds`` can ask for more or fewer
    sessions.

    Attributes:
        seconds: length of a configuration's traffic by the clock; None sends all of it.
        traffic: another, smaller traffic to take in place of the published one; for traffic that
            cannot be cut, such as images that a real encoder has to work through.
        sessions: closed loop: how many sessions; None leaves it to the scale.
        turns: closed loop: first turns of each session; None sends sessions whole.
        fast_forward: modelled time (steps of the engines, pauses, transfers) runs so many
            times faster than the clock, and times are reported in modelled time. What is real
            (HTTP, routing, tokenizing) weighs so many times as much in them.
        ramp_seconds: closed loop: modelled time over which the first sessions start, one after
            another, as AIPerf's ``--concurrency-ramp-duration``; 0 starts them all at once.
        configurations: those that are brought up; claims about others are skipped. None is all.
    """

    seconds: float | None = None
    traffic: TrafficSource | None = None
    sessions: int | None = None
    turns: int | None = None
    fast_forward: float = 1.0
    ramp_seconds: float = 0.0
    configurations: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.traffic is not None and not isinstance(self.traffic, TrafficSource):
            _fail("Size", f"traffic: must be a traffic source, got {self.traffic!r}")
        for name in ("seconds", "sessions", "turns", "fast_forward"):
            _check_positive("Size", name, getattr(self, name))
        for name in ("sessions", "turns"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                _fail("Size", f"{name}: must be a whole number, got {value!r}")
        if not self.ramp_seconds >= 0:
            _fail("Size", f"ramp_seconds: must be 0 or more, got {self.ramp_seconds!r}")
        if self.configurations is not None:
            object.__setattr__(self, "configurations", tuple(self.configurations))

    def lasting(self, seconds: float | None) -> Size:
        """This size for so many seconds instead; closed loops get sessions in proportion."""
        if seconds is None or self.seconds is None:
            return self if seconds is None else dataclasses.replace(self, seconds=seconds)
        sessions = self.sessions and max(1, round(self.sessions * seconds / self.seconds))
        return dataclasses.replace(self, seconds=seconds, sessions=sessions)


DEFAULT_SIZES: Mapping[ScaleName, Size] = {
    "smoke": Size(seconds=10),
    "standard": Size(seconds=35),
    "full": Size(),
}


@dataclass(frozen=True)
class SpeculativeDecoding:
    """A draft proposes tokens that the model checks in one step.

    Attributes:
        draft_tokens: tokens proposed in a step, 1 to 5.
        acceptance_rates: for each proposed token the probability that it is accepted, given
            that all before it were; a simulation needs them, an engine measures them itself.
        method: how the draft is made, in the engine's own word, such as ``Eagle3`` or ``MTP``.
        draft_model: model id of the draft head, where it is a model of its own.
    """

    draft_tokens: int
    acceptance_rates: Sequence[float] = ()
    method: str = "MTP"
    draft_model: str = ""

    def __post_init__(self) -> None:
        owner = "SpeculativeDecoding"
        if isinstance(self.draft_tokens, bool) or self.draft_tokens not in range(1, 6):
            _fail(owner, f"draft_tokens: must be 1 to 5, got {self.draft_tokens!r}")
        object.__setattr__(self, "acceptance_rates", tuple(self.acceptance_rates))
        rates = self.acceptance_rates
        if rates and len(rates) != self.draft_tokens:
            _fail(
                owner,
                f"acceptance_rates: give one for each of the {self.draft_tokens} draft tokens, "
                f"got {len(rates)}",
            )
        for rate in rates:
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                _fail(owner, f"acceptance_rates: must be between 0 and 1, got {rate!r}")


@dataclass(frozen=True)
class KvOffload:
    """Cold KV blocks move to host memory and can be brought back.

    Attributes:
        host_gib: host memory for them, GiB (2^30 bytes) per replica.
        to_host_gb_per_second, to_gpu_gb_per_second: deprecated; they have no effect.
    """

    host_gib: float
    to_host_gb_per_second: dataclasses.InitVar[float | None] = None
    to_gpu_gb_per_second: dataclasses.InitVar[float | None] = None

    def __post_init__(
        self, to_host_gb_per_second: float | None, to_gpu_gb_per_second: float | None
    ) -> None:
        _check_positive("KvOffload", "host_gib", self.host_gib)
        for name, given in (
            ("to_host_gb_per_second", to_host_gb_per_second),
            ("to_gpu_gb_per_second", to_gpu_gb_per_second),
        ):
            if given is not None:
                warnings.warn(
                    f"KvOffload: {name} has no effect on any target; leave it out",
                    DeprecationWarning, stacklevel=3,
                )  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """Workers of one role: how many, how parallel, and how large their KV cache is.

    A replica uses ``tp * attention_dp`` GPUs. What TensorRT-LLM's recipes call TEP8 is
    ``tp=8, moe_ep=8``; DEP8 is ``attention_dp=8, moe_ep=8``.

    Attributes:
        replicas: how many of them.
        mode: ``aggregated``, or the ``prefill`` or ``decode`` side of a split.
        tp: tensor parallelism of the attention, GPUs.
        attention_dp: ranks that each hold whole attention weights and a KV cache of their
            own; 1 is off.
        moe_ep: GPUs over which the experts of a mixture are spread; None for dense models.
            The GPUs of a replica that ``moe_ep`` does not use up split each expert.
        wideep: the experts use the engine's wide expert parallelism (TensorRT-LLM's WIDEEP).
        nodes: machines that one replica spans.
        prefix_caching: whether finished blocks are kept for later prompts.
        kv_blocks: blocks of ``Configuration.block_size`` tokens, for each replica, or for
            each rank under attention data parallelism; None leaves it to the target.
        memory_fraction: share of GPU memory in the engine's own sense (vLLM and SGLang: of all
            memory, TensorRT-LLM: of what the weights leave free for the KV cache).
        max_num_seqs: most requests in one step.
        max_num_batched_tokens: most tokens in one step.
        speculative: speculative decoding, None for off.
        kv_offload: KV offload to host memory, None for off.
        frontend_decoding: images are decoded in the frontend, and workers get pixels.
        embedding_cache_gib: memory for the vision encoder's results, so that an image that
            comes again isn't encoded again, GiB (2^30 bytes) per replica; None for off.
        engine_args: other options of the workers' program, by the names that it has for them:
            ``{"max-model-len": 8192}``. See ``Configuration.frontend_args``.
        env: environment variables of these workers, over those of the configuration.
    """

    replicas: int
    mode: WorkerMode = "aggregated"
    tp: int = 1
    prefix_caching: bool = True
    kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    attention_dp: int = 1
    moe_ep: int | None = None
    wideep: bool = False
    nodes: int = 1
    memory_fraction: float | None = None
    speculative: SpeculativeDecoding | None = None
    kv_offload: KvOffload | None = None
    frontend_decoding: bool = False
    embedding_cache_gib: float | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    env: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        owner = f"Worker(mode={self.mode!r})"
        _check_choice(owner, "mode", self.mode, get_args(WorkerMode))
        for name in (
            "replicas", "tp", "kv_blocks", "max_num_seqs", "max_num_batched_tokens",
            "attention_dp", "moe_ep", "nodes",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                _fail(owner, f"{name}: must be a whole number, got {value!r}")
            _check_positive(owner, name, value)
        options = checked_options(owner, "engine_args", self.engine_args, ENGINE_FIELDS)
        object.__setattr__(self, "engine_args", options)
        object.__setattr__(self, "env", checked_variables(owner, self.env))
        _check_positive(owner, "memory_fraction", self.memory_fraction)
        _check_positive(owner, "embedding_cache_gib", self.embedding_cache_gib)
        if self.memory_fraction is not None and self.memory_fraction > 1:
            _fail(owner, f"memory_fraction: must be at most 1, got {self.memory_fraction!r}")
        per_replica = self.gpus_per_replica
        for name in ("moe_ep", "nodes"):
            value = getattr(self, name)
            if value is not None and per_replica % value:
                _fail(
                    owner,
                    f"{name}: {value} does not divide the {per_replica} GPUs of a replica "
                    f"(tp {self.tp} x attention_dp {self.attention_dp})",
                )
        if self.wideep and (self.moe_ep or 1) < 2:
            _fail(owner, "wideep: needs moe_ep of 2 or more")
        for name, kind in (("speculative", SpeculativeDecoding), ("kv_offload", KvOffload)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                _fail(owner, f"{name}: must be a {kind.__name__}, got {value!r}")

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica."""
        return self.tp * self.attention_dp

    @property
    def gpus(self) -> int:
        """GPUs of all replicas together."""
        return self.replicas * self.gpus_per_replica


@dataclass(frozen=True)
class Configuration:
    """A deployable Dynamo graph: a frontend with its router mode, and workers by role.

    The ``promoted`` one is what the benchmark's recipe deploys.

    Derive one configuration from another with :meth:`but`, so that what differs is visible
    in the source::

        KV = ROUND_ROBIN.but(name="agg-kv", role="treatment", router="kv")

    ``nodes`` says over how many machines the workers are laid out, where the layout is part
    of the question; a replica that spans machines says so itself (``Worker.nodes``).

    Where a comparison loads its configurations differently, ``concurrency`` replaces that of
    the benchmark's traffic, and ``requests`` limits the traffic to its first so many requests
    (of a smaller traffic to as large a part of it); :func:`traffic_for` applies both. They are
    named as confounds wherever they differ.

    What Dynamo has an option or a variable for, and no field here stands for, is given by
    Dynamo's own name: ``frontend_args`` are the frontend's and its router's options,
    ``{"router-temperature": 0.5}``, ``env`` variables of frontend and workers. The value True is
    an option without a value, False its ``--no-`` form, a list several values. Each differs by
    its own name in reports and attributions. Values of variables that are named like secrets
    are not shown.
    """

    name: str
    role: Role
    workers: Sequence[Worker]
    router: RouterMode = "round-robin"
    block_size: int = 64
    published: bool = True
    note: str = ""
    nodes: int = 1
    concurrency: int | None = None
    requests: int | None = None
    frontend_args: Mapping[str, Any] = field(default_factory=dict, hash=False)
    env: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)

    def __post_init__(self) -> None:
        _check_name("Configuration", self.name)
        owner = f"Configuration {self.name!r}"
        if self.role == _OLD_PROMOTED:
            warnings.warn(
                f"{owner}: role={_OLD_PROMOTED!r} is now role='promoted'",
                DeprecationWarning, stacklevel=3,
            )  # fmt: skip
            object.__setattr__(self, "role", "promoted")
        options = checked_options(owner, "frontend_args", self.frontend_args, FRONTEND_FIELDS)
        object.__setattr__(self, "frontend_args", options)
        object.__setattr__(self, "env", checked_variables(owner, self.env))
        _check_choice(owner, "role", self.role, get_args(Role))
        _check_choice(owner, "router", self.router, get_args(RouterMode))
        _check_positive(owner, "block_size", self.block_size)
        _check_positive(owner, "nodes", self.nodes)
        for name in ("concurrency", "requests"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, int):
                _fail(owner, f"{name}: must be a whole number, got {value!r}")
            _check_positive(owner, name, value)
        object.__setattr__(self, "workers", tuple(self.workers))
        if not self.workers:
            _fail(owner, "workers: give at least one Worker")
        for worker in self.workers:
            if not isinstance(worker, Worker):
                _fail(owner, f"workers: must be Worker objects, got {worker!r}")
        modes = [worker.mode for worker in self.workers]
        if sorted(modes) not in (["aggregated"], ["decode", "prefill"]):
            _fail(
                owner,
                f"workers: give either one aggregated Worker, or one prefill and one decode "
                f"Worker; got {', '.join(modes)}",
            )

    def but(self, **changes: Any) -> Configuration:
        """This configuration with some fields changed.

        Raises:
            BenchmarkError: a field does not exist, or its value is not allowed.
        """
        known = [item.name for item in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                _fail(
                    f"Configuration {self.name!r}",
                    f"has no field {name!r}; fields: {', '.join(known)}",
                )
        return dataclasses.replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """All fields as plain data for reports, without the values of secrets."""
        found = dataclasses.asdict(self)
        for part in (found, *found["workers"]):
            part["env"] = shown_variables(part["env"])
        return found

    @property
    def gives_options(self) -> bool:
        """Whether it has options or variables of Dynamo beside its fields."""
        return bool(self.frontend_args or self.env) or any(
            worker.engine_args or worker.env for worker in self.workers
        )

    @property
    def disaggregated(self) -> bool:
        """Whether prefill and decode run in pools of their own."""
        return any(worker.mode != "aggregated" for worker in self.workers)

    @property
    def gpus(self) -> int:
        """GPUs of all workers together."""
        return sum(worker.gpus for worker in self.workers)

    @property
    def replicas(self) -> int:
        """Workers of all roles together."""
        return sum(worker.replicas for worker in self.workers)

    @property
    def prefill_replicas(self) -> int:
        """Workers that process prompts: all of them, or the prefill pool of a split."""
        return sum(worker.replicas for worker in self.workers if worker.mode != "decode")

    @property
    def features(self) -> frozenset[str]:
        """The Dynamo features that this configuration uses, derived from its data."""
        return used_features(self)


def traffic_for(traffic: Traffic, configuration: Configuration) -> Traffic:
    """The traffic as it is sent to one configuration: its own concurrency and length, and with
    the names of sessions where it routes by them.

    Every target sends this, and every check of a run compares with this. Applying it twice
    changes nothing more.

    Requests of a shortened traffic get ids of their own, as
    :func:`~pytest_dynamo_bench.traffic.beginning` says.

    Raises:
        BenchmarkError: ``concurrency`` is given but the traffic has a fixed schedule.
    """
    schedule = traffic.schedule
    if configuration.concurrency is not None:
        if not isinstance(schedule, Concurrency):
            _fail(
                f"Configuration {configuration.name!r}",
                f"concurrency: {configuration.concurrency} has no meaning for traffic with a "
                f"{schedule.description}",
            )
        schedule = Concurrency(configuration.concurrency)
    header = session_header(configuration)
    if (schedule, header) != (traffic.schedule, traffic.session_header):
        traffic = dataclasses.replace(traffic, schedule=schedule, session_header=header)
    if configuration.requests is None:
        return traffic
    return beginning(traffic, max(1, round(configuration.requests * traffic.share)))


def claimed_as(target: str) -> str:
    """The name of a target as claims write it, where it may be the name of an argument."""
    return target.replace("-", "_")


Direction = Literal["at most", "at least", "within"]


@dataclass(frozen=True)
class Bound:
    """What is claimed of a change: ``change <= limit``, ``change >= limit``, or both sides.

    The change is relative (``-0.2`` is 20 % lower), except for metrics that are shares
    already, such as ``kv_hit_rate``, where it is the plain difference (``0.1`` is 10 points).
    ``within`` is ``-limit <= change <= limit``.
    """

    direction: Direction
    limit: float

    @property
    def lowest(self) -> float:
        """The smallest change with which the claim is true; -inf where any is small enough."""
        if self.direction == "at most":
            return -math.inf
        return -self.limit if self.direction == "within" else self.limit

    @property
    def highest(self) -> float:
        """The largest change with which the claim is true; inf where any is large enough."""
        return math.inf if self.direction == "at least" else self.limit

    @property
    def limits(self) -> tuple[float, ...]:
        """The ends of what is claimed, ascending: one, or two for ``within``."""
        return tuple(end for end in (self.lowest, self.highest) if math.isfinite(end))


_BOUND_FIELDS: Mapping[str, tuple[Direction, int]] = {
    "lower_by": ("at most", -1),
    "higher_by": ("at least", +1),
    "not_higher_by": ("at most", +1),
    "not_lower_by": ("at least", -1),
    "within": ("within", +1),
}


@dataclass(frozen=True)
class Claim:
    """A statement about two configurations that a measurement confirms or refutes.

    Exactly one of ``lower_by``, ``higher_by``, ``not_higher_by``, ``not_lower_by`` and
    ``within`` (neither higher nor lower by more) is given, as one number for every target or as
    ``{"local": 0.1, "replay": 0.05}``; on a target that is not named the claim is not made, unless
    that says which one it is like, as ``endpoint`` is like ``kubernetes``: both are real
    deployments. In the name of a target ``_`` stands for ``-``. Numbers are relative (0.2 is
    20 %), for shares such as ``kv_hit_rate`` plain differences (0.1 is 10 points).

    ``kind`` is ``effect`` (what is promised), ``mechanism`` (why it happens) or ``control``
    (where it must be absent). ``evidence`` says where the threshold comes from.

    Two claims are the same only if all of their fields are: a claim's name identifies it to
    readers, not to what judges it.
    """

    name: str
    metric: str
    treatment: str
    baseline: str
    lower_by: float | Mapping[str, float] | None = None
    higher_by: float | Mapping[str, float] | None = None
    not_higher_by: float | Mapping[str, float] | None = None
    not_lower_by: float | Mapping[str, float] | None = None
    within: float | Mapping[str, float] | None = None
    kind: ClaimKind = "effect"
    evidence: str = ""

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            _fail("Claim", f"name: must be a sentence, got {self.name!r}")
        owner = f"Claim {self.name!r}"
        _check_choice(owner, "kind", self.kind, get_args(ClaimKind))
        try:
            object.__setattr__(self, "metric", full_name(self.metric))
        except ValueError as error:
            _fail(owner, f"metric: {error}")
        given = [name for name in _BOUND_FIELDS if getattr(self, name) is not None]
        if len(given) != 1:
            _fail(owner, f"give exactly one of {', '.join(_BOUND_FIELDS)}; got {given or 'none'}")
        thresholds = getattr(self, given[0])
        if isinstance(thresholds, Mapping):
            # Its own copy: a claim that has been judged must not become another one.
            thresholds = self._by_name(owner, given[0], thresholds)
            object.__setattr__(self, given[0], thresholds)
        for value in thresholds.values() if isinstance(thresholds, dict) else [thresholds]:
            self._check_threshold(given[0], value)
        if self.treatment == self.baseline:
            _fail(owner, f"treatment and baseline are the same configuration: {self.baseline!r}")

    def __hash__(self) -> int:
        """A hash that agrees with equality, also where thresholds are given by target."""
        return hash((self.name, self.metric, self.treatment, self.baseline, self.kind))

    @staticmethod
    def _by_name(owner: str, bound: str, thresholds: Mapping[str, float]) -> dict[str, float]:
        if not thresholds:
            _fail(owner, f"{bound}: name at least one target, such as local")
        found: dict[str, float] = {}
        for target, value in thresholds.items():
            if not isinstance(target, str) or not (name := claimed_as(target)).isidentifier():
                _fail(owner, f"{bound}: {target!r} cannot be the name of a target")
            if name in found:
                _fail(owner, f"{bound}: {name!r} is named twice")
            found[name] = value
        return found

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets that it names, as claims write them; none for one number for all."""
        found = (getattr(self, name) for name in _BOUND_FIELDS)
        thresholds = next(value for value in found if value is not None)
        return tuple(thresholds) if isinstance(thresholds, Mapping) else ()

    def _check_threshold(self, bound: str, value: object) -> None:
        owner = f"Claim {self.name!r}"
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:  # type: ignore[operator]
            _fail(owner, f"{bound}: must be 0 or more, for example 0.2 for 20 %; {value!r}")
        if bound in ("lower_by", "within") and value >= 1:  # type: ignore[operator]
            _fail(owner, f"{bound}: {value!r} would be 100 % lower or more; write 0.2 for 20 %")
        if bound == "within":
            _check_positive(owner, bound, value)  # type: ignore[arg-type]

    @classmethod
    def lower(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is lower, with threshold and evidence target by target.

        ::

            Claim.lower("KV routing lowers TTFT", TTFT, AGG_KV, AGG,
                        local=(0, "29 % lower, at least 2"), replay=(0.1, "17 %, at least 15"))

        Args:
            targets: target to (at least so much lower, where that is from).

        Raises:
            BenchmarkError: as for :class:`Claim`.
        """
        return cls._by_target("lower_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def higher(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is higher; otherwise as :meth:`lower`."""
        return cls._by_target("higher_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def not_higher(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "effect",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric is at most so much higher; otherwise as :meth:`lower`."""
        return cls._by_target("not_higher_by", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def unchanged(
        cls,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        *,
        kind: ClaimKind = "control",
        **targets: tuple[float, str],
    ) -> Claim:
        """A claim that the metric changes by at most so much either way.

        It holds when the whole interval of the change is within the margin, which more noise
        makes harder and not easier (equivalence, Schuirmann 1987); otherwise as :meth:`lower`.
        """
        return cls._by_target("within", name, metric, treatment, baseline, kind, targets)

    @classmethod
    def _by_target(
        cls,
        bound: str,
        name: str,
        metric: str,
        treatment: Configuration,
        baseline: Configuration,
        kind: ClaimKind,
        targets: Mapping[str, tuple[float, str]],
    ) -> Claim:
        for target, given in targets.items():
            if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], str)):
                _fail(
                    f"Claim {name!r}",
                    f"{target}: must be a threshold with its evidence, such as "
                    f'(0.1, "17 % in a run of …"), got {given!r}',
                )
        evidence = "; ".join(f"{target}: {text}" for target, (_, text) in targets.items())
        limits: dict[str, Any] = {bound: {target: limit for target, (limit, _) in targets.items()}}
        return cls(
            name, metric, treatment.name, baseline.name, kind=kind, evidence=evidence, **limits
        )

    def bound(self, *targets: str) -> Bound | None:
        """What is claimed on a target, or None where the claim is not made.

        Args:
            targets: the target's name, then those of targets that it is like; the first one that
                the claim names decides.
        """
        for name, (direction, sign) in _BOUND_FIELDS.items():
            thresholds = getattr(self, name)
            if thresholds is None:
                continue
            if isinstance(thresholds, Mapping):
                named = [name for name in map(claimed_as, targets) if name in thresholds]
                if not named:
                    return None
                thresholds = thresholds[named[0]]
            return Bound(direction, sign * float(thresholds))
        raise AssertionError("a claim without a bound cannot be constructed")

    def statement(self, *targets: str) -> str:
        """The claim in words, for example ``time_to_first_token.mean lower by at least 20 %``.

        Args:
            targets: as for :meth:`bound`.
        """
        bound = self.bound(*targets)
        if bound is None:
            return f"not claimed on {targets[0]}"
        size = abs(bound.limit) * 100
        unit = "points" if metric_of(self.metric).is_share else "%"
        words = {
            "lower_by": (f"lower by at least {size:g} {unit}", "lower"),
            "higher_by": (f"higher by at least {size:g} {unit}", "higher"),
            "not_higher_by": (f"at most {size:g} {unit} higher", "not higher"),
            "not_lower_by": (f"at most {size:g} {unit} lower", "not lower"),
            "within": (f"at most {size:g} {unit} higher or lower", "unchanged"),
        }
        given = next(name for name in _BOUND_FIELDS if getattr(self, name) is not None)
        return f"{self.metric} {words[given][size == 0]}"


@dataclass(frozen=True)
class PublishedResults:
    """What somebody else measured, to be shown beside a measurement and never mixed with it.

    Attributes:
        source: who published them and where.
        hardware: what they were measured on.
        values: by configuration, then by what was measured, in the words of the source.
        note: how they are to be read: number of runs, units that are not stated.
    """

    source: str
    hardware: str
    values: Mapping[str, Mapping[str, float]]
    note: str = ""

    def __post_init__(self) -> None:
        for configuration, measured in self.values.items():
            for what, value in measured.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    _fail(
                        "PublishedResults",
                        f"values: {configuration}: {what}: must be a number, got {value!r}",
                    )


@dataclass(frozen=True)
class Benchmark:
    """A question with everything that is needed to answer it.

    ``sizes`` says how much of the traffic ``local`` sends at each scale, where the default
    (:data:`DEFAULT_SIZES`: 10 s, 35 s, all) does not do.

    Raises:
        BenchmarkError: when a field is wrong; the message names the field.
    """

    name: str
    question: str
    model: str
    hardware: Hardware
    traffic: TrafficSource
    configurations: Sequence[Configuration]
    claims: Sequence[Claim]
    engine: Engine = "vllm"
    goodput: Goodput | None = None
    held_constant: str = ""
    recipe: str = ""
    notes: Sequence[str] = field(default=())
    published: PublishedResults | None = None
    sizes: Mapping[ScaleName, Size] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("Benchmark", self.name)
        owner = f"Benchmark {self.name!r}"
        _check_choice(owner, "engine", self.engine, get_args(Engine))
        for name in ("configurations", "claims", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.traffic, TrafficSource):
            _fail(
                owner,
                f"traffic: must be a traffic source such as MooncakeTrace, got {self.traffic!r}",
            )
        names = [configuration.name for configuration in self.configurations]
        for what, values in (("configurations", names), ("claims", [c.name for c in self.claims])):
            doubled = sorted({value for value in values if values.count(value) > 1})
            if doubled:
                _fail(owner, f"{what}: the name {doubled[0]!r} is used more than once")
        if not names:
            _fail(owner, "configurations: give at least one Configuration")
        for name in self.published.values if self.published else ():
            _check_choice(owner, "published: configuration", name, names)
        for scale, size in self.sizes.items():
            _check_choice(owner, "sizes", scale, SCALES)
            for name in size.configurations or ():
                _check_choice(owner, f"sizes: {scale}: configuration", name, names)
        fixed = not isinstance(getattr(self.traffic, "schedule", None), Concurrency)
        for configuration in self.configurations:
            if fixed and configuration.concurrency is not None:
                _fail(
                    f"Configuration {configuration.name!r}",
                    "concurrency: has no meaning here, since the benchmark's traffic is not sent "
                    "by concurrency",
                )
        for claim in self.claims:
            for name in ("treatment", "baseline"):
                _check_choice(f"Claim {claim.name!r}", name, getattr(claim, name), names)
            if metric_of(claim.metric).needs_limits and self.goodput is None:
                _fail(
                    f"Claim {claim.name!r}",
                    "metric: goodput needs limits; give the Benchmark goodput=Goodput(...)",
                )

    def size(self, scale: ScaleName) -> Size:
        """How much of the traffic is sent on ``local`` at a scale."""
        return self.sizes.get(scale, DEFAULT_SIZES[scale])

    def configuration(self, name: str) -> Configuration:
        """The configuration called ``name``.

        Raises:
            BenchmarkError: there is none; the message lists those there are.
        """
        for configuration in self.configurations:
            if configuration.name == name:
                return configuration
        known = ", ".join(configuration.name for configuration in self.configurations)
        raise BenchmarkError(
            f"Benchmark {self.name!r} has no configuration {name!r}; it has {known}"
        )

    def only(self, names: Collection[str]) -> Benchmark:
        """This benchmark with some of its configurations, in their order.

        Raises:
            BenchmarkError: a name is not of any configuration, or there is none.
        """
        wanted = {self.configuration(name).name for name in names}
        return self.with_configurations(c for c in self.configurations if c.name in wanted)

    def with_configurations(self, configurations: Iterable[Configuration]) -> Benchmark:
        """This benchmark with other configurations; the only way to make one.

        What names configurations follows: claims are kept where both of theirs are there,
        published results where their configuration is there unchanged. ``sizes`` bring up of
        the new configurations what they did before, and all that the benchmark did not have.

        Raises:
            BenchmarkError: as for :class:`Benchmark`: none is given, or a name is used twice.
        """
        made = tuple(configurations)
        names = [configuration.name for configuration in made]
        own = {configuration.name for configuration in self.configurations}
        published = self.published
        if published is not None:
            kept = {c.name for c in made if c in self.configurations} & set(published.values)
            published = dataclasses.replace(
                published, values={name: published.values[name] for name in sorted(kept)}
            )
        return dataclasses.replace(
            self,
            configurations=made,
            claims=[c for c in self.claims if {c.treatment, c.baseline} <= set(names)],
            published=published if published is not None and published.values else None,
            sizes={
                scale: size
                if size.configurations is None
                else dataclasses.replace(
                    size,
                    configurations=[
                        name for name in names if name in size.configurations or name not in own
                    ],
                )
                for scale, size in self.sizes.items()
            },
        )

    def with_traffic(self, traffic: TrafficSource) -> Benchmark:
        """This benchmark about another traffic, which no size replaces by one of its own."""
        return dataclasses.replace(
            self,
            traffic=traffic,
            sizes={
                scale: dataclasses.replace(size, traffic=None) for scale, size in self.sizes.items()
            },
        )

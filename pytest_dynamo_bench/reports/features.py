"""Each Dynamo feature of a configuration at work: what it did in a run, in figures and words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.engines import model_dimensions
from pytest_dynamo_bench.errors import TargetError
from pytest_dynamo_bench.metrics import Metrics
from pytest_dynamo_bench.records import Run


@dataclass(frozen=True)
class FeatureAtWork:
    """What a feature did in one run.

    Attributes:
        feature: as the markers call it, such as ``kv_routing``; ``attention_dp`` is
            attention data parallelism.
        saw: what was measured of its mechanism, with units.
        modelled: what of it is a model here and not the thing itself; empty where nothing is.
    """

    feature: str
    saw: str
    modelled: str = ""

    def __str__(self) -> str:
        return self.saw + (f" (modelled: {self.modelled})" if self.modelled else "")


def features_at_work(
    benchmark: Benchmark, configuration: Configuration, metrics: Metrics
) -> tuple[FeatureAtWork, ...]:
    """What the features of a configuration did in a run, in the order of the documentation."""
    return tuple(_features(benchmark, configuration, metrics))


def _features(
    benchmark: Benchmark, configuration: Configuration, metrics: Metrics
) -> Iterator[FeatureAtWork]:
    run, features = metrics.run, configuration.features
    local = run.target == "local"
    if "kv_routing" in features:
        yield FeatureAtWork("kv_routing", _routing(metrics))
    if "pd_split" in features:
        yield FeatureAtWork(
            "pd_split",
            _split(metrics),
            _transfer(benchmark, metrics) if local or run.simulated else "",
        )
    if "spec_decode" in features:
        steps = metrics.value("tokens_per_step")
        yield FeatureAtWork(
            "spec_decode",
            _known(steps, f"{steps:.2f} tokens a step"),
            "which drafts are accepted, by the given rates" if local else "",
        )
    if "kv_offload" in features:
        hits = metrics.value("host_hit_rate")
        evicted = run.observed.get("evicted_blocks")
        saw = _known(hits, f"{100 * hits:.1f} % of prompt tokens came from host memory")
        if evicted is not None:
            saw += f", {evicted:,} blocks left both tiers"
        yield FeatureAtWork(
            "kv_offload",
            saw,
            "host memory as more blocks of the cache; bringing them back takes no time"
            if local
            else "",
        )
    workers = configuration.workers
    if any(worker.attention_dp > 1 for worker in workers):
        yield FeatureAtWork(
            "attention_dp",
            _ranks(configuration, metrics),
            "step times, from the profile" if local else "",
        )
    if "wideep" in features:
        spread = ", ".join(f"{w.moe_ep} ({w.mode})" for w in workers if w.wideep)
        yield FeatureAtWork(
            "wideep",
            f"experts over {spread} GPUs",
            "in the profile's step times only, not its kernels" if local or run.simulated else "",
        )
    if "frontend_decoding" in features:
        yield FeatureAtWork("frontend_decoding", _decoding(metrics))
    if "embedding_cache" in features:
        yield FeatureAtWork(
            "embedding_cache",
            _embeddings(metrics),
            _whose_cache(run) if local else "",
        )
    if "multi_node" in features:
        yield FeatureAtWork(
            "multi_node",
            _placement(configuration),
            "all on one machine" if local else "",
        )


def _known(value: float, text: str) -> str:
    return text if math.isfinite(value) else "not seen on this target"


def _routing(metrics: Metrics) -> str:
    told = [record for record in metrics.run.records if record.router_hit_rate is not None]
    found = metrics.value("kv_hit_rate")
    saw = _known(found, f"{100 * found:.1f} % of prompt tokens were cached where they were sent")
    if told:
        expected = sum((record.router_hit_rate or 0) * record.input_tokens for record in told)
        share = expected / sum(record.input_tokens for record in told)
        saw += f"; the router expected {100 * share:.1f} %"
    return saw


def _split(metrics: Metrics) -> str:
    records = [record for record in metrics.run.records if record.succeeded]
    prefill = {r.prefill_worker for r in records if r.prefill_worker}
    decode = {r.decode_worker for r in records if r.decode_worker}
    apart = metrics.value("split_share")
    saw = (
        f"{_known(apart, f'{100 * apart:.0f} %')} of requests decoded on another worker than "
        f"processed the prompt: {len(prefill)} and {len(decode)} workers"
    )
    transfer = metrics.value("kv_transfer_time.mean")
    if math.isfinite(transfer):
        saw += f"; handing a prompt over took {transfer:.1f} ms at most, on average"
    return saw


def _transfer(benchmark: Benchmark, metrics: Metrics) -> str:
    """The time that moving a prompt's KV cache is modelled to take."""
    bandwidth = benchmark.hardware.kv_transfer_gb_per_second
    records = [record for record in metrics.run.records if record.succeeded]
    if bandwidth is None or not records:
        return "the network, as infinitely fast" if bandwidth is None else "the network"
    try:
        token_bytes = model_dimensions(benchmark.model).kv_bytes_per_token
    except TargetError:
        return "the network"
    tokens = sum(record.input_tokens for record in records) / len(records)
    took_ms = tokens * token_bytes / bandwidth / 1e6
    return f"the network, {took_ms:.1f} ms for a mean prompt's KV cache at {bandwidth:g} GB/s"


def _ranks(configuration: Configuration, metrics: Metrics) -> str:
    worker = next(item for item in configuration.workers if item.attention_dp > 1)
    prompts: dict[tuple[str | None, int], int] = {}
    for record in metrics.run.records:
        if worker.mode == "decode":
            place, rank = record.decode_worker, record.decode_rank
        else:
            place, rank = record.prefill_worker, record.prefill_rank
        if rank is not None:
            prompts[place, rank] = prompts.get((place, rank), 0) + 1
    total = worker.replicas * worker.attention_dp
    if not prompts:
        return f"{total} {worker.mode} ranks; which served whom was not seen on this target"
    busiest = max(prompts.values()) / sum(prompts.values())
    return (
        f"{len(prompts)} of {total} {worker.mode} ranks served requests, the busiest "
        f"{100 * busiest:.1f} % of them"
    )


def _decoding(metrics: Metrics) -> str:
    here = metrics.value("worker_decode_share")
    transfer = metrics.value("image_transfer_time.mean")
    saw = _known(here, f"{100 * (1 - here):.0f} % of images were decoded in the frontend")
    if math.isfinite(transfer):
        saw += f"; reading the pixels of a request took {transfer:.1f} ms"
    return saw


def _whose_cache(run: Run) -> str:
    if run.deployed.get("engine") == "vllm":
        return "a toy's encoder on the processor; the cache is Dynamo's"
    return "the cache and the encoder are this plugin's, not the engine's"


def _embeddings(metrics: Metrics) -> str:
    found = metrics.value("embedding_hit_rate")
    saw = _known(found, f"{100 * found:.1f} % of images were found")
    beside = metrics.run.observed.get("encoder_cache")
    if beside:
        saw += f", and {beside['hits']:,} in vLLM's own encoder cache"
    cache = metrics.run.observed.get("embedding_cache")
    if cache:
        saw += (
            f"; {cache['entries']:,} embeddings in {cache['bytes'] / 1e6:,.1f} of "
            f"{cache['capacity_bytes'] / 1e6:,.1f} MB, {cache['evictions']:,} evicted; the "
            f"encoder took {metrics.value('encoder_time.mean'):.1f} ms a request"
        )
    return saw


def _placement(configuration: Configuration) -> str:
    spans = {f"{w.mode} workers span {w.nodes} nodes" for w in configuration.workers if w.nodes > 1}
    laid = f"workers over {configuration.nodes} nodes" if configuration.nodes > 1 else ""
    return "; ".join([*([laid] if laid else []), *sorted(spans)])

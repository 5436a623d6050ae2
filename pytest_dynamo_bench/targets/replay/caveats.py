"""Known simplifications of the simulation, and what each does to a claim."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.engines import EngineProfile
from pytest_dynamo_bench.features import Caveat, Simulation, absent_features, feature_caveats

MODEL_ESTIMATE = Caveat(
    "model-estimate",
    "Step times are estimates from kernel measurements and were not checked against this "
    "deployment on hardware.",
    "Trust differences between configurations more than absolute times.",
)
PREFIX_PRICED_ON_AVERAGE = Caveat(
    "prefix-priced-on-average",
    "The cost of attending to earlier tokens is a mean over this traffic, the same for every token "
    "of every prompt; Dynamo's table does not include it.",
    "Tokens early in a prompt, which a prefix hit saves, are slightly too expensive. This favors "
    "prefix reuse and therefore KV routing. run.json compares the prefill time charged with that "
    "of the profile's source.",
)
CACHED_PREFIX_FREE = Caveat(
    "cached-prefix-free",
    "A prefill step is priced by its new tokens. Attending to a cached prefix or to earlier chunks "
    "of a long prompt costs nothing.",
    "Favors prefix reuse and therefore KV routing, and makes long prompts too cheap everywhere.",
)
NO_VISION = Caveat(
    "vision-encoder-absent",
    "The model's vision encoder takes no time and its embeddings have no cache.",
    "No claim about images, embedding caches or frontend decoding is possible here.",
)
DATA_SOURCE = Caveat(
    "data-source",
    "Kernel measurements are from NVIDIA's aiconfigurator (Apache-2.0); the replay is ai-dynamo's "
    "(Apache-2.0).",
    "Favors no configuration.",
)


def caveats(
    benchmark: Benchmark,
    configuration: Configuration,
    profiles: Sequence[EngineProfile],
    *,
    prefix_priced: bool,
    ranks_as_workers: bool,
    one_prefill_at_a_time: bool,
    host_tiers: Collection[str],
    shared_blocks_once: bool,
) -> tuple[Caveat, ...]:
    """Those that apply to a configuration, the most important first."""
    simulation = Simulation(
        benchmark, configuration, ranks_as_workers, one_prefill_at_a_time, host_tiers,
        shared_blocks_once,
    )  # fmt: skip
    return tuple(_applying(simulation, profiles, prefix_priced))


def _applying(
    simulation: Simulation, profiles: Sequence[EngineProfile], prefix_priced: bool
) -> Iterator[Caveat]:
    yield from absent_features(simulation)
    if any(profile.dimensions.image_embedding_values for profile in profiles):
        yield NO_VISION
    yield MODEL_ESTIMATE
    yield from (_origin(profile) for profile in {p.name: p for p in profiles}.values())
    yield PREFIX_PRICED_ON_AVERAGE if prefix_priced else CACHED_PREFIX_FREE
    yield from feature_caveats(simulation)
    yield DATA_SOURCE


def _origin(profile: EngineProfile) -> Caveat:
    """Where a profile's figures come from, in one sentence."""
    source = profile.provenance
    counts: dict[str, int] = {}
    for operations in source["operations"].values():
        for kind, number in operations.items():
            counts[kind] = counts.get(kind, 0) + number
    shares = ", ".join(f"{number} {kind}" for kind, number in sorted(counts.items()))
    stand_in = f"; stands in: {source['stand_in']}" if source.get("stand_in") else ""
    return Caveat(
        "profile-origin",
        f"Profile {profile.name}: {source['tool']} {source['tool_version']}, kernel data of "
        f"{source['kernel_data']}, model {source['source_model']}, operations: {shares}"
        f"{stand_in}.",
        "The fewer operations are silicon, the less a small effect means.",
    )

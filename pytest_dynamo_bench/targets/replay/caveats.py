"""What a simulated number is not: known simplifications, and what each does to a claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.engines import EngineProfile
from pytest_dynamo_bench.features import Caveat, Simulation, absent_features, feature_caveats

MODEL_ESTIMATE = Caveat(
    "model-estimate",
    "Step times are estimates from kernel measurements; they were not compared with this "
    "deployment on hardware.",
    "Differences between configurations are more trustworthy than absolute times.",
)
PREFIX_PRICED_ON_AVERAGE = Caveat(
    "prefix-priced-on-average",
    "That new tokens of a prompt attend to what comes before them is priced by its mean cost in "
    "this traffic, the same for every token of every prompt; Dynamo's own table leaves it out.",
    "Tokens early in a prompt, which a prefix hit saves, are a little too expensive: flatters "
    "prefix reuse, and so KV routing. How much prefill time each run was charged, beside what the "
    "source of the profile says, is in the run's record.",
)
CACHED_PREFIX_FREE = Caveat(
    "cached-prefix-free",
    "A prefill step costs what its new tokens cost; that these attend to a cached prefix, or "
    "to earlier chunks of a long prompt, is not priced.",
    "Flatters prefix reuse, and so KV routing, and makes long prompts too cheap on all sides.",
)
NO_VISION = Caveat(
    "vision-encoder-absent",
    "The model's vision encoder takes no time and its embeddings have no cache.",
    "Nothing can be claimed of images, embedding caches or frontend decoding here.",
)
DATA_SOURCE = Caveat(
    "data-source",
    "Kernel measurements are from NVIDIA's aiconfigurator (Apache-2.0), the replay is "
    "ai-dynamo's (Apache-2.0).",
    "Favours no side.",
)


def caveats(
    benchmark: Benchmark,
    configuration: Configuration,
    profiles: Sequence[EngineProfile],
    *,
    prefix_priced: bool,
    ranks_as_workers: bool,
) -> tuple[Caveat, ...]:
    """Those that apply to a configuration, the most important first."""
    simulation = Simulation(benchmark, configuration, ranks_as_workers)
    return tuple(_applying(simulation, profiles, prefix_priced))


def _applying(
    simulation: Simulation, profiles: Sequence[EngineProfile], prefix_priced: bool
) -> Iterator[Caveat]:
    yield from absent_features(simulation.configuration)
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
        "The less of it is silicon, the less a small effect means.",
    )

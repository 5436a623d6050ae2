"""What a simulated number is not: known simplifications, and what each does to a claim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_dynamo_bench.benchmark import Benchmark, Configuration
from pytest_dynamo_bench.engines import EngineProfile
from pytest_dynamo_bench.traffic import Traffic, arrivals


@dataclass(frozen=True)
class Caveat:
    """A simplification of the simulation.

    Attributes:
        id: short and stable, for reports and for tests.
        text: what is simplified.
        effect: what that does to a claim: which side it favours, or that it favours none.
    """

    id: str
    text: str
    effect: str

    def __str__(self) -> str:
        return f"{self.text} {self.effect}"


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
SHARED_BLOCKS_ONCE = Caveat(
    "shared-blocks-once",
    "A decode step is priced by the distinct KV blocks in use, so that a prefix shared by "
    "several running requests is read once.",
    "Makes decoding a little too cheap where reuse is high, which flatters KV routing.",
)
RANKS_IN_STEP = Caveat(
    "ranks-in-step",
    "Ranks of attention data parallelism have a KV cache and a batch of their own, but step "
    "together.",
    "Every rank waits for the slowest, as on hardware; what is routed to a rank is not balanced "
    "as an engine would.",
)
RANKS_AS_WORKERS = Caveat(
    "ranks-as-workers",
    "Dynamo's replay has no attention data parallelism in a split, so each rank is simulated as a "
    "worker of its own, in all configurations of this comparison.",
    "Ranks do not wait for each other, and the router sees each: attention data parallelism is a "
    "little too fast wherever it is used.",
)
TRANSFER_FREE = Caveat(
    "kv-transfer-free",
    "The split moves its KV cache in no time, because the hardware's kv_transfer_gb_per_second "
    "is not given.",
    "Flatters the prefill/decode split.",
)
TRANSFER_UNSHARED = Caveat(
    "kv-transfer-unshared",
    "Each KV transfer has the full bandwidth to itself, and starts when the whole prompt is "
    "processed.",
    "Flatters the split under load; on hardware layers are sent as they are ready, which "
    "disadvantages it here.",
)
PREFILL_ONE_AT_A_TIME = Caveat(
    "prefill-one-at-a-time",
    "Dynamo's replay would hand a finished prompt over to decoding only when its prefill worker "
    "has no other in work; so prefill workers of a split are simulated with one prompt at a time, "
    "in order of arrival, whatever max_num_seqs says.",
    "Several short prompts do not share a step, which disadvantages the split a little.",
)
DRAFTS_AS_MTP = Caveat(
    "drafts-as-mtp",
    "Speculative decoding is multi-token prediction with given acceptance rates; a draft head "
    "of its own costs nothing, and a prefix hit loses its last block.",
    "The gain follows from the acceptance rates that were put in, and is no measurement of them.",
)
NO_OFFLOAD = Caveat(
    "kv-offload-absent",
    "The published build of Dynamo's replay has KV offload compiled out "
    "(dynamo._core.MOCKER_KVBM_OFFLOAD_ENABLED is False): its options are accepted and do nothing.",
    "Nothing can be claimed of KV offload here; this configuration is simulated without it.",
)
WIDEEP_BY_TABLE = Caveat(
    "wideep-by-table",
    "Expert parallelism is in the step times only, through the number of GPUs that experts are "
    "spread over; the engine's wide-EP kernels and expert load balancing are not modelled.",
    "Experts count as evenly loaded on both sides; a change of kernels alone shows no effect.",
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
SIMULATED_TIES = Caveat(
    "seeded-ties",
    "Dynamo's KV router breaks ties between equally good workers at random; the simulation "
    "seeds it, so that a run can be repeated.",
    "Another seed moves the results slightly; see what several seeds give before relying on a "
    "small effect.",
)


def of_arrivals(whole: Traffic, sent: Traffic) -> tuple[Caveat, ...]:
    """What the times of a traffic mean for what is measured with it, on any target.

    Args:
        whole: the published traffic.
        sent: what of it a target sends.
    """
    recorded, found = arrivals(whole), arrivals(sent)
    if found is not None and found.in_bursts:
        return (
            Caveat(
                "arrivals-in-bursts",
                f"Requests are sent at the times of the recording, in its steps: {found}.",
                "Latencies are those of bursts that may never have been: short prompts wait for "
                "long ones, most where a router brings many to one worker. spread_arrivals=True "
                "of the traffic's source shows how much of a claim depends on that.",
            ),
        )
    if recorded is not None and recorded.in_bursts and found is not None and sent.share < 1:
        return (
            Caveat(
                "bursts-cut-apart",
                f"The recording has its requests in steps: {recorded}. Of the cut "
                f"{found.mean_at_once:.1f} start at once (at most {found.most_at_once}).",
                "Queues behind such bursts, as where the whole recording is sent, are not in "
                "these latencies.",
            ),
        )
    return ()


def caveats(
    benchmark: Benchmark,
    configuration: Configuration,
    profiles: Sequence[EngineProfile],
    *,
    prefix_priced: bool,
    ranks_as_workers: bool,
) -> tuple[Caveat, ...]:
    """Those that apply to a configuration, the most important first."""
    prefix = PREFIX_PRICED_ON_AVERAGE if prefix_priced else CACHED_PREFIX_FREE
    ranks = RANKS_AS_WORKERS if ranks_as_workers else RANKS_IN_STEP
    return tuple(_applying(benchmark, configuration, profiles, prefix, ranks))


def _applying(
    benchmark: Benchmark,
    configuration: Configuration,
    profiles: Sequence[EngineProfile],
    prefix: Caveat,
    ranks: Caveat,
) -> Iterator[Caveat]:
    workers = configuration.workers
    if any(worker.kv_offload for worker in workers):
        yield NO_OFFLOAD
    if any(profile.dimensions.image_embedding_values for profile in profiles):
        yield NO_VISION
    yield MODEL_ESTIMATE
    yield from (_origin(profile) for profile in {p.name: p for p in profiles}.values())
    yield prefix
    if any(worker.prefix_caching and worker.mode != "prefill" for worker in workers):
        yield SHARED_BLOCKS_ONCE
    if any(worker.attention_dp > 1 for worker in workers):
        yield ranks
    if configuration.disaggregated:
        known = benchmark.hardware.kv_transfer_gb_per_second is not None
        yield TRANSFER_UNSHARED if known else TRANSFER_FREE
        yield PREFILL_ONE_AT_A_TIME
    if any(worker.speculative for worker in workers):
        yield DRAFTS_AS_MTP
    if any((worker.moe_ep or 1) > 1 for worker in workers):
        yield WIDEEP_BY_TABLE
    if configuration.router == "kv":
        yield SIMULATED_TIES
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

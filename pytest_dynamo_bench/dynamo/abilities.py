"""What a Dynamo can do: asked of it once, so that nothing else depends on a release's number."""

from __future__ import annotations

from functools import cache

import msgspec

from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.dynamo.releases import TRIED
from pytest_dynamo_bench.errors import TargetError


class Abilities(msgspec.Struct, frozen=True):
    """What differs between releases, beside the options of their programs.

    Attributes:
        hands_over_at_once: in a split, replay hands a prompt over as soon as it is processed.
            Where it does not, it waits until the prefill worker has no other prompt in work, so
            that a worker that is never idle hands over nothing: a defect that was mended in 1.5.
        attention_dp_in_a_split: replay has attention data parallelism in a split.
        trtllm_in_a_split: replay has TensorRT-LLM's scheduler in a split.
        shared_blocks_once: replay prices a decode step by the distinct KV blocks in use, so that a
            prefix of several running requests is read once; otherwise each of them reads it.
        host_offload: the engines whose mocker and replay have a host tier for KV blocks.
        host_offload_with_drafts: they have it with speculative decoding as well.
        replay_command: replay is a program too, ``python -m dynamo.replay``.
    """

    hands_over_at_once: bool
    attention_dp_in_a_split: bool
    trtllm_in_a_split: bool
    shared_blocks_once: bool
    host_offload: tuple[str, ...]
    host_offload_with_drafts: bool
    replay_command: bool


@cache
def abilities(dynamo: DynamoEnvironment) -> Abilities:
    """What a Dynamo can do, by having it do that: tiny simulations, half a second.

    Raises:
        TargetError: it cannot be found out; most likely, replay has changed.
    """
    try:
        return msgspec.json.decode(dynamo.ask("abilities.py"), type=Abilities)
    except msgspec.DecodeError as error:
        raise TargetError(f"what {dynamo} can do cannot be found out: {error}") from None


def untried(*dynamos: DynamoEnvironment) -> tuple[str, ...]:
    """A sentence for each release that nobody has tried with this package."""
    versions = dict.fromkeys(each.version for each in dynamos if each.version not in TRIED)
    return tuple(
        f"Dynamo {version} has not been tried with this package (tried: {', '.join(TRIED)}); what "
        "it can do was asked of it"
        for version in versions
    )

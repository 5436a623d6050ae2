"""What Dynamo calls the blocks of the prompts that were sent."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pytest_dynamo_bench.dynamo.environment import DynamoEnvironment
from pytest_dynamo_bench.targets.local.engine_events import chain
from pytest_dynamo_bench.traffic import TrafficRequest
from pytest_dynamo_bench.traffic.prompts import block_token_ids


def block_hashes(
    dynamo: DynamoEnvironment,
    requests: Iterable[TrafficRequest],
    block_tokens: int,
    size: int,
) -> dict[str, list[int]]:
    """Request id to its prompt's full blocks, hashed by Dynamo's own function, as a chain.

    Args:
        dynamo: whose function it is.
        block_tokens: tokens of a block of the traffic.
        size: tokens of a block of the engines.

    Raises:
        TargetError: the function cannot be asked.
    """
    # A block of the engines lies in blocks of the traffic, from some token on; equal ones are
    # hashed once.
    places: dict[tuple[tuple[int, ...], int], int] = {}
    prompts: dict[str, list[int]] = {}
    for request in requests:
        prompt = prompts[request.request_id] = []
        for start in range(0, request.input_tokens // size * size, size):
            first, last = start // block_tokens, (start + size - 1) // block_tokens
            place = (tuple(request.hash_ids[first : last + 1]), start % block_tokens)
            prompt.append(places.setdefault(place, len(places)))
    tokens_of: dict[int, np.ndarray] = {}
    tokens = np.empty((len(places), size), dtype=np.uint32)
    for row, (ids, start) in zip(tokens, places, strict=True):
        for block_id in ids:
            if block_id not in tokens_of:
                tokens_of[block_id] = block_token_ids(block_id, block_tokens)
        row[:] = np.concatenate([tokens_of[i] for i in ids])[start : start + size]
    answer = dynamo.ask("block_hashes.py", tokens.tobytes(), str(size)) if places else b""
    hashes = np.frombuffer(answer, dtype=np.uint64).tolist()
    return {name: chain(hashes[place] for place in prompt) for name, prompt in prompts.items()}

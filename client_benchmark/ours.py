"""This client's side of the comparison: send one workload, write what was recorded.

python client_benchmark/ours.py URL OUT.json --requests N (--concurrency N | --rate R)
"""

from __future__ import annotations

import argparse
import asyncio
from array import array
from pathlib import Path

import msgspec

from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.traffic import Concurrency, FixedSchedule, Traffic, TrafficRequest

BLOCK_TOKENS = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("out", type=Path)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--concurrency", type=int)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--input-tokens", type=int, default=100)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    blocks = -(-options.input_tokens // BLOCK_TOKENS)
    requests = [
        TrafficRequest(
            str(i), str(i), 0, 1000 * i / options.rate if options.rate else 0.0, 0.0,
            options.input_tokens, options.output_tokens,
            tuple(range(i * blocks, (i + 1) * blocks)),
        )
        for i in range(options.requests)
    ]  # fmt: skip
    schedule = FixedSchedule() if options.rate else Concurrency(options.concurrency)
    generator = LoadGenerator(
        Server(f"{options.url}/v1/chat/completions"), "m", processes=options.processes
    )
    traffic = Traffic(requests, schedule, BLOCK_TOKENS, ())
    asyncio.run(generator.send(traffic, lambda whole: None))
    found = {
        "requests": [
            {
                "due_ms": r.scheduled_ms,
                "sent_ms": r.sent_ms,
                "chunk_ms": array("d", r.chunk_ms).tobytes(),
                "error": r.error,
            }
            for r in generator.records()
        ],
        "health": generator.health(),
    }
    # The plugin writes Parquet, whose library takes long to import; this costs about as little,
    # with times as doubles in base64.
    options.out.write_bytes(msgspec.json.encode(found))


if __name__ == "__main__":
    main()

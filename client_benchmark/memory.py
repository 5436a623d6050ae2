"""Peak memory of the load generator with the whole conversation trace through it.

    python client_benchmark/memory.py

All 12,031 requests with their full prompts and outputs, as fast as they go at a concurrency of
64, so that as much as ever is in flight; with all that a run records.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import tempfile
import time
from pathlib import Path

from compare import Tree, build, reference_server
from tools import Workload

from pytest_dynamo_bench.load.connection import Server
from pytest_dynamo_bench.load.generator import LoadGenerator
from pytest_dynamo_bench.traffic import Concurrency, MooncakeTrace


def main() -> None:
    traffic = MooncakeTrace("conversation").load()
    traffic = dataclasses.replace(traffic, schedule=Concurrency(64))
    workload = Workload("trace", len(traffic.requests), 64, ttft_ms=0, itl_ms=0, in_step=False)
    with tempfile.TemporaryDirectory(prefix="client-benchmark-") as directory:
        program = build(Path(directory))
        with reference_server(program, workload) as server:
            tree = Tree(os.getpid(), leave_out=server.pid)
            began = time.monotonic()
            generator = LoadGenerator(Server(f"{server.url}/v1/chat/completions"), "m")
            try:
                asyncio.run(generator.send(traffic, lambda whole: None))
            finally:
                tree.end()
    records = generator.records()
    failed = [record.error for record in records if record.error]
    print(
        f"{len(records):,} requests, {sum(len(r.chunk_ms) for r in records):,} chunks, "
        f"{len(failed)} failed {failed[:1]}, {time.monotonic() - began:.0f} s"
    )
    print(f"peak memory of the caller and the load generator: {tree.peak_bytes / 1e6:.0f} MB")
    print(f"late bodies: {generator.measured.late_bodies}")


if __name__ == "__main__":
    main()

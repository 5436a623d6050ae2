"""Make engine profiles from aiconfigurator's kernel measurements.

    python -m pytest_dynamo_bench.engines.make                   # all shipped ones again
    python -m pytest_dynamo_bench.engines.make --only Kimi       # those whose name contains it
    python -m pytest_dynamo_bench.engines.make --model Qwen/Qwen3-32B --gpu H100 --engine vllm \
        --tp 4 --output my-profiles                              # a new one

Needs ``aiconfigurator-core`` in a separate environment: it holds 114 MB of measurements,
and nothing that uses a profile needs it. Numpy is its only other requirement here, so that
this package can be on ``PYTHONPATH`` without its dependencies.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pytest_dynamo_bench.arrays import FloatArray
from pytest_dynamo_bench.engines.capacity import DEFAULT_MEMORY_FRACTION
from pytest_dynamo_bench.engines.catalog import SHIPPED, SYSTEMS, ProfileSpec
from pytest_dynamo_bench.engines.profiles import ProfileTables, shipped_directory
from pytest_dynamo_bench.errors import DynamoBenchError, TargetError

TESTED_VERSION = "0.12.0"
# Prompts of the shipped traces reach 126,195 tokens; beyond the last point Dynamo continues
# the last cell's line, which underestimates a quadratic.
PREFILL_TOKENS = np.unique(np.round(np.geomspace(1, 262_144, 61)))
PREFIX_TOKENS = np.array([0, 2048, 8192, 16384, 32768, 65536, 131072], dtype=np.float64)
# From one request of a few tokens to the largest cache of the shipped deployments.
ACTIVE_KV_TOKENS = np.concatenate([[0.0], np.geomspace(64, 4_000_000, 47)])
CONTEXT_TOKENS = np.geomspace(64, 262_144, 15)
# Beyond this the source extrapolates; no deployment here runs larger batches.
LARGEST_BATCH = 1024
REFERENCE_STEP_TOKENS = 8192


@dataclass(frozen=True)
class Source:
    """What a profile is computed from; both functions answer in milliseconds.

    Attributes:
        prefill_ms: (new tokens, tokens before them) for one prompt.
        decode_ms: (requests, context of each in tokens) for one step.
        kv_capacity_tokens: the source's own estimate, per GPU rank, at the default memory
            fraction and :data:`REFERENCE_STEP_TOKENS` tokens a step.
        per_operation: how each operation's figure came about, counted, for a prefill of
            4,096 tokens and a decode step behind it.
    """

    prefill_ms: Callable[[int, int], float]
    decode_ms: Callable[[int, int], float]
    per_operation: dict[str, dict[str, int]]
    version: str
    data_version: str
    kv_capacity_tokens: int


def tables_from(source: Source) -> tuple[ProfileTables, dict[str, Any]]:
    """Sample a source, and make what must not fall not fall.

    A longer prompt, a longer prefix, a larger batch and a longer context cannot take less
    time. Where the source says so nevertheless (interpolation between its measurements, or
    another kernel), the nearest rising figures are taken, along each axis in turn.

    Returns:
        The tables, and how many points were changed by how much.
    """
    raw = np.array(
        [
            [source.prefill_ms(int(new), int(prefix)) for prefix in PREFIX_TOKENS]
            for new in PREFILL_TOKENS
        ]
    )
    prefill = rising(raw)
    batches = batch_axis()
    raw_steps = np.array(
        [
            [source.decode_ms(int(batch), int(context)) for context in CONTEXT_TOKENS]
            for batch in batches
        ]
    )
    steps = rising(raw_steps)
    decode = np.empty((len(ACTIVE_KV_TOKENS), len(CONTEXT_TOKENS)))
    for column, context in enumerate(CONTEXT_TOKENS):
        batch = np.clip(ACTIVE_KV_TOKENS / context, 1, LARGEST_BATCH)
        decode[:, column] = np.interp(batch, batches, steps[:, column])
    tables = ProfileTables(
        prefill_isl=PREFILL_TOKENS.astype(np.float64),
        prefill_ttft_ms=prefill[:, 0].copy(),
        decode_active_kv_tokens=ACTIVE_KV_TOKENS,
        decode_context_length=CONTEXT_TOKENS,
        decode_itl=decode,
        prefix_tokens=PREFIX_TOKENS,
        prefill_ms_by_prefix=prefill,
    )
    return tables, {"prefill": _changed(raw, prefill), "decode": _changed(raw_steps, steps)}


def batch_axis() -> FloatArray:
    """Batches at which a decode step is sampled: every one up to 16, then eight an octave."""
    coarse = np.round(np.geomspace(16, LARGEST_BATCH, 49))
    return np.unique(np.concatenate([np.arange(1.0, 17.0), coarse]))


def rising(values: FloatArray) -> FloatArray:
    """The nearest array that falls along neither axis.

    Isotonic regression along one axis, then along the other. Isotonic regression preserves
    the order of its inputs (Robertson, Wright and Dykstra, Order Restricted Statistical
    Inference, 1988), so the second pass keeps what the first has reached.
    """
    along_first = np.apply_along_axis(_isotonic, 0, values)
    return np.asarray(np.apply_along_axis(_isotonic, 1, along_first))


def _isotonic(values: FloatArray) -> FloatArray:
    """Least squares under the condition not to fall: pool adjacent violators."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            count = counts[-2] + counts[-1]
            mean = (means[-2] * counts[-2] + means[-1] * counts[-1]) / count
            means[-2:], counts[-2:] = [mean], [count]
    return np.repeat(means, counts)


def _changed(raw: FloatArray, monotone: FloatArray) -> dict[str, float]:
    change = np.abs(monotone / raw - 1)
    return {
        "points": int(raw.size),
        "changed": int((change > 1e-9).sum()),
        "median_change_percent": round(100 * float(np.median(change)), 2),
        "largest_change_percent": round(100 * float(change.max()), 1),
    }


def compile_source(spec: ProfileSpec) -> Source:
    """Ask aiconfigurator for a deployment.

    Raises:
        TargetError: it isn't installed, or has no data for the deployment.
    """
    try:
        perf_database = importlib.import_module("aiconfigurator_core.sdk.perf_database")
        handle = importlib.import_module("aiconfigurator_core.sdk.engine").EngineHandle
    except ImportError:
        raise TargetError(
            "making profiles needs aiconfigurator-core: install it in a separate environment (pip "
            f"install aiconfigurator-core=={TESTED_VERSION}) and run this command there"
        ) from None
    if spec.gpu not in SYSTEMS:
        raise TargetError(f"unknown GPU {spec.gpu!r}; known: {', '.join(sorted(SYSTEMS))}")
    system = SYSTEMS[spec.gpu]
    model = spec.source_model or spec.model
    parallelism = {
        "tp_size": spec.tp,
        "attention_dp_size": spec.attention_dp,
        "moe_ep_size": spec.moe_ep,
        "moe_tp_size": spec.moe_tp,
        "nextn": spec.draft_tokens,
    }
    try:
        engine = handle.compile(model, system, spec.engine, **parallelism, **spec.quantization)
        context, generation = engine.run_static_per_op(batch_size=1, isl=4096, osl=2)
        data_version = perf_database.resolve_query_version(system, spec.engine, "current")
        memory = importlib.import_module("aiconfigurator_core.sdk.memory").estimate_kv_cache(
            model, system, spec.engine, "current",
            max_num_tokens=REFERENCE_STEP_TOKENS,
            max_batch_size=256,
            memory_fraction_kind="of_free" if spec.engine == "trtllm" else "of_total",
            memory_fraction_value=DEFAULT_MEMORY_FRACTION,
            **parallelism, **spec.quantization,
        )  # fmt: skip
    except Exception as error:
        raise TargetError(f"aiconfigurator cannot model {spec.name}: {error}") from error
    return Source(
        prefill_ms=lambda new, prefix: engine.predict_prefill_latency(1, new + prefix, prefix),
        decode_ms=lambda batch, context_tokens: engine.predict_decode_latency(
            batch, context_tokens
        ),
        per_operation={
            "prefill": dict(sorted(Counter(row[3] for row in context).items())),
            "decode": dict(sorted(Counter(row[3] for row in generation).items())),
        },
        version=version("aiconfigurator-core"),
        data_version=str(data_version),
        kv_capacity_tokens=int(memory["total_kv_size_tokens"]),
    )


def interpolation_error(
    tables: ProfileTables, source: Source, largest_batch: int = 256
) -> dict[str, float]:
    """How far Dynamo's reading of the tables is from the source, between their points.

    Returns:
        Median and largest relative error in percent over 200 random prefills and decode
        steps of up to ``largest_batch`` requests and 131,072 tokens of context.
    """
    random = np.random.default_rng(0)
    new = np.round(np.exp(random.uniform(np.log(16), np.log(131_072), 200))).astype(np.float64)
    exact = np.array([source.prefill_ms(int(tokens), 0) for tokens in new])
    prefill = np.abs(tables.prefill_ms(new) / exact - 1)
    batch = np.round(np.exp(random.uniform(0, np.log(largest_batch), 200)))
    context = np.round(np.exp(random.uniform(np.log(256), np.log(131_072), 200)))
    kept = batch * context < ACTIVE_KV_TOKENS[-1]
    batch, context = batch[kept], context[kept]
    exact = np.array(
        [
            source.decode_ms(int(requests), int(tokens))
            for requests, tokens in zip(batch, context, strict=True)
        ]
    )
    decode = np.abs(tables.decode_ms(batch * context, context) / exact - 1)
    return {
        "prefill_median_percent": round(100 * float(np.median(prefill)), 2),
        "prefill_largest_percent": round(100 * float(prefill.max()), 2),
        "decode_median_percent": round(100 * float(np.median(decode)), 2),
        "decode_largest_percent": round(100 * float(decode.max()), 2),
    }


def make(spec: ProfileSpec, directory: Path, command: str) -> Path:
    """Make one profile and its provenance.

    Raises:
        TargetError: aiconfigurator isn't installed or cannot model the deployment.
    """
    source = compile_source(spec)
    tables, changed = tables_from(source)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{spec.name}.npz"
    tables.write(path)
    provenance = {
        **asdict(spec),
        "quantization": dict(spec.quantization),
        "source_model": spec.source_model or spec.model,
        "system": SYSTEMS[spec.gpu],
        "moe_tp": spec.moe_tp,
        "tool": "aiconfigurator-core",
        "tool_version": source.version,
        "tool_license": "Apache-2.0",
        "kernel_data": f"{spec.engine} {source.data_version}",
        "operations": source.per_operation,
        "made_monotone": changed,
        "kv_capacity_estimate": {
            "tokens": source.kv_capacity_tokens,
            "memory_fraction": DEFAULT_MEMORY_FRACTION,
            "max_num_batched_tokens": REFERENCE_STEP_TOKENS,
        },
        "interpolation_error": interpolation_error(tables, source),
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    text = json.dumps(provenance, indent=2) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pytest_dynamo_bench.engines.make", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", metavar="TEXT", help="make the shipped profiles whose name contains this"
    )
    parser.add_argument("--model", help="make a new profile for this model id, as in benchmarks")
    parser.add_argument("--gpu", choices=sorted(SYSTEMS))
    parser.add_argument("--engine", choices=("vllm", "sglang", "trtllm"), default="vllm")
    for name in ("tp", "attention-dp", "moe-ep"):
        parser.add_argument(f"--{name}", type=int, default=1, metavar="GPUS")
    parser.add_argument("--draft-tokens", type=int, default=0)
    parser.add_argument("--source-model", default="", help="aiconfigurator's id of the model")
    parser.add_argument(
        "--quantization", action="append", default=[], metavar="MODE=NAME",
        help="such as kvcache_quant_mode=fp8; can be repeated",
    )  # fmt: skip
    parser.add_argument("--stand-in", default="", help="note on what the profile substitutes")
    parser.add_argument("--output", type=Path, default=None, metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    if options.model:
        if not options.gpu:
            parser.error("--model needs --gpu")
        modes = dict(mode.partition("=")[::2] for mode in options.quantization)
        specs: Sequence[ProfileSpec] = [
            ProfileSpec(
                options.model, options.gpu, options.engine, options.tp, options.attention_dp,
                options.moe_ep, options.draft_tokens, options.source_model, modes,
                options.stand_in,
            )
        ]  # fmt: skip
    else:
        specs = [spec for spec in SHIPPED if (options.only or "") in spec.name]
        if not specs:
            parser.error(f"--only: no shipped profile has {options.only!r} in its name")
    words = ["python -m pytest_dynamo_bench.engines.make"]
    words += list(sys.argv[1:] if arguments is None else arguments)
    logging.disable(logging.WARNING)
    for spec in specs:
        try:
            path = make(spec, options.output or shipped_directory(), " ".join(words))
        except DynamoBenchError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 1
        print(f"{path.name}: {path.stat().st_size} bytes")  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Says what the Dynamo of this Python can do, by having it do that; a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamo.replay import run_trace_replay

# Nothing of the package can be imported here.
_beside = runpy.run_path(str(Path(__file__).with_name("engine_arguments.py")))
engine_arguments: Callable[[Mapping[str, Any]], Any] = _beside["engine_arguments"]
_TOKENS, _BLOCK, _GAP_MS = 6400, 64, 20.0
# A prompt takes 138 ms, so that the others have come when the first one is done.
_PROMPTS = 6
_ENGINES = ("vllm", "trtllm", "sglang")
_HOST_TIER = {"native_host_offload": {"num_host_blocks": 100}, "kv_cache_bytes_per_token": 1000}


def _request(session: int, at_ms: float, output_tokens: int, prefix: int) -> dict[str, Any]:
    """A request; those with the same prefix have the same prompt."""
    blocks = _TOKENS // _BLOCK
    return {"session_id": str(session), "timestamp": at_ms, "input_length": _TOKENS,
            "output_length": output_tokens,
            "hash_ids": list(range(prefix * blocks, (prefix + 1) * blocks))}  # fmt: skip


def _simulated(rows: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
    """What replay says of requests, in the order in which they came."""
    with tempfile.TemporaryDirectory() as directory:
        trace, report = Path(directory, "trace.jsonl"), Path(directory, "report.jsonl")
        trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
        replay: Any = run_trace_replay
        replay(
            trace_files=str(trace), trace_block_size=_BLOCK, report_jsonl_path=str(report),
            **arguments,
        )  # fmt: skip
        done = [json.loads(line) for line in report.read_text().splitlines()]
    return sorted(done, key=lambda row: row["arrival_time_ms"])


def _first_token_ms(prompts: int, **engine: Any) -> float:
    """When the first of several prompts has its first token, in a split of two workers."""
    given = {"block_size": _BLOCK, "num_gpu_blocks": 4000, "kv_transfer_bandwidth": 64.0,
             "kv_bytes_per_token": 1000, "engine_type": "vllm", **engine}  # fmt: skip
    first, *_ = _simulated(
        [_request(i, i * _GAP_MS, 2, prefix=i) for i in range(prompts)],
        prefill_engine_args=engine_arguments({**given, "worker_type": "prefill"}),
        decode_engine_args=engine_arguments({**given, "worker_type": "decode"}),
        num_prefill_workers=1, num_decode_workers=1,
    )  # fmt: skip
    return float(first["first_token_ms"] - first["arrival_time_ms"])


def _decoding_ms(*prefixes: int) -> float:
    """How long the last of several requests is decoded, all of them on one worker."""
    engine = {"block_size": _BLOCK, "num_gpu_blocks": 4000, "engine_type": "vllm"}
    *_, last = _simulated(
        [_request(i, i * 1000.0, 400, prefix) for i, prefix in enumerate(prefixes)],
        extra_engine_args=engine_arguments(engine), num_workers=1,
    )  # fmt: skip
    return float(last["last_token_ms"] - last["first_token_ms"])


def _can(**engine: Any) -> bool:
    try:
        _first_token_ms(1, **engine)
    except Exception:  # whatever it refuses, and however
        return False
    return True


def main() -> None:
    """Answer on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    # What Dynamo prints is no answer.
    os.dup2(2, 1)
    alone_ms, among_others_ms = (_first_token_ms(prompts) for prompts in (1, _PROMPTS))
    found = {
        "hands_over_at_once": among_others_ms < 1.5 * alone_ms,
        "attention_dp_in_a_split": _can(dp_size=2),
        "trtllm_in_a_split": _can(engine_type="trtllm"),
        "shared_blocks_once": _decoding_ms(0, 0) < 0.99 * _decoding_ms(0, 1),
        "host_offload": [e for e in _ENGINES if _can(engine_type=e, **_HOST_TIER)],
        "host_offload_with_drafts": _can(**_HOST_TIER, aic_nextn=1, aic_nextn_accept_rates="0.5"),
        "replay_command": importlib.util.find_spec("dynamo.replay.__main__") is not None,
    }
    json.dump(found, answers)
    answers.flush()


if __name__ == "__main__":
    main()

"""How each load generator is run on a workload, and what it recorded, all in one form."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHUNKS = 64


@dataclass(frozen=True)
class Workload:
    """What is sent: a closed loop of ``concurrency``, or ``rate`` requests a second.

    Attributes:
        ttft_ms, itl_ms, in_step: how the server answers.
    """

    name: str
    requests: int
    concurrency: int | None = None
    rate: float | None = None
    ttft_ms: float = 50.0
    itl_ms: float = 10.0
    in_step: bool = True
    input_tokens: int = 100


@dataclass(frozen=True)
class Request:
    """A request as a tool recorded it; times in ms on any clock, None where it does not say.

    Attributes:
        sent_ms: when it was sent, for the order of requests.
        ttft_ms: time to first token.
        gaps_ms: between consecutive chunks.
        due_ms: when it should have been sent.
    """

    sent_ms: float
    ttft_ms: float
    gaps_ms: list[float] | None
    due_ms: float | None = None


@dataclass(frozen=True)
class Tool:
    """A load generator.

    Attributes:
        command: argv for (workload, server's URL, scratch directory); None if it cannot do it.
        read: what it recorded, from the scratch directory.
    """

    name: str
    command: Callable[[Workload, str, Path], list[str] | None]
    read: Callable[[Path], list[Request]]


def available(paths: Mapping[str, str | None], tokenizer: Path) -> list[Tool]:
    """The tools of which a program was given or found."""
    found = [Tool("this client", _ours, _read_ours)]
    if paths.get("aiperf"):
        found.append(
            Tool("AIPerf", lambda *a: _aiperf(paths["aiperf"], tokenizer, *a), _read_aiperf)
        )
    if paths.get("guidellm"):
        found.append(
            Tool("guidellm", lambda *a: _guidellm(paths["guidellm"], tokenizer, *a), _read_guidellm)
        )
    if paths.get("inference-perf"):
        found.append(
            Tool(
                "inference-perf",
                lambda *a: _inference_perf(paths["inference-perf"], tokenizer, *a),
                _read_inference_perf,
            )
        )
    if wrk := paths.get("wrk") or shutil.which("wrk"):
        found.append(Tool("wrk", lambda *a: _wrk(wrk, *a), lambda scratch: []))
    return found


def _ours(workload: Workload, url: str, scratch: Path) -> list[str]:
    load = (
        ["--rate", str(workload.rate)]
        if workload.rate
        else ["--concurrency", str(workload.concurrency)]
    )
    return [
        sys.executable, str(HERE / "ours.py"), url, str(scratch / "ours.json"),
        "--requests", str(workload.requests), *load,
        "--input-tokens", str(workload.input_tokens), "--output-tokens", str(CHUNKS),
    ]  # fmt: skip


def _read_ours(scratch: Path) -> list[Request]:
    found = json.loads((scratch / "ours.json").read_text())
    requests = []
    for r in found["requests"]:
        if r["error"]:
            raise ValueError(f"a request failed: {r['error']}")
        times = array("d", base64.b64decode(r["chunk_ms"]))
        requests.append(
            Request(
                r["sent_ms"],
                times[0] - r["sent_ms"],
                [b - a for a, b in itertools.pairwise(times)],
                r["due_ms"],
            )
        )
    return requests


def _aiperf(
    program: str | None, tokenizer: Path, workload: Workload, url: str, scratch: Path
) -> list[str]:
    load = (
        ["--request-rate", str(workload.rate), "--arrival-pattern", "constant"]
        if workload.rate
        else ["--concurrency", str(workload.concurrency)]
    )
    return [
        str(program), "profile", "-m", "m", "--tokenizer", str(tokenizer), "--url", url,
        "--endpoint-type", "chat", "--streaming", "--ui", "none", "--use-server-token-count",
        "--artifact-dir", str(scratch / "aiperf"), "--export-level", "records", *load,
        "--request-count", str(workload.requests), "--num-dataset-entries", "64",
        "--isl", str(workload.input_tokens), "--isl-stddev", "0",
        "--osl", str(CHUNKS), "--osl-stddev", "0", "--use-legacy-max-tokens",
    ]  # fmt: skip


def _read_aiperf(scratch: Path) -> list[Request]:
    requests = []
    with (scratch / "aiperf" / "profile_export.jsonl").open() as lines:
        for line in lines:
            record = json.loads(line)
            times, metrics = record["metadata"], record["metrics"]
            requests.append(
                Request(
                    times["request_start_ns"] / 1e6,
                    metrics["time_to_first_token"]["value"],
                    metrics["inter_chunk_latency"]["value"],
                    times["credit_issued_ns"] / 1e6,
                )
            )
    return requests


def _guidellm(
    program: str | None, tokenizer: Path, workload: Workload, url: str, scratch: Path
) -> list[str]:
    profile = (
        f"kind=constant,rate={workload.rate}"
        if workload.rate
        else f"kind=concurrent,streams={workload.concurrency}"
    )
    return [
        str(program), "run", "--backend", f"kind=openai_http,target={url},model=m",
        "--profile", profile, "--constraint", f"kind=max_requests,count={workload.requests}",
        "--data",
        f"kind=synthetic_text,prompt_tokens={workload.input_tokens},output_tokens={CHUNKS}",
        "--tokenizer", f"kind=huggingface_auto,model={tokenizer}",
        "--output", f"kind=json,path={scratch / 'guidellm.json'}", "--disable-console",
    ]  # fmt: skip


def _read_guidellm(scratch: Path) -> list[Request]:
    found = json.loads((scratch / "guidellm.json").read_text())
    requests = []
    for r in found["benchmarks"][0]["requests"]["successful"]:
        due = r["info"]["timings"]["targeted_start"]
        # Only the mean of the gaps of a request is recorded, so that there is no distribution.
        requests.append(
            Request(
                r["request_start_time"] * 1e3,
                r["time_to_first_token_ms"],
                None,
                due * 1e3 if due else None,
            )
        )
    return requests


def _inference_perf(
    program: str | None, tokenizer: Path, workload: Workload, url: str, scratch: Path
) -> list[str]:
    if workload.rate:
        seconds = int(workload.requests / workload.rate)
        load: dict[str, Any] = {
            "type": "constant",
            "stages": [{"rate": workload.rate, "duration": seconds}],
        }
    else:
        load = {
            "type": "concurrent",
            "stages": [
                {"num_requests": workload.requests, "concurrency_level": workload.concurrency}
            ],
        }
    config = {
        "load": load | {"num_workers": 1, "worker_max_concurrency": 512},
        "api": {"type": "completion", "streaming": True},
        "server": {"type": "vllm", "model_name": "m", "base_url": url, "ignore_eos": True},
        "tokenizer": {"pretrained_model_name_or_path": str(tokenizer)},
        "data": {
            "type": "shared_prefix",
            "shared_prefix": {
                "num_groups": 64, "num_prompts_per_group": 1, "system_prompt_len": 10,
                "question_len": workload.input_tokens - 10, "output_len": CHUNKS,
            },
        },
        "report": {
            "request_lifecycle": {"summary": True, "per_stage": False, "per_request": True}
        },
        "storage": {"local_storage": {"path": str(scratch / "inference-perf")}},
    }  # fmt: skip
    path = scratch / "inference-perf.json"
    path.write_text(json.dumps(config))
    return [str(program), "--config_file", str(path)]


def _read_inference_perf(scratch: Path) -> list[Request]:
    path = scratch / "inference-perf" / "per_request_lifecycle_metrics.json"
    requests = []
    for r in json.loads(path.read_text()):
        times = r["info"]["response_metrics"]["output_token_times"]
        sent = r["start_time"]
        requests.append(
            Request(
                sent * 1e3,
                (times[0] - sent) * 1e3,
                [(b - a) * 1e3 for a, b in itertools.pairwise(times)],
            )
        )
    return requests


def _wrk(program: str, workload: Workload, url: str, scratch: Path) -> list[str] | None:
    """Wrk has no number of requests; it runs for some seconds."""
    if workload.rate or not workload.concurrency:
        return None
    script = scratch / "post.lua"
    body = json.dumps({"model": "m", "stream": True, "max_tokens": CHUNKS,
                       "messages": [{"role": "user", "content": "w1 " * 100}]})  # fmt: skip
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = [[{body}]]\n"
    )
    return [
        program, "-t1", f"-c{workload.concurrency}", "-d10s", "-s", str(script),
        f"{url}/v1/chat/completions",
    ]  # fmt: skip

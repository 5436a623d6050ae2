"""Carries Dynamo's events over loopback, and writes down what the engines say of their caches.

A separate program. Without a broker Dynamo's ZMQ event plane binds a port on all
interfaces for every worker; with one, everything connects to the two loopback ports here.
Beside passing events on, it subscribes to all of them and writes those about KV caches and
forward passes to a file, one JSON line each, so that hits are counted by the engines
themselves and in the same way for every router mode.
"""

from __future__ import annotations

import argparse
import json
import threading
from pathlib import Path
from typing import Any

import msgspec
import zmq

# Dynamo frames an event as version (1 byte) and payload length (4 bytes), then MessagePack.
_HEADER_BYTES = 5


def _lines(topic: str, published_ms: int, payload: Any) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    if topic == "kv-events":
        for item in payload:
            if item["storage_tier"] != "device":
                continue
            data = item["event"]["data"]
            stored = data.get("stored") if isinstance(data, dict) else None
            if stored:
                blocks = [[block["block_hash"], block["tokens_hash"]] for block in stored["blocks"]]
                lines.append(
                    {
                        "kind": "stored",
                        "worker": str(item["worker_id"]),
                        "rank": item["event"].get("dp_rank", 0),
                        "parent": stored["parent_hash"],
                        "blocks": blocks,
                    }
                )
            elif isinstance(data, dict) and "removed" in data:
                count = len(data["removed"]["block_hashes"])
                lines.append({"kind": "removed", "worker": str(item["worker_id"]), "count": count})
    elif topic == "forward-pass-metrics":
        scheduled = payload["scheduled_requests"]
        if scheduled["sum_prefill_tokens"] or scheduled["num_decode_requests"]:
            lines.append(
                {
                    "kind": "pass",
                    "worker": str(payload["worker_id"]),
                    "rank": payload["dp_rank"],
                    "prefill": scheduled["sum_prefill_tokens"],
                    "decode": scheduled["num_decode_requests"],
                }
            )
    return [{"at_ms": published_ms, **line} for line in lines]


def _write_events(context: zmq.Context[zmq.Socket[bytes]], address: str, path: Path) -> None:
    subscriber = context.socket(zmq.SUB)
    subscriber.set_hwm(0)
    subscriber.connect(address)
    subscriber.subscribe(b"")
    with path.open("w", encoding="utf-8", buffering=1) as file:
        while True:
            frames = subscriber.recv_multipart()
            try:
                envelope = msgspec.msgpack.decode(frames[-1][_HEADER_BYTES:])
                payload = msgspec.msgpack.decode(envelope["payload"])
                lines = _lines(envelope["topic"], envelope["published_at"], payload)
                text = "".join(json.dumps(line) + "\n" for line in lines)
            except Exception as error:
                # Whatever it is: without this thread all that comes after would be lost unseen.
                line = {"kind": "unreadable", "reason": ascii(error)[:200]}
                text = json.dumps(line) + "\n"
            file.write(text)


def main() -> None:
    """Bind both ends on loopback and carry events until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--publishers-port", type=int, required=True)
    parser.add_argument("--subscribers-port", type=int, required=True)
    parser.add_argument("--events", type=Path, required=True)
    options = parser.parse_args()
    context = zmq.Context()
    publishers, subscribers = context.socket(zmq.XSUB), context.socket(zmq.XPUB)
    for socket, port in (
        (publishers, options.publishers_port),
        (subscribers, options.subscribers_port),
    ):
        socket.set_hwm(0)
        socket.bind(f"tcp://127.0.0.1:{port}")
    address = f"tcp://127.0.0.1:{options.subscribers_port}"
    writer = threading.Thread(
        target=_write_events, args=(context, address, options.events), daemon=True
    )
    writer.start()
    zmq.proxy(publishers, subscribers)


if __name__ == "__main__":
    main()

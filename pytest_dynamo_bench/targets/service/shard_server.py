"""The process that sends one shard: it is given a time to start, and asked how far it is.

``python -m pytest_dynamo_bench.targets.service.shard_server DIRECTORY --port PORT`` reads its order
from the files of a directory and speaks HTTP: ``GET clock``, ``GET status``, ``POST start``,
``GET results``, ``POST quit``, all below a path that only who gave the order knows. It ends by
itself when no request has come for a while, so that nothing is left when the run is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pytest_dynamo_bench.errors import DeploymentError
from pytest_dynamo_bench.records import RequestRecord
from pytest_dynamo_bench.targets.aftermath import Aftermath
from pytest_dynamo_bench.targets.base import Unwatched
from pytest_dynamo_bench.targets.service import measure
from pytest_dynamo_bench.targets.service.probe import Service, probe, wait_for_models
from pytest_dynamo_bench.targets.service.shards import pack_brief, pack_result, unpack_order

_INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
_SILENCE_SECONDS = 300.0
_TICK_SECONDS = 0.05


class _Shard:
    """What the two sides of the process share: the one that sends, the one that answers."""

    def __init__(self, directory: Path, index: int) -> None:
        data = b"".join(path.read_bytes() for path in _parts(directory, index))
        self.service, self.traffic, self.settings = unpack_order(data)
        self.index = index
        self.token: str = self.settings["token"]
        self.lock = threading.Lock()
        self.stage = "preparing"
        self.error = ""
        self.done = self.failed = 0
        self.recent: Sequence[RequestRecord] = ()
        self.start_unix: float | None = None
        self.results: bytes | None = None
        self.quit = threading.Event()
        self.heard = time.monotonic()

    def status(self) -> dict[str, Any]:
        with self.lock:
            return {
                "shard": self.index, "stage": self.stage, "done": self.done,
                "failed": self.failed, "total": len(self.traffic.requests), "error": self.error,
                "recent": [pack_brief(record) for record in self.recent],
            }  # fmt: skip

    @property
    def abandoned(self) -> bool:
        limit = float(self.settings.get("silence_seconds", _SILENCE_SECONDS))
        return self.quit.is_set() or time.monotonic() - self.heard > limit


class _Notes(Unwatched):
    """Keeps what a display would show until the other side asks for it."""

    def __init__(self, shard: _Shard) -> None:
        self._shard = shard

    def requests(self, done: int, failed: int, total: int) -> None:
        with self._shard.lock:
            self._shard.done, self._shard.failed = done, failed

    def latency(self, records: Sequence[RequestRecord]) -> None:
        # Packed when it is asked for: requests end more often than that, beside what measures them.
        with self._shard.lock:
            self._shard.recent = records


def _parts(directory: Path, index: int) -> list[Path]:
    found = sorted(directory.glob(f"order-{index}-*"))
    if not found:
        raise SystemExit(f"{directory}: there is no job for shard {index}")
    return found


def _handler(shard: _Shard) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            now = time.time()
            match self._what():
                case "clock":
                    self._answer({"unix": now})
                case "status":
                    self._answer(shard.status())
                case "results" if shard.results is not None:
                    self._send(200, "application/octet-stream", shard.results)
                case _:
                    self._send(404, "text/plain", b"not here")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            match self._what():
                case "start":
                    shard.start_unix = float(json.loads(body)["unix"])
                    self._answer({})
                case "quit":
                    self._answer({})
                    shard.quit.set()
                case _:
                    self._send(404, "text/plain", b"not here")

        def _what(self) -> str:
            _, token, what = [*self.path.split("/"), "", ""][:3]
            if token != shard.token:
                return ""
            shard.heard = time.monotonic()
            return what

        def _answer(self, content: dict[str, Any]) -> None:
            self._send(200, "application/json", json.dumps(content).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the log is for what goes wrong."""

    return Handler


async def _send(shard: _Shard, directory: Path) -> None:
    after = Aftermath(directory)

    async def until_start() -> None:
        shard.stage = "waiting"
        while shard.start_unix is None:
            await asyncio.sleep(_TICK_SECONDS)
            if shard.abandoned:
                raise TimeoutError("the plugin gave no start time")
        while (remaining := shard.start_unix - time.time()) > 0:
            await asyncio.sleep(min(remaining, _TICK_SECONDS) if remaining > 0.002 else 0)
        shard.stage = "measuring"

    if shard.settings.get("ask"):
        shard.service = await _ask(shard)
    warm = int(shard.settings.get("warm_up_requests", 0))
    if warm:
        await measure.warm_up(shard.service, shard.traffic.block_tokens, warm)
    sending = asyncio.ensure_future(
        measure.send(
            shard.service,
            shard.traffic,
            _Notes(shard),
            request_timeout_seconds=float(shard.settings["request_timeout_seconds"]),
            prepared=until_start,
            after=after,
        )
    )
    while not sending.done():
        await asyncio.wait({sending}, timeout=1)
        if shard.abandoned:
            sending.cancel()
            raise TimeoutError("the plugin stopped polling")
    sent = sending.result()
    started = datetime.fromisoformat(sent.started_at).timestamp()
    files = directory / "files"
    with after.step("asking the frontend what it saw"):
        seen, notes = await measure.observe(shard.service, files)
        after.note(notes)
        sent.observed.update(seen)
    texts = {path.name: path.read_text(encoding="utf-8") for path in files.glob("*")}
    shard.results = pack_result(
        sent.records, started, sent.observed, texts, problems=after.problems, notes=after.notes
    )
    shard.stage = "done"


async def _ask(shard: _Shard) -> Service:
    """Find out about the service from here, where it can be reached."""
    shard.stage = "asking"
    given = shard.service
    seconds = float(shard.settings["answer_seconds"])
    listed = await wait_for_models(given.address, seconds, wanted=given.model)
    if given.model not in listed:
        raise DeploymentError(
            f"{given.address.url} has no model {given.model!r}; it has {', '.join(listed)}"
        )
    return await probe(given.address, given.model)


def main() -> None:
    """Serve and send until asked to quit, or until no request has come for a while."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104, a pod's own address
    options = parser.parse_args()
    shard = _Shard(options.directory, int(os.environ.get(_INDEX_VARIABLE, "0")))
    server = ThreadingHTTPServer((options.host, options.port), _handler(shard))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(_send(shard, Path(directory)))
    except Exception as error:
        traceback.print_exc()
        shard.error, shard.stage = f"{type(error).__name__}: {error}", "failed"
    while not shard.abandoned:
        time.sleep(_TICK_SECONDS)
    server.shutdown()
    raise SystemExit(0 if shard.stage == "done" else 1)


if __name__ == "__main__":
    main()

"""A real Dynamo frontend with mockers, started the way a person would, for tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_dynamo_bench.engines import model_dimensions
from pytest_dynamo_bench.targets.local.commands import Ports, environment, inherited_environment
from pytest_dynamo_bench.targets.local.model_directory import write_model_directory


@contextmanager
def dynamo(
    directory: Path,
    *,
    router: str = "round-robin",
    workers: int = 2,
    port: int | None = None,
    model: Path | None = None,
) -> Iterator[tuple[str, str]]:
    """URL and model name of a deployment that is up; it is taken down at the end.

    The name is the model's directory: one that is given is made if there is none yet.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "discovery").mkdir(exist_ok=True)
    model = model or directory / "model"
    if not model.exists():
        write_model_directory(model, model_dimensions("Qwen/Qwen3-32B"))
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        sockets = one, two, three
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        free, *events = (sock.getsockname()[1] for sock in sockets)
    port = port or free
    variables = {**inherited_environment(), **environment(directory, Ports(port, *events))}
    # Where Dynamo keeps files of each model, for good.
    variables["HOME"] = str(directory)
    tap = Path(sys.modules[Ports.__module__].__file__ or "").with_name("event_tap.py")
    commands = [
        [str(tap), "--publishers-port", str(events[0]), "--subscribers-port", str(events[1]),
         "--events", str(directory / "events.jsonl")],
        ["-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port),
         "--router-mode", router, "--discovery-backend", "file"],
        ["-m", "dynamo.mocker", "--model-path", str(model), "--num-workers", str(workers),
         "--discovery-backend", "file", "--block-size", "64",
         "--num-gpu-blocks-override", "4000"],
    ]  # fmt: skip
    processes = []
    try:
        for number, command in enumerate(commands):
            with (directory / f"{number}.log").open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, *command], env=variables, cwd=directory, stdout=log,
                        stderr=log, start_new_session=True,
                    )
                )  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        _until_ready(url, str(model), workers, processes, directory)
        yield url, str(model)
    finally:
        for process in processes:
            os.killpg(process.pid, signal.SIGTERM)
        for process in processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _until_ready(
    url: str, model: str, workers: int, processes: list[subprocess.Popen], directory: Path
) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        dead = [p for p in processes if p.poll() is not None]
        if dead:
            break
        try:
            models = urllib.request.urlopen(f"{url}/v1/models", timeout=5).read().decode()
            health = urllib.request.urlopen(f"{url}/health", timeout=5).read().decode()
        except OSError:
            models = health = ""
        if model in models and health.count('"generate"') >= workers:
            return
        time.sleep(0.1)
    logs = "\n".join(log.read_text() for log in sorted(directory.glob("*.log")))
    raise RuntimeError(f"Dynamo did not come up:\n{logs}")

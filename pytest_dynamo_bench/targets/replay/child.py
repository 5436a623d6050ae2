"""Runs one of Dynamo's offline replays; started as a separate process by the replay target.

    python child.py JOB.json [PARENT]

Imports nothing but the standard library and Dynamo, so that it starts quickly and can be run
by hand. The job has the keyword arguments of ``dynamo.replay.run_trace_replay``, engine
arguments as objects, and the seed. PARENT is the process that it ends with.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import random
import runpy
import signal
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Relocations that hold the address of a function of another library, by architecture:
# (absolute, global data, jump slot) of the ELF supplements for x86-64 and AArch64.
_RELOCATIONS = {"x86_64": (1, 6, 7), "aarch64": (257, 1025, 1026)}
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 2, 5, 6, 7, 8, 23
_PROT_READ, _PROT_WRITE = 1, 2
_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however that ends.

    Args:
        parent: its process id. Asked for here, it would be another one's if the parent had ended
            while this process was starting.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(1)


def peak_memory_mb(process: str = "self") -> int | None:
    """Most memory that a process has used, MB; None where the system doesn't say.

    Not ``getrusage``, whose figure a process inherits from the one that started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text("ascii", errors="replace")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) // 1024 if found else None


def make_reproducible(library: str, seed: int) -> str:
    """Show a loaded library a clock that stands still, and random bytes that follow from a seed.

    Dynamo's KV router breaks ties between equally good workers at random, and has no option
    for the seed: its generator takes it from the time of the first draw, and the order in which
    workers are looked at from the system's random bytes. Simulated time doesn't come from the
    clock, so this makes a replay reproducible and changes nothing else. Only the library's own
    table of imported functions is changed, in this process; whatever thread calls Dynamo next
    must be a new one, since a thread keeps what it has drawn.

    Returns:
        ``seeded``, or else why the replay is not reproducible.
    """
    kinds = _RELOCATIONS.get(platform.machine())
    if sys.platform != "linux" or kinds is None:
        return f"not seeded: no support for {sys.platform} on {platform.machine()}"
    for name, function in (
        (b"clock_gettime", _standing_clock(seed)),
        (b"getrandom", _seeded_bytes(seed)),
    ):
        try:
            slots = _import_slots(Path(library), name, kinds)
        except (OSError, ValueError, struct.error, KeyError) as error:
            return f"not seeded: {error!r}"
        if not slots:
            return f"not seeded: the library doesn't import {name.decode()}"
        _keep_alive.append(function)
        failure = _redirect(slots, ctypes.cast(function, ctypes.c_void_p).value or 0)
        if failure:
            return f"not seeded: {failure}"
    return "seeded"


# Dynamo calls these for as long as the process lives.
_keep_alive: list[Any] = []


def _standing_clock(seed: int) -> Any:
    instant = struct.pack("qq", 1 + seed, 0)

    def clock_gettime(_clock: int, result: int) -> int:
        ctypes.memmove(result, instant, len(instant))
        return 0

    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(clock_gettime)


def _seeded_bytes(seed: int) -> Any:
    generator = random.Random(seed)

    def getrandom(result: int, length: int, _flags: int) -> int:
        ctypes.memmove(result, generator.randbytes(length), length)
        return length

    return ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)(
        getrandom
    )


def _redirect(slots: list[int], address: int) -> str:
    """Write an address to each slot; returns what went wrong, or an empty string."""
    page = mmap.PAGESIZE
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for slot in slots:
        if protect(slot // page * page, page, _PROT_READ | _PROT_WRITE):
            return os.strerror(ctypes.get_errno())
        ctypes.c_void_p.from_address(slot).value = address
    return ""


def _import_slots(library: Path, name: bytes, kinds: tuple[int, ...]) -> list[int]:
    """Where a loaded ELF library keeps the address of an imported function."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as elf:
        if elf[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{library.name} is not a 64-bit little-endian ELF file")
        (table,) = struct.unpack_from("<Q", elf, 0x20)
        size, count = struct.unpack_from("<HH", elf, 0x36)
        loads: list[tuple[int, int, int]] = []
        dynamic = (0, 0)
        for index in range(count):
            kind, _, offset, address, _, length = struct.unpack_from(
                "<IIQQQQ", elf, table + index * size
            )
            if kind == _PT_LOAD:
                loads.append((address, offset, length))
            elif kind == _PT_DYNAMIC:
                dynamic = (offset, length)

        def in_file(address: int) -> int:
            for start, offset, length in loads:
                if start <= address < start + length:
                    return address - start + offset
            raise ValueError(f"address {address:#x} is in no segment")

        tags: dict[int, int] = dict(
            struct.iter_unpack("<QQ", elf[dynamic[0] : dynamic[0] + dynamic[1]])
        )
        symbols, strings = in_file(tags[_DT_SYMTAB]), in_file(tags[_DT_STRTAB])
        offsets = []
        for start, length in ((_DT_RELA, _DT_RELASZ), (_DT_JMPREL, _DT_PLTRELSZ)):
            if start not in tags or not tags.get(length):
                continue
            first = in_file(tags[start])
            for place, info, _ in struct.iter_unpack("<QQq", elf[first : first + tags[length]]):
                if info & 0xFFFFFFFF in kinds and info >> 32:
                    (text,) = struct.unpack_from("<I", elf, symbols + (info >> 32) * 24)
                    begin = strings + text
                    if elf[begin : begin + len(name) + 1] == name + b"\0":
                        offsets.append(place)
    base = _base_address(library) - loads[0][0]
    return [base + offset for offset in offsets]


def _base_address(library: Path) -> int:
    real = str(library.resolve())
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == real and int(fields[2], 16) == 0:
            return int(fields[0].partition("-")[0], 16)
    raise ValueError(f"{library.name} is not loaded")


def main(job_path: str, parent: str | None = None) -> None:
    """Run the replay that the file describes, and write what it says to the job's ``result``."""
    if parent is not None:
        die_with_parent(int(parent))
    job = json.loads(Path(job_path).read_text("utf-8"))
    arguments = dict(job["arguments"])
    from dynamo import _core
    from dynamo.replay import run_trace_replay

    # Nothing of the package can be imported here.
    inside = Path(__file__).parents[2] / "dynamo" / "inside" / "engine_arguments.py"
    engine_arguments = runpy.run_path(str(inside))["engine_arguments"]
    for name in ("extra_engine_args", "prefill_engine_args", "decode_engine_args"):
        if arguments.get(name) is not None:
            arguments[name] = engine_arguments(arguments[name])
    if arguments.get("router_config") is not None:
        routing = json.dumps(arguments["router_config"])
        arguments["router_config"] = _core.KvRouterConfig.from_json(routing)
    seeding = "not asked for"
    if job["seed"] is not None:
        seeding = make_reproducible(_core.__file__, job["seed"])
    began = time.perf_counter()
    with ThreadPoolExecutor(1) as thread:
        report: Any = thread.submit(run_trace_replay, **arguments).result()
    seconds = time.perf_counter() - began
    result = {
        "report": dict(getattr(report, "summary", report)),
        "seconds": seconds,
        "peak_memory_mb": peak_memory_mb(),
        "seeding": seeding,
    }
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

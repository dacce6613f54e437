"""Facts about this machine: processor, cores, memory. Standard library only; all of it is read, nothing is set."""

import contextlib
import ctypes
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")

# Instruction sets that change which kernel is fastest, best first, and the processor flags that each needs
# (names of Linux' /proc/cpuinfo; macOS' sysctl names are mapped to them).
ISA_FLAGS: dict[str, frozenset[str]] = {
    "amx": frozenset({"amx_tile", "amx_int8"}),
    "avx512_vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl"}),
    "avx_vnni": frozenset({"avx2", "avx_vnni"}),
    "avx2": frozenset({"avx2", "fma"}),
    "sve": frozenset({"sve"}),
    "neon_i8mm": frozenset({"asimd", "i8mm"}),
    "neon_dot": frozenset({"asimd", "asimddp"}),
    "neon": frozenset({"asimd"}),
}

_MACOS_FLAGS = {
    "hw.optional.neon": "asimd",
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.avx512bw": "avx512bw",
    "hw.optional.avx512vl": "avx512vl",
    "hw.optional.avx512vnni": "avx512_vnni",
}


def _sysctl(*names: str) -> dict[str, str]:
    """macOS' answers to `names`; those that it does not know are left out."""
    answer = subprocess.run(["sysctl", *names], capture_output=True, text=True, check=False)
    lines = (line.partition(": ") for line in answer.stdout.splitlines())
    return {name: value.strip() for name, _, value in lines}


def _cpuinfo() -> dict[str, str]:
    """The first processor's block of /proc/cpuinfo (empty where there is none)."""
    try:
        text = (_PROC / "cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


@cache
def cpu_flags() -> frozenset[str]:
    """The processor's feature flags under their Linux names; empty where the system does not tell."""
    if sys.platform == "darwin":
        answers = _sysctl(*_MACOS_FLAGS)
        return frozenset(flag for name, flag in _MACOS_FLAGS.items() if answers.get(name) == "1")
    info = _cpuinfo()
    flags = frozenset((info.get("flags") or info.get("Features") or "").split())
    if not flags and platform.machine().lower() in {"arm64", "aarch64"}:
        return frozenset({"asimd"})  # part of the architecture
    return flags


@cache
def cpu_name() -> str:
    """The processor's marketing name, or the architecture where the system does not tell."""
    if sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string").get("machdep.cpu.brand_string", "")
    else:
        name = _cpuinfo().get("model name", "")
    return name or platform.processor() or platform.machine()


def isa_of(flags: frozenset[str]) -> tuple[str, ...]:
    """The instruction sets that `flags` make up, best first."""
    return tuple(isa for isa, needed in ISA_FLAGS.items() if needed <= flags)


def _cgroup_folders(controller: str) -> Iterator[Path]:
    """This process's control group and its ancestors: the one hierarchy of version 2, `controller`'s of version 1."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = _CGROUPS / controllers if controllers else _CGROUPS
            folder = root / name.lstrip("/")
            # Inside a container the name may be the host's: then only the root of the mount exists here.
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(root))


def _number(path: Path) -> int | None:
    """The integer in a one-line file; None where it is missing or says "max"."""
    try:
        text = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(text) if text.isdigit() else None


def _cgroup_memory() -> Iterator[tuple[int, int]]:
    """(limit, in use) in bytes of each control group that bounds this process; page cache is not in use."""
    for folder in _cgroup_folders("memory"):
        for limit_name, usage_name, cache_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, usage = _number(folder / limit_name), _number(folder / usage_name)
            if limit is None or usage is None:
                continue
            try:
                found = re.search(rf"^{cache_key} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            except OSError:
                found = None
            yield limit, max(0, usage - (int(found.group(1)) if found else 0))


def _system_memory() -> tuple[int, int]:
    """(total, available) bytes of the system, whatever bounds this process."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (_PROC / "meminfo").read_text(), re.MULTILINE))
    if {"MemTotal", "MemAvailable"} <= found.keys():
        return int(found["MemTotal"]) * 1024, int(found["MemAvailable"]) * 1024
    if sys.platform == "darwin":
        return _macos_memory()
    if sys.platform == "win32":
        return _windows_memory()
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


def _macos_memory() -> tuple[int, int]:
    pages = subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout
    reclaimable = re.findall(r"^Pages (?:free|inactive|speculative):\s+(\d+)\.", pages, re.MULTILINE)
    total = int(_sysctl("hw.memsize").get("hw.memsize", "0"))
    return total, sum(map(int, reclaimable)) * os.sysconf("SC_PAGE_SIZE")


def _windows_memory() -> tuple[int, int]:
    # MEMORYSTATUSEX: two 32-bit words (its size, the load), then seven 64-bit ones (total and available first).
    class Status(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ulong), ("load", ctypes.c_ulong), ("sizes", ctypes.c_ulonglong * 7))

    status = Status(length=ctypes.sizeof(Status))
    ctypes.CDLL("kernel32").GlobalMemoryStatusEx(ctypes.byref(status))
    return status.sizes[0], status.sizes[1]


def total_memory_bytes() -> int:
    """Memory that this process could ever use: the machine's, or less where a control group bounds it."""
    return min([_system_memory()[0], *(limit for limit, _ in _cgroup_memory())])


def free_memory_bytes() -> int:
    """Memory that can still be taken without swapping; respects the limits of control groups (containers)."""
    return min([_system_memory()[1], *(max(0, limit - usage) for limit, usage in _cgroup_memory())])


_SESSION_PER_WEIGHT = 2
_SHARE_OF_FREE = 0.6


def session_bytes(weights: int) -> int:
    """Memory that a session takes while it opens a model with so many bytes of weights: it holds them about twice."""
    return _SESSION_PER_WEIGHT * weights


def has_room(needed: int) -> bool:
    """Whether so many bytes may be taken without coming near the end of what is free."""
    return needed <= _SHARE_OF_FREE * free_memory_bytes()


def _cgroup_cores(folder: Path) -> float | None:
    """Processors' worth of time that one control group grants; None where it sets no quota."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        old = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        return old[0] / old[1] if old[0] is not None and old[1] else None
    return None if quota == "max" else int(quota) / int(period)


def cores() -> int:
    """Cores that this process may use: its affinity mask, and a control group's quota rounded up."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_cgroup_cores(folder) for folder in _cgroup_folders("cpu"))
    return max(1, min([count, *(math.ceil(quota) for quota in quotas if quota is not None)]))


def peak_memory_bytes() -> int | None:
    """The largest resident size that this process has had since `reset_peak_memory`, in bytes (None: unknown)."""
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", (_PROC / "self" / "status").read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found.group(1)) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int | None:
    """This process's resident memory in bytes (None where the system does not tell)."""
    try:
        return int((_PROC / "self" / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def reset_peak_memory() -> bool:
    """Start `peak_memory_bytes` afresh from the present size; False where only the whole life's peak is known."""
    try:
        (_PROC / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True

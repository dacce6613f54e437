"""Facts about the machine, read from a made-up /proc and /sys, and from the real ones for plausibility."""

import os
import sys

import numpy as np
import pytest

from onnxopt.backends import machine

GIB = 1 << 30
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """system({"proc/meminfo": ..., "cgroup/memory.max": ...}) puts these files in the place of the real ones."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(str(content))

    write({"proc/meminfo": f"MemTotal: {16 << 20} kB\nMemFree: 5 kB\nMemAvailable:  {8 << 20} kB\nHugepages: 0\n"})
    return write


@linux
def test_memory_of_the_system(system):
    assert machine.total_memory_bytes() == 16 * GIB
    assert machine.free_memory_bytes() == 8 * GIB


@linux
def test_a_control_group_bounds_it(system):
    """Page cache that can be dropped is not in use."""
    system(
        {
            "proc/self/cgroup": "0::/box/inner\n",
            "cgroup/box/inner/memory.max": "max\n",
            "cgroup/box/inner/memory.current": GIB,
            "cgroup/box/memory.max": 4 * GIB,
            "cgroup/box/memory.current": 3 * GIB,
            "cgroup/box/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        }
    )
    assert machine.total_memory_bytes() == 4 * GIB
    assert machine.free_memory_bytes() == 2 * GIB


@linux
def test_version_one_control_groups(system):
    system(
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/box\n4:memory:/box\n0::/\n",
            "cgroup/memory/box/memory.limit_in_bytes": 2 * GIB,
            "cgroup/memory/box/memory.usage_in_bytes": 3 * GIB,
            "cgroup/memory/memory.limit_in_bytes": 2**63 - 4096,
            "cgroup/memory/memory.usage_in_bytes": 0,
            "cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": 150_000,
            "cgroup/cpu,cpuacct/box/cpu.cfs_period_us": 100_000,
        }
    )
    assert machine.total_memory_bytes() == 2 * GIB
    assert machine.free_memory_bytes() == 0
    assert machine.cores() == 2


@linux
def test_inside_a_container_the_groups_name_may_be_the_hosts(system):
    system(
        {
            "proc/self/cgroup": "0::/host/only/name\n",
            "cgroup/memory.max": GIB,
            "cgroup/memory.current": 0,
            "cgroup/cpu.max": "300000 100000",
        }
    )
    assert machine.free_memory_bytes() == GIB
    assert machine.cores() == 3


@linux
@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("50000 100000", 1), ("250000 100000", 3), ("9000000 100000", 8)]
)
def test_cores_respect_the_quota(system, quota, cores):
    system({"proc/self/cgroup": "0::/\n", "cgroup/cpu.max": quota})
    assert machine.cores() == cores


X86 = "processor: 0\nmodel name : Fast CPU\nflags\t\t: fpu {}\n\nprocessor: 1\nflags: none\n"
ARM = "processor\t: 0\nFeatures\t: fp {}\n"


@linux
@pytest.mark.parametrize(
    ("cpuinfo", "flags", "expected"),
    [
        (X86, "avx2 fma", ("avx2",)),
        (X86, "avx2 fma avx_vnni", ("avx_vnni", "avx2")),
        (X86, "avx2 fma avx512f avx512bw avx512vl", ("avx512", "avx2")),
        (X86, "avx2 fma avx512f avx512bw avx512vl avx512_vnni", ("avx512_vnni", "avx512", "avx2")),
        (X86, "avx2 fma amx_tile amx_int8", ("amx", "avx2")),
        (X86, "avx512_vnni", ()),
        (X86, "sse2", ()),
        (ARM, "asimd", ("neon",)),
        (ARM, "asimd asimddp i8mm sve", ("sve", "neon_i8mm", "neon_dot", "neon")),
    ],
)
def test_instruction_sets(system, cpuinfo, flags, expected):
    system({"proc/cpuinfo": cpuinfo.format(flags)})
    assert machine.isa_of(machine.cpu_flags.__wrapped__()) == expected


@linux
def test_name_of_the_processor(system):
    system({"proc/cpuinfo": X86})
    assert machine.cpu_name.__wrapped__() == "Fast CPU"


def test_the_real_machine_is_plausible():
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.free_memory_bytes() <= machine.total_memory_bytes()
    assert machine.cpu_name()


@linux
def test_peak_memory_follows_what_is_taken():
    assert machine.reset_peak_memory()
    before = machine.resident_bytes()
    block = np.ones(64 << 20, np.uint8)
    held = machine.resident_bytes()
    del block
    assert held - before > 56 << 20
    assert machine.peak_memory_bytes() >= held - (4 << 20)
    assert machine.reset_peak_memory()
    assert machine.peak_memory_bytes() < held - (32 << 20)

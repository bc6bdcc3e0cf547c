"""Which precision a CPU is quick in: without instructions for bfloat16 it imitates it, several times slower."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_MULTIPLIES = {"avx512_bf16", "amx_bf16", "bf16"}  # x86's two, and ARM's, as /proc/cpuinfo calls them


def multiplies_bfloat16(cpuinfo: str) -> bool:
    """Whether the CPU that /proc/cpuinfo's text describes has instructions for bfloat16."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            return not _MULTIPLIES.isdisjoint(flags.split())
    return True  # it does not say: the model's own precision is then the better guess


@cache
def cpu_wants_float32() -> bool:
    """Whether half precision is slower than float32 on this machine's CPU (`make bench-precision`)."""
    try:
        return not multiplies_bfloat16(Path("/proc/cpuinfo").read_text())
    except OSError:
        return False

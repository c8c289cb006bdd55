"""Facts of this machine, for the inventory and for matching firmware profiles."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from shoal.manifest import SCHEMAS

#: CPU flags that a profile may require; others are not reported.
_FLAGS = frozenset(
    {
        "avx", "avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "fma", "sse4_2",
        "asimd", "asimddp", "i8mm", "sve", "neon",
    }
)  # fmt: skip


def read_facts(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> dict[str, Any]:
    """arch, cpu, cpu_part, flags, cores, ram_mb, soc, os, python and ort of this machine.

    And `schemas`: those of the manifests that this agent reads; `removes`: it knows the order to
    remove a model.
    """
    cpu = _cpuinfo(proc / "cpuinfo")
    flags = cpu.get("flags", "") or cpu.get("Features", "")
    return {
        "arch": platform.machine(),
        "cpu": cpu.get("model name", "") or cpu.get("Model", ""),
        "cpu_part": cpu.get("CPU part"),
        "flags": sorted(_FLAGS & set(flags.split())),
        "cores": os.cpu_count() or 1,
        "ram_mb": _ram_mb(proc / "meminfo"),
        "soc": _soc(sys.parent / "proc/device-tree/compatible"),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "ort": version_of("onnxruntime"),
        "schemas": [*SCHEMAS],
        "removes": True,
    }


def version_of(package: str) -> str:
    """Installed version of a package, without loading it; "" when it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpuinfo(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _ram_mb(path: Path) -> int:
    try:
        first = path.read_text().split(maxsplit=2)
        return int(first[1]) // 1024
    except (OSError, IndexError, ValueError):
        return 0


def _soc(path: Path) -> str | None:
    """The system on a chip as the device tree names it, such as "bcm2712"; None elsewhere."""
    try:
        names = path.read_bytes().decode(errors="replace").strip("\0").split("\0")
    except OSError:
        return None
    return names[-1].rpartition(",")[2] or None

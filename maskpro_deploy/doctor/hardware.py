"""Hardware: cores and their vector features, memory, free space, and the GPUs that the NVIDIA driver knows."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from maskpro_deploy.bench.environment import affinity, cgroup_cpu_cores, cgroup_memory_bytes, memory_bytes

# what matters for matrix products: name -> flags in /proc/cpuinfo that mean it (x86, then ARM)
_CPU_FEATURES = {
    "AVX2": {"avx2"},
    "AVX-512": {"avx512f"},
    "VNNI": {"avx512_vnni", "avx_vnni"},
    "BF16": {"avx512_bf16", "amx_bf16", "bf16"},
    "AMX": {"amx_tile"},
    "NEON": {"asimd", "neon"},
    "SVE": {"sve"},
    "I8MM": {"i8mm"},
}
SPARSE_TENSOR_CORES = (8, 0)  # compute capability from which 2:4 runs in hardware
_SMI_FIELDS = "name,compute_cap,driver_version,memory.total"
_SMI_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    compute_capability: str
    driver: str
    memory: str

    @property
    def sparse_tensor_cores(self) -> bool:
        major, _, minor = self.compute_capability.partition(".")
        return major.isdigit() and (int(major), int(minor or 0)) >= SPARSE_TENSOR_CORES


def count_cores() -> int:
    """Cores this process may use: its affinity, and the limit of its control group."""
    allowed = len(affinity() or [0])
    limit = cgroup_cpu_cores()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def usable_memory_bytes() -> int | None:
    """Memory this process may use: the machine's, or the limit of its control group if that is less."""
    return min((b for b in (memory_bytes(), cgroup_memory_bytes()) if b is not None), default=None)


def cpu_features(cpuinfo: Path) -> tuple[str, ...]:
    """The features of `_CPU_FEATURES` that the first core has."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return ()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return tuple(name for name, any_of in _CPU_FEATURES.items() if flags & any_of)


def free_bytes(folder: Path) -> int | None:
    """Free space where `folder` is, or would be."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return shutil.disk_usage(place).free
    return None


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that the NVIDIA driver knows; none where `nvidia-smi` is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(done.stdout) if done.returncode == 0 else ()


def parse_gpus(csv: str) -> tuple[Gpu, ...]:
    """Read nvidia-smi's answer; lines that do not describe a GPU are skipped."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return tuple(Gpu(name=r[0], compute_capability=r[1], driver=r[2], memory=r[3]) for r in rows if len(r) == 4)

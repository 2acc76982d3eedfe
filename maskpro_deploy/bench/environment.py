"""What a figure was measured on: machine, limits, load, versions, code state, command line (without secrets).

What cannot be read here is None, never guessed.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from maskpro_deploy._version import __version__

_PACKAGES = (
    *("aiohttp", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu"),
    *("torch", "transformers", "tokenizers", "tensorrt", "tensorrt-rtx"),
)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND")
_SECRET = re.compile(r"key|token|secret|passw|credential|auth", re.IGNORECASE)
_HIDDEN = "***"


def capture() -> dict[str, Any]:
    """The environment block of a result, as JSON values."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line(sys.argv),
        "maskpro_deploy": __version__,
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": packages(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_model": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpu_affinity": affinity(),
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cpu_last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": memory_bytes(),
        "cgroup_cpu_limit_cores": cgroup_cpu_cores(),
        "cgroup_memory_limit_bytes": cgroup_memory_bytes(),
        "load_average_1min": load_average(),
        "thread_variables": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }


def packages() -> dict[str, str]:
    """Name -> version of the installed packages that shape the figures."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def command_line(argv: Sequence[str]) -> str:
    """The command as it was given, with the values of secret-looking options and of credentials in URLs hidden."""
    shown: list[str] = []
    hide_next = False
    for i, argument in enumerate(argv):
        if hide_next and not argument.startswith("-"):
            shown.append(_HIDDEN)
            hide_next = False
            continue
        name, equals, _ = argument.partition("=")
        hide_next = argument.startswith("-") and not equals and _SECRET.search(argument) is not None
        if equals and _SECRET.search(name):
            argument = f"{name}={_HIDDEN}"
        argument = re.sub(r"(\w+://)[^/@\s]+@", rf"\1{_HIDDEN}@", argument)
        shown.append(_program(Path(argument)) if i == 0 else argument)
    return " ".join(f"'{a}'" if re.search(r"\s", a) else a for a in shown)


def _program(path: Path) -> str:
    """The name of a program; `python -m maskpro_deploy` is the installed one."""
    own = path.name == "__main__.py" and path.parent.name == Path(__file__).parents[1].name
    return "maskpro-deploy" if own else path.name


def reproduce_note(environment: Mapping[str, Any]) -> str:
    """What one needs besides the command line to measure the same again."""
    git = environment.get("git")
    commit = "" if git is None else f", commit {git['commit'][:12]}{' with changes' if git['dirty'] else ''}"
    runtime = (environment.get("packages") or {}).get("onnxruntime")
    with_runtime = f", onnxruntime {runtime}" if runtime else ""
    return f"maskpro-deploy {environment.get('maskpro_deploy')}{commit}{with_runtime}. Raw samples are in result.json."


def describe_circumstances(environment: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """What a reader has to know: that the machine was busy, and earlier runs (`SavedResult.history`) that this goes on with."""
    lines = []
    cores, load = environment.get("cpu_count"), environment.get("load_average_1min")
    if isinstance(cores, int) and isinstance(load, (int, float)) and load > 0.5 * cores:
        lines.append(f"The machine was busy when the run began: load average {load} on {cores} cores.")
    done = "Goes on with a run of {date} that had done {sessions} sessions: {command_line}"
    return lines + [done.format_map(part) for part in earlier]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and cleanliness of the work tree that tracks `folder`, or None outside one."""
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:  # a site-packages in a foreign tree is not ours
        return None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changes.strip())}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cpu_model() -> str | None:
    """The processor's name."""
    text = _read("/proc/cpuinfo")
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text or "", re.MULTILINE)
    return match[1].strip() if match else platform.processor() or None


def affinity() -> list[int] | None:
    """The cores this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def load_average() -> float | None:
    """Runnable processes, averaged over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def memory_bytes() -> int | None:
    """Physical memory."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def last_level_cache_bytes() -> int | None:
    """Size of the largest cache of core 0."""
    files = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [match for file in files if (match := re.fullmatch(r"(\d+)([KM])", _read(file) or ""))]
    return max((int(match[1]) << {"K": 10, "M": 20}[match[2]] for match in sizes), default=None)


def cgroup_cpu_cores(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU limit of the control group in cores, or None without one."""
    if (text := _read(root / "cpu.max")) is not None:  # version 2: "200000 100000" or "max 100000"
        quota, _, period = text.partition(" ")
        return None if quota == "max" else int(quota) / int(period or 100_000)
    quota_us, period_us = _read(root / "cpu/cpu.cfs_quota_us"), _read(root / "cpu/cpu.cfs_period_us")
    if quota_us is None or period_us is None or int(quota_us) <= 0:
        return None
    return int(quota_us) / int(period_us)


def cgroup_memory_bytes(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The memory limit of the control group, or None without one."""
    text = _read(root / "memory.max") or _read(root / "memory/memory.limit_in_bytes")
    if text is None or text == "max" or int(text) >= 1 << 60:  # version 1 says "no limit" by a huge number
        return None
    return int(text)


def _read(path: Path | str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None

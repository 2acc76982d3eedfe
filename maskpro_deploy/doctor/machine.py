"""What this machine can do: hardware, installed packages, TensorRT lanes, and which steps of the path can run here.

Versions come from package metadata, so that nothing heavy is imported; only the base packages are (they must work) and
onnxruntime, which alone knows its providers.
"""

from __future__ import annotations

import dataclasses
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskpro_deploy._version import __version__
from maskpro_deploy.bench.environment import affinity, cgroup_cpu_cores, cgroup_memory_bytes, cpu_model, memory_bytes
from maskpro_deploy.errors import first_line
from maskpro_deploy.models import demo_is_cached
from maskpro_deploy.system.extras import EXTRAS, missing
from maskpro_deploy.system.files import cache_folder

# module -> distribution, of everything the base cannot work without
BASE = {
    "click": "click",
    "ml_dtypes": "ml-dtypes",
    "numpy": "numpy",
    "onnx": "onnx",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
}
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
        """Whether it runs 2:4 in hardware."""
        major, _, minor = self.compute_capability.partition(".")
        return major.isdigit() and (int(major), int(minor or 0)) >= SPARSE_TENSOR_CORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Something that works here or does not: an extra, a TensorRT lane, a step.

    Attributes:
        name: what it is.
        ready: whether it works.
        detail: versions, or what is there.
        lacks: what is missing, in words; empty if ready.
        install: the command that mends it, if a command can.
    """

    name: str
    ready: bool
    detail: str = ""
    lacks: tuple[str, ...] = ()
    install: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that was found out."""

    cpu: str | None
    cores: int
    cpu_features: tuple[str, ...]
    memory_bytes: int | None
    cache: Path
    cache_free_bytes: int | None
    demo_cached: bool
    gpus: tuple[Gpu, ...]
    python: str
    base: tuple[Ability, ...]
    extras: tuple[Ability, ...]
    providers: tuple[str, ...]
    lanes: tuple[Ability, ...]
    steps: tuple[Ability, ...]

    @property
    def healthy(self) -> bool:
        """Whether everything the base needs works."""
        return all(b.ready for b in self.base)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        value = dataclasses.asdict(self)
        value["cache"] = str(self.cache)
        value["gpus"] = [dataclasses.asdict(g) | {"sparse_tensor_cores": g.sparse_tensor_cores} for g in self.gpus]
        return {"maskpro_deploy": __version__, "healthy": self.healthy, **value}


def examine() -> Diagnosis:
    """Look at this machine. Takes a second or two; changes nothing."""
    gpus = find_gpus()
    providers = onnxruntime_providers()
    lanes = tensorrt_lanes(gpus, providers)
    cache = cache_folder()
    limits = [b for b in (memory_bytes(), cgroup_memory_bytes()) if b is not None]
    return Diagnosis(
        cpu=cpu_model(),
        cores=_cores(),
        cpu_features=cpu_features(Path("/proc/cpuinfo")),
        memory_bytes=min(limits, default=None),
        cache=cache,
        cache_free_bytes=_free_bytes(cache),
        demo_cached=demo_is_cached(),
        gpus=gpus,
        python=platform.python_version(),
        base=tuple(_base(module, distribution) for module, distribution in BASE.items()),
        extras=tuple(_extra(name) for name in EXTRAS),
        providers=providers,
        lanes=lanes,
        steps=main_steps(lanes, _where(gpus, providers)),
    )


def _cores() -> int:
    """Cores this process may use: its affinity, and the limit of its control group."""
    allowed = len(affinity() or [0])
    limit = cgroup_cpu_cores()
    return allowed if limit is None else max(1, min(allowed, int(limit)))


def cpu_features(cpuinfo: Path) -> tuple[str, ...]:
    """The features of `_CPU_FEATURES` that the first core has."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return ()
    match = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    flags = set(match[1].split()) if match else set()
    return tuple(name for name, any_of in _CPU_FEATURES.items() if flags & any_of)


def _free_bytes(folder: Path) -> int | None:
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
    """Read nvidia-smi's answer; lines that are none of a GPU are skipped."""
    rows = [[cell.strip() for cell in line.split(",")] for line in csv.splitlines()]
    return tuple(Gpu(name=r[0], compute_capability=r[1], driver=r[2], memory=r[3]) for r in rows if len(r) == 4)


def onnxruntime_providers() -> tuple[str, ...]:
    """What onnxruntime could run on. The list says what was built in, not that a device is here."""
    if find_spec("onnxruntime") is None:
        return ()
    try:
        return tuple(import_module("onnxruntime").get_available_providers())
    except (ImportError, OSError, AttributeError):
        return ()


def version(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _base(module: str, distribution: str) -> Ability:
    """A package that the base needs: it must import, in the version that our own metadata asks for."""
    command = "pip install --upgrade maskpro-deploy"
    try:
        import_module(module)
    except Exception as e:  # a broken installation raises anything
        return Ability(name=distribution, ready=False, lacks=(f"does not import: {first_line(e)}",), install=command)
    found, lowest = version(distribution) or "?", lower_bound(distribution)
    if lowest is not None and _numbers(found) < _numbers(lowest):
        return Ability(name=distribution, ready=False, detail=found, lacks=(f"is older than {lowest}",), install=command)
    return Ability(name=distribution, ready=True, detail=found)


def lower_bound(distribution: str) -> str | None:
    """The lowest version of a distribution that our own metadata accepts."""
    try:
        requirements = metadata.requires("maskpro-deploy") or []
    except metadata.PackageNotFoundError:
        return None
    found = (re.match(rf"{re.escape(distribution)}\s*>=\s*([\d.]+)", r) for r in requirements)
    return next((m[1] for m in found if m), None)


def _numbers(text: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


_DISTRIBUTIONS = {"mobius": "mobius-onnx"}  # modules whose distribution has another name


def _extra(name: str) -> Ability:
    absent = missing(name)
    if name == "gpu" and version("onnxruntime-gpu") is None:
        return Ability(
            name=name,
            ready=False,
            lacks=("onnxruntime-gpu",),
            install="pip uninstall onnxruntime; pip install 'maskpro-deploy[gpu]'  (both packages bring the same module)",
        )
    found = [
        f"{m} {v}"
        for m in EXTRAS[name]
        if m not in absent and (v := version(_DISTRIBUTIONS.get(m, m.replace("_", "-")))) is not None
    ]
    install = f"pip install 'maskpro-deploy[{name}]'" if absent else ""
    return Ability(name=name, ready=not absent, detail=", ".join(found), lacks=tuple(absent), install=install)


def tensorrt_lanes(gpus: tuple[Gpu, ...], providers: tuple[str, ...]) -> tuple[Ability, ...]:
    """The three ways to a TensorRT engine, with what each lacks here."""
    trt, rtx = version("tensorrt"), version("tensorrt-rtx")
    major = _numbers(trt or "")[:1]
    no_gpu = [] if gpus else ["an NVIDIA GPU"]
    kernels = "" if any(g.sparse_tensor_cores for g in gpus) else "; dense kernels only: sparse tensor cores begin with 8.0"
    serving = "; serving needs pip install 'maskpro-deploy[native]'" if missing("native") else ""
    lack_11 = ([] if major >= (11,) else [f"tensorrt 11 (found {trt})" if trt else "tensorrt 11"]) + no_gpu
    lack_10 = ([] if major == (10,) else [f"tensorrt 10 (found {trt})" if trt else "tensorrt 10"]) + no_gpu
    if "TensorrtExecutionProvider" not in providers:
        lack_10.append("onnxruntime-gpu")
    lack_rtx = [] if rtx and find_spec("tensorrt_rtx") is not None else ["tensorrt-rtx"]
    return (
        _lane("TensorRT 11, native", f"tensorrt {trt}{kernels}{serving}", lack_11, "pip install 'maskpro-deploy[tensorrt]'"),
        _lane(
            "TensorRT 10, through onnxruntime",
            f"tensorrt {trt}{kernels}",
            lack_10,
            "pip install 'maskpro-deploy[gpu,tensorrt]' 'tensorrt<11'",
        ),
        _lane(
            "TensorRT-RTX, ahead of time (dense kernels only)",
            f"tensorrt-rtx {rtx}; builds without a GPU" + (serving if gpus else ", running an engine needs one"),
            lack_rtx,
            "pip install 'maskpro-deploy[tensorrt-rtx]'",
        ),
    )


def _lane(name: str, detail: str, lacks: list[str], install: str) -> Ability:
    only_gpu = all("GPU" in item for item in lacks)
    return Ability(
        name=name, ready=not lacks, detail="" if lacks else detail, lacks=tuple(lacks), install="" if only_gpu else install
    )


def _where(gpus: tuple[Gpu, ...], providers: tuple[str, ...]) -> str:
    """What runs a bundle here."""
    if not gpus:
        return "on the CPU; engines need an NVIDIA GPU"
    own = ["its engines"] if not missing("native") and not (missing("tensorrt") and missing("tensorrt-rtx")) else []
    cuda = ["the GPU"] if "CUDAExecutionProvider" in providers else []
    return f"on {' and '.join(['the CPU', *cuda, *own])}"


def main_steps(lanes: tuple[Ability, ...], where: str) -> tuple[Ability, ...]:
    """Which steps of the path can run here.

    Args:
        lanes: to engines.
        where: what runs a bundle.
    """
    engine = any(lane.ready for lane in lanes)
    return (
        _step("demo", ("learn", "cpu", "serve", "report")),
        _step("learn", ("learn",)),
        _step("validate", ()),
        _step("export", (), "" if not (missing("learn") or missing("cpu")) else "unverified: comparing needs learn and cpu"),
        Ability(
            name="build-engine",
            ready=engine,
            detail=", ".join(lane.name for lane in lanes if lane.ready),
            lacks=() if engine else ("any of the three lanes",),
            install="" if engine else "pip install 'maskpro-deploy[tensorrt-rtx]'",
        ),
        _step("serve", ("serve", "cpu"), where),
        _step("benchmark", ("cpu",), where),
        _step("eval", ("cpu",), "" if not missing("learn") else "bundles only: checkpoints need learn"),
    )


def _step(name: str, extras: tuple[str, ...], detail: str = "") -> Ability:
    lacks = tuple(module for extra in extras for module in missing(extra))
    needed = ",".join(extra for extra in extras if missing(extra))
    install = f"pip install 'maskpro-deploy[{needed}]'" if lacks else ""
    return Ability(name=name, ready=not lacks, detail="" if lacks else detail, lacks=lacks, install=install)

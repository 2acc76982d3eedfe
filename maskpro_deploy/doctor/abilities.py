"""What can run here: packages and extras, onnxruntime's providers, the lanes to a TensorRT engine, the steps of the path.

Versions come from package metadata, so that nothing heavy is imported; only the base packages are, since they must work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec

from maskpro_deploy.doctor.hardware import Gpu
from maskpro_deploy.errors import first_line
from maskpro_deploy.system.extras import EXTRAS, missing

# module -> distribution, of everything the base cannot work without
BASE = {name: name.replace("_", "-") for name in ("click", "ml_dtypes", "numpy", "onnx", "safetensors", "tokenizers")}
_DISTRIBUTIONS = {"mobius": "mobius-onnx"}  # modules whose distribution has another name


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Something that works here or does not: an extra, a TensorRT lane, a step."""

    name: str  # what it is
    ready: bool  # whether it works
    detail: str = ""  # versions, or what is there
    lacks: tuple[str, ...] = ()  # what is missing, in words; empty if ready
    install: str = ""  # the command that fixes it, if a command can


def version(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def lower_bound(distribution: str) -> str | None:
    """The lowest version of a distribution that our own metadata accepts."""
    try:
        requirements = metadata.requires("maskpro-deploy") or []
    except metadata.PackageNotFoundError:
        return None
    matches = (re.match(rf"{re.escape(distribution)}\s*>=\s*([\d.]+)", r) for r in requirements)
    return next((m[1] for m in matches if m), None)


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: "11.4.0.dev1" -> (11, 4, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def check_base(module: str, distribution: str) -> Ability:
    """A package that the base needs: it must import, in the version that our own metadata asks for."""
    command = "pip install --upgrade maskpro-deploy"
    try:
        import_module(module)
    except Exception as e:  # a broken installation raises anything
        return Ability(name=distribution, ready=False, lacks=(f"does not import: {first_line(e)}",), install=command)
    installed, lowest = version(distribution) or "?", lower_bound(distribution)
    if lowest is not None and version_numbers(installed) < version_numbers(lowest):
        return Ability(name=distribution, ready=False, detail=installed, lacks=(f"is older than {lowest}",), install=command)
    return Ability(name=distribution, ready=True, detail=installed)


def check_extra(name: str) -> Ability:
    """Whether the packages of an extra are installed."""
    absent = missing(name)
    if name == "gpu" and version("onnxruntime-gpu") is None:
        return Ability(
            name=name,
            ready=False,
            lacks=("onnxruntime-gpu",),
            install="pip uninstall onnxruntime; pip install 'maskpro-deploy[gpu]'  (both packages bring the same module)",
        )
    versions = [
        f"{m} {v}"
        for m in EXTRAS[name]
        if m not in absent and (v := version(_DISTRIBUTIONS.get(m, m.replace("_", "-")))) is not None
    ]
    install = f"pip install 'maskpro-deploy[{name}]'" if absent else ""
    return Ability(name=name, ready=not absent, detail=", ".join(versions), lacks=tuple(absent), install=install)


def onnxruntime_providers() -> tuple[str, ...]:
    """What onnxruntime could run on. The list says what was built in, not that a device is here."""
    if find_spec("onnxruntime") is None:
        return ()
    try:
        return tuple(import_module("onnxruntime").get_available_providers())
    except (ImportError, OSError, AttributeError):
        return ()


def tensorrt_lanes(gpus: tuple[Gpu, ...], providers: tuple[str, ...]) -> tuple[Ability, ...]:
    """The three ways to a TensorRT engine, with what each lacks here."""
    trt, rtx = version("tensorrt"), version("tensorrt-rtx")
    major = version_numbers(trt or "")[:1]
    no_gpu = [] if gpus else ["an NVIDIA GPU"]
    kernels = "" if any(g.sparse_tensor_cores for g in gpus) else "; dense kernels only: sparse tensor cores begin with 8.0"
    serving = "; serving needs pip install 'maskpro-deploy[native]'" if missing("native") else ""
    lack_11 = ([] if major >= (11,) else [f"tensorrt 11 (found {trt})" if trt else "tensorrt 11"]) + no_gpu
    lack_10 = ([] if major == (10,) else [f"tensorrt 10 (found {trt})" if trt else "tensorrt 10"]) + no_gpu
    if "TensorrtExecutionProvider" not in providers:
        lack_10.append("onnxruntime-gpu")
    lack_rtx = [] if rtx and find_spec("tensorrt_rtx") is not None else ["tensorrt-rtx"]
    return (
        _make_lane("TensorRT 11, native", f"tensorrt {trt}{kernels}{serving}", lack_11, "'maskpro-deploy[tensorrt]'"),
        _make_lane(
            "TensorRT 10, through onnxruntime",
            f"tensorrt {trt}{kernels}",
            lack_10,
            "'maskpro-deploy[gpu,tensorrt]' 'tensorrt<11'",
        ),
        _make_lane(
            "TensorRT-RTX, ahead of time (dense kernels only)",
            f"tensorrt-rtx {rtx}; builds without a GPU" + (serving if gpus else ", running an engine needs one"),
            lack_rtx,
            "'maskpro-deploy[tensorrt-rtx]'",
        ),
    )


def _make_lane(name: str, detail: str, lacks: list[str], packages: str) -> Ability:
    install = "" if all("GPU" in item for item in lacks) else f"pip install {packages}"
    return Ability(name=name, ready=not lacks, detail="" if lacks else detail, lacks=tuple(lacks), install=install)


def describe_place(gpus: tuple[Gpu, ...], providers: tuple[str, ...]) -> str:
    """What runs a bundle here."""
    if not gpus:
        return "on the CPU; engines need an NVIDIA GPU"
    own = ["its engines"] if not missing("native") and not (missing("tensorrt") and missing("tensorrt-rtx")) else []
    cuda = ["the GPU"] if "CUDAExecutionProvider" in providers else []
    return f"on {' and '.join(['the CPU', *cuda, *own])}"


def check_steps(lanes: tuple[Ability, ...], where: str) -> tuple[Ability, ...]:
    """Which steps of the path can run here, given the lanes to engines; `where` says what runs a bundle."""
    engine = any(lane.ready for lane in lanes)
    return (
        _check_step("demo", ("learn", "cpu", "serve", "report")),
        _check_step("learn", ("learn",)),
        _check_step("validate", ()),
        _check_step(
            "export", (), "" if not (missing("learn") or missing("cpu")) else "unverified: comparing needs learn and cpu"
        ),
        Ability(
            name="build-engine",
            ready=engine,
            detail=", ".join(lane.name for lane in lanes if lane.ready),
            lacks=() if engine else ("any of the three lanes",),
            install="" if engine else "pip install 'maskpro-deploy[tensorrt-rtx]'",
        ),
        _check_step("serve", ("serve", "cpu"), where),
        _check_step("benchmark", ("cpu",), where),
        _check_step("eval", ("cpu",), "" if not missing("learn") else "bundles only: checkpoints need learn"),
    )


def _check_step(name: str, extras: tuple[str, ...], detail: str = "") -> Ability:
    lacks = tuple(module for extra in extras for module in missing(extra))
    needed = ",".join(extra for extra in extras if missing(extra))
    install = f"pip install 'maskpro-deploy[{needed}]'" if lacks else ""
    return Ability(name=name, ready=not lacks, detail="" if lacks else detail, lacks=lacks, install=install)

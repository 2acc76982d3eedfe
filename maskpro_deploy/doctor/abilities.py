"""What can run here: onnxruntime's providers, the three lanes to a TensorRT engine, and the steps of the whole path."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from maskpro_deploy.doctor.hardware import Gpu
from maskpro_deploy.doctor.packages import Ability, version, version_numbers
from maskpro_deploy.system.extras import missing


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
        _make_lane("TensorRT 11, native", f"tensorrt {trt}{kernels}{serving}", lack_11, "pip install 'maskpro-deploy[tensorrt]'"),
        _make_lane(
            "TensorRT 10, through onnxruntime",
            f"tensorrt {trt}{kernels}",
            lack_10,
            "pip install 'maskpro-deploy[gpu,tensorrt]' 'tensorrt<11'",
        ),
        _make_lane(
            "TensorRT-RTX, ahead of time (dense kernels only)",
            f"tensorrt-rtx {rtx}; builds without a GPU" + (serving if gpus else ", running an engine needs one"),
            lack_rtx,
            "pip install 'maskpro-deploy[tensorrt-rtx]'",
        ),
    )


def _make_lane(name: str, detail: str, lacks: list[str], install: str) -> Ability:
    only_gpu = all("GPU" in item for item in lacks)
    return Ability(
        name=name, ready=not lacks, detail="" if lacks else detail, lacks=tuple(lacks), install="" if only_gpu else install
    )


def describe_place(gpus: tuple[Gpu, ...], providers: tuple[str, ...]) -> str:
    """What runs a bundle here."""
    if not gpus:
        return "on the CPU; engines need an NVIDIA GPU"
    own = ["its engines"] if not missing("native") and not (missing("tensorrt") and missing("tensorrt-rtx")) else []
    cuda = ["the GPU"] if "CUDAExecutionProvider" in providers else []
    return f"on {' and '.join(['the CPU', *cuda, *own])}"


def check_steps(lanes: tuple[Ability, ...], where: str) -> tuple[Ability, ...]:
    """Which steps of the path can run here.

    Args:
        lanes: to engines.
        where: what runs a bundle.
    """
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

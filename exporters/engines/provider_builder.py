"""Building an engine through onnxruntime's TensorRT provider: what serves it later builds it, with the version it is linked with.

The provider takes one profile, builds weakly typed networks (TensorRT may choose fp32 where the graph says fp16) and knows fewer
flags than the library itself. It writes the engine and a file that names it; the engine is taken from there. Only a graph that it
gives to TensorRT as a whole becomes an engine of a bundle.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.backends.onnxruntime_.sessions import check_tensorrt_started, open_graph
from maskpro_deploy.backends.onnxruntime_.tensorrt_provider import graph_options, locate_kept_folder
from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.backends.providers import PROVIDERS, TENSORRT
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, MachineError, MissingExtraError
from maskpro_deploy.exporters.engines.config import BuilderFlags
from maskpro_deploy.exporters.engines.ep_context import OPERATOR
from maskpro_deploy.exporters.engines.kernels import parse_log
from maskpro_deploy.manifest import Graph
from maskpro_deploy.system.peak_memory import peak_rss

LIBRARY = "tensorrt"
_CONTEXT = "engine_ctx.onnx"
_SHOWN_OPERATORS = 5


def check_machine() -> str:
    """The GPU to build for; MissingExtraError if onnxruntime has no TensorRT provider, MachineError without a GPU."""
    linked = onnxruntime_tensorrt()
    if linked is None:
        raise MissingExtraError(
            "--via-onnxruntime needs onnxruntime with its TensorRT provider, which is not installed here.\n"
            "Install it on a machine with an NVIDIA GPU: pip uninstall onnxruntime && "
            "pip install 'maskpro-deploy[gpu,tensorrt]' 'tensorrt<11'"
        )
    gpu = compute_capability()
    if gpu is None:
        raise MachineError(
            f"--via-onnxruntime builds for TensorRT {linked} on an NVIDIA GPU, and there is none here.\n"
            f"Build on the machine that will serve, or use --backend tensorrt-rtx, which builds without a GPU (dense kernels)."
        )
    return gpu


def flag_options(flags: BuilderFlags) -> dict[str, str]:
    """The builder's flags as the provider's options; ConfigError where it has no such option."""
    given = {
        "trt_builder_optimization_level": flags.optimization_level,
        "trt_max_workspace_size": flags.workspace_bytes,
        "trt_auxiliary_streams": flags.aux_streams,
        "trt_engine_hw_compatible": 1 if flags.hardware_compatible == "ampere+" else None,
    }
    refused = {
        "--hardware-compatible same-cc": flags.hardware_compatible == "same-cc",
        "--version-compatible": flags.version_compatible,
        "--weight-streaming": flags.weight_streaming,
        "--refit": flags.refit is not None,
        "--strip-weights": flags.strip_weights,
        "--tiling": flags.tiling is not None,
        "--strict-nans": flags.strict_nans,
    }
    if flag := next((flag for flag, is_given in refused.items() if is_given), None):
        raise ConfigError(f"{flag}: onnxruntime's TensorRT provider has no such option.\nBuild without --via-onnxruntime.")
    return {option: str(value) for option, value in given.items() if value is not None}


def provider_job(
    scratch: Path, graph: Graph, profiles: Sequence[Profile], flags: BuilderFlags, *, sparse: bool
) -> dict[str, str]:
    """The provider's options for one engine; ConfigError for several profiles, or for an option that it does not have."""
    if len(profiles) != 1:
        raise ConfigError(
            f"--via-onnxruntime takes one profile, not {len(profiles)}: onnxruntime uses the first only.\n"
            f"Give --profiles mixed:8x512."
        )
    caches = locate_kept_folder()
    caches.mkdir(parents=True, exist_ok=True)
    context = scratch.resolve() / "provider" / _CONTEXT
    options = graph_options(graph, profiles[0], sparse=sparse, timing_cache=caches, context=context)
    return options | flag_options(flags)


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build an engine in this process (`worker`): its file, and the facts of the build.

    MachineError if the provider does not start here, CheckFailed if it cannot build the graph, or not as a whole.
    """
    context = Path(job["options"]["trt_ep_context_file_path"])
    context.parent.mkdir()
    log = context.with_suffix(".log")
    started = time.monotonic()
    with log.open("wb") as file:  # the provider writes to stderr itself
        os.dup2(file.fileno(), 2)
        _make_session(Path(job["graph"]), job["options"])
    seconds = time.monotonic() - started
    find_engine(context, Path(job["graph"])).replace(job["engine"])
    return build_facts(_read_linked_version(), seconds, log.read_text(encoding="utf-8", errors="replace").splitlines())


def build_facts(
    version: str, seconds: float, messages: Iterable[str], warnings: Sequence[str] = (), inspection: str = ""
) -> dict[str, Any]:
    """What a build tells the process that asked for it; `inspection` is what the finished engine says of its layers."""
    said = parse_log(messages)
    kernels = {"spoke": said.spoke, "eligible": said.eligible, "chosen": said.chosen, "inspection": inspection}
    return {"version": version, "build_s": seconds, "peak_rss_bytes": peak_rss(), "warnings": warnings, **kernels}


def _make_session(graph: Path, options: dict[str, str]) -> None:
    """Make a session, which builds the engine; the session itself is of no use."""
    first, *others = PROVIDERS[TENSORRT].onnxruntime
    try:
        session = open_graph(graph, providers=[(first, options), *others], log_level=0)
    except FormatError as e:
        raise CheckFailed(f"onnxruntime's TensorRT provider could not build the engine: {e}") from e
    check_tensorrt_started(session)


def find_engine(context: Path, graph: Path) -> Path:
    """The engine that the provider's file names; CheckFailed if it names none, or TensorRT did not take the whole graph."""
    if not context.is_file():
        raise CheckFailed(f"onnxruntime gave no part of {graph.name} to TensorRT: it wrote no engine.")
    nodes = list(onnx.load(context, load_external_data=False).graph.node)
    others = [node.op_type for node in nodes if node.op_type != OPERATOR]
    if others or len(nodes) != 1:
        kinds = ", ".join(list(dict.fromkeys(others))[:_SHOWN_OPERATORS]) or "none, but in several parts"
        raise CheckFailed(
            f"onnxruntime gave only a part of {graph.name} to TensorRT; it kept: {kinds}.\n"
            f"Build without --via-onnxruntime, which tells what TensorRT refuses."
        )
    attributes = {a.name: helper.get_attribute_value(a) for a in nodes[0].attribute}
    return context.parent / str(attributes["ep_cache_context"].decode())


def _read_linked_version() -> str:
    """The version of the TensorRT that this process has loaded, such as "10.16.1"."""
    number = ctypes.CDLL(f"libnvinfer.so.{onnxruntime_tensorrt()}").getInferLibVersion()
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"

"""What TensorRT-RTX's plug-in is given: an engine of the bundle by its EPContext file, or the graph and its profile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.onnxruntime_.rtx_plugin import locate_kernels, make_options, read_library_version
from maskpro_deploy.backends.onnxruntime_.sessions import REWRITE_ALL, REWRITE_NOTHING
from maskpro_deploy.backends.onnxruntime_.tensorrt_provider import whole_profile
from maskpro_deploy.backends.profiles import Profile, read_profiles
from maskpro_deploy.backends.providers import RTX
from maskpro_deploy.errors import InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, safe_path
from maskpro_deploy.runtime.sessions.native import check_hash, engines_named, why_not_runnable
from maskpro_deploy.runtime.sessions.tensorrt_lane import why_not_served

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInput:
    """What the plug-in is given."""

    model: Path  # the ONNX file, and the plug-in's options
    options: dict[str, str]
    profile: Profile  # what can be called
    rewrite: str  # how far onnxruntime may rewrite the graph first


def choose_input(bundle: Path, manifest: Manifest, graph: Graph, wanted: str | None = None) -> PluginInput:
    """Choose the engine `wanted` (None for any) of the bundle, or the graph with its profile where no engine fits.

    InputError if there is no engine `wanted`, MachineError if the plug-in cannot run it, FormatError if one is damaged.
    """
    engines = engines_named(manifest, wanted)
    if wanted is not None and not engines:
        raise InputError(f"{bundle} has no engine {wanted}.")
    installed, gpu = read_library_version(), compute_capability() or ""
    reasons = {e.file: why_not_loadable(e, installed, gpu) for e in engines}
    for engine in engines:
        if not reasons[engine.file] and engine.ep_context is not None:
            check_hash(bundle, manifest, engine.file)
            model = check_hash(bundle, manifest, engine.ep_context)
            log.info("the plug-in runs %s", engine.file)
            options = make_options(None, locate_kernels())
            return PluginInput(model=model, options=options, profile=read_profiles(engine)[0], rewrite=REWRITE_NOTHING)
    if wanted is not None:
        raise MachineError(f"TensorRT-RTX's plug-in cannot run that engine: {reasons[engines[0].file]}.")
    profile = whole_profile(manifest.model, graph)
    options = make_options(profile, locate_kernels())
    return PluginInput(model=safe_path(bundle, graph.file), options=options, profile=profile, rewrite=REWRITE_ALL)


def why_not_loadable(engine: EngineFile, installed: str | None, gpu: str) -> str:
    """Why the plug-in, with this version of TensorRT-RTX, cannot run an engine; "" if nothing is known against it."""
    if engine.library != "tensorrt-rtx":
        return f"it is one of {engine.library}, and --provider {RTX} runs those of tensorrt-rtx"
    here = {"tensorrt-rtx": installed} if installed is not None else {}
    # without a GPU, what would be said of one that the engine was built for
    return why_not_runnable(engine, here, gpu or engine.target.split(",")[0]) or why_not_served(engine)

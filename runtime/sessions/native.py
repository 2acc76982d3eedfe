"""Engines in their own library's runtime, without onnxruntime: the one lane for TensorRT 11, and one for 10 and TensorRT-RTX."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.executor import Executor
from maskpro_deploy.backends.profiles import FIRST_KEY
from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.backends.tensorrt_.executor import EngineExecutor
from maskpro_deploy.backends.tensorrt_.library import MODULES, load_library
from maskpro_deploy.errors import MissingExtraError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest
from maskpro_deploy.runtime.sessions.engine_choice import check_hash, choose_engine
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.files import cache_folder

log = logging.getLogger(__name__)

_WARM_UP = 8  # tokens of the prompt that compiles and warms the kernels


def open_native(bundle: Path, manifest: Manifest, wanted: str | None = None) -> GraphSession:
    """Load the engine `wanted` of a bundle, by default the best that can run here.

    Raises:
        InputError: there is no such engine, or it cannot generate.
        FormatError: the engine is damaged.
        MissingExtraError: no library for engines, or no CUDA bindings, are installed.
        MachineError: no GPU, or no engine that can run on it.
    """
    require("native", "running an engine")
    libraries = [name for name in MODULES if not missing(name)]
    if not libraries:
        raise MissingExtraError(
            "running an engine needs tensorrt or tensorrt-rtx, and neither is installed here.\n"
            "Install one with: pip install 'maskpro-deploy[tensorrt]'"
        )
    device = CudaDevice()
    built_with = {engine.library for engine in manifest.engines}
    installed = {name: str(load_library(name).__version__) for name in libraries if name in built_with}
    engine = choose_engine(bundle, manifest, installed, device.compute_capability, wanted)
    file = check_hash(bundle, manifest, engine.file)
    executor = EngineExecutor(engine.library, file, device, cache=_kernel_cache(manifest, engine, device))
    session = GraphSession(manifest.model, engine_graph(manifest.graph, executor), executor, device)
    log.info("%s runs in %s on %s: %s", bundle, session.providers[0], device.name, engine.file)
    session.greedy([0] * min(_WARM_UP, session.shape.max_length - 2), 2)
    executor.save_cache()
    return session


def _kernel_cache(manifest: Manifest, engine: EngineFile, device: CudaDevice) -> Path | None:
    """Where TensorRT-RTX keeps what it compiled for this engine, GPU and version."""
    if engine.library != "tensorrt-rtx":
        return None
    digest = next(f.sha256 for f in manifest.files if f.path == engine.file)
    return cache_folder() / "kernels" / f"{digest[:16]}-{engine.library_version}-{device.compute_capability}.bin"


def engine_graph(graph: Graph, executor: Executor) -> Graph:
    """The graph that an engine was built from, as its inputs show it."""
    if "write_indices" not in executor.tensors:
        return dataclasses.replace(graph, form="cat", length=None)
    return dataclasses.replace(graph, form="static", length=executor.tensors[FIRST_KEY].shape[2])

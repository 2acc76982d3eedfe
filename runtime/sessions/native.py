"""Engines of a bundle: which this machine can run, and why not the others, from the manifest alone; and the one that is run.

It runs in its own library's runtime, without onnxruntime: the one lane for TensorRT 11, and one for 10 and TensorRT-RTX.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda.device import CudaDevice
from maskpro_deploy.backends.executor import Executor
from maskpro_deploy.backends.profiles import FIRST_KEY, engine_form
from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.backends.tensorrt_.executor import EngineExecutor
from maskpro_deploy.backends.tensorrt_.library import MODULES, load_library
from maskpro_deploy.errors import FormatError, InputError, MachineError, MissingExtraError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, safe_path
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.files import cache_folder, sha256_file

log = logging.getLogger(__name__)

_AMPERE = 80
_WARM_UP = 8  # tokens of the prompt that compiles and warms the kernels


def builder_setting(engine: EngineFile, name: str) -> Any:
    """A builder flag of an engine, None if it was not given."""
    flags = engine.settings.get("flags")
    return engine.settings.get(name, flags.get(name) if isinstance(flags, dict) else None)


def why_not_runnable(engine: EngineFile, installed: Mapping[str, str], gpu: str) -> str:
    """Why an engine cannot run here; "" if nothing is known against it.

    `installed` has the versions of the libraries that can be loaded here; `gpu` is the compute capability, such as "sm89".
    """
    if engine.library not in installed:
        return f"it needs {engine.library} {engine.library_version}, which is not installed"
    if builder_setting(engine, "strip_weights"):
        return "its weights were left out (--strip-weights)"
    if builder_setting(engine, "version_compatible"):
        return "it was built with --version-compatible and brings a library of its own, which is not run for safety"
    if not _same_version(engine.library_version, installed[engine.library]):
        return f"it was built with {engine.library} {engine.library_version}, and {installed[engine.library]} is installed"
    targets = re.findall(r"sm\d+", engine.target)
    compatible = builder_setting(engine, "hardware_compatible") == "ampere+" and int(gpu[2:]) >= _AMPERE
    if targets and gpu not in targets and not compatible:
        return f"it was built for {engine.target}, and this GPU is {gpu}"
    return ""


def _same_version(built: str, installed: str) -> bool:
    numbers = [[int(n) for n in re.findall(r"\d+", version)[:4]] for version in (built, installed)]
    known = min(len(n) for n in numbers)  # onnxruntime reports no build number
    return numbers[0][:known] == numbers[1][:known]


def engines_named(manifest: Manifest, wanted: str | None) -> list[EngineFile]:
    """The engines of a bundle that `--engine` names, by path or file name; all of them for None."""
    return [e for e in manifest.engines if wanted in (None, e.file, Path(e.file).name)]


def choose_engine(
    bundle: Path, manifest: Manifest, installed: Mapping[str, str], gpu: str, wanted: str | None = None
) -> EngineFile:
    """The engine to run: sparse before dense, TensorRT before TensorRT-RTX, a cache updated in place before a growing one.

    `installed` and `gpu` are those of `why_not_runnable`; `wanted` is the engine's file, None for any. InputError if the bundle
    has no such engine, MachineError if none can run here.
    """
    engines = engines_named(manifest, wanted)
    if not engines:
        which = f"no engine {wanted}" if wanted is not None else "no engine"
        raise InputError(f"{bundle} has {which}.\nBuild one on this machine: maskpro-deploy build-engine {bundle}")
    reasons = {engine.file: why_not_runnable(engine, installed, gpu) for engine in engines}
    if fitting := [e for e in engines if not reasons[e.file]]:
        return min(fitting, key=_preference)
    listed = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
    raise MachineError(
        f"no engine of {bundle} can run here: {listed}.\nBuild one on this machine: maskpro-deploy build-engine {bundle}"
    )


def _preference(engine: EngineFile) -> tuple[bool, bool, bool, str]:
    return not engine.settings.get("sparse_weights"), engine.library != "tensorrt", engine_form(engine) != "static", engine.file


def check_hash(bundle: Path, manifest: Manifest, file: str) -> Path:
    """The path of a file of the bundle; FormatError if it is damaged: such engines can crash the library that loads them."""
    path = safe_path(bundle, file)
    entry = next((f for f in manifest.files if f.path == file), None)
    if entry is None or not path.is_file() or sha256_file(path) != entry.sha256:
        raise FormatError(
            f"{path} is missing, or differs from its SHA-256 in the manifest: it was changed or damaged.\n"
            f"Build it again: maskpro-deploy build-engine {bundle}"
        )
    return path


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

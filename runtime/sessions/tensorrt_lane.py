"""What onnxruntime's TensorRT provider is given: an engine of the bundle by its EPContext file, or the graph and its profile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda_driver import compute_capability
from maskpro_deploy.backends.elf import onnxruntime_tensorrt
from maskpro_deploy.backends.tensorrt_provider import PROVIDER, Bounds, graph_options, kept_engines, kept_folder, whole_profile
from maskpro_deploy.errors import InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, safe_path
from maskpro_deploy.runtime.sessions.engine_choice import check_hash, engine_form, engine_profiles, unfit
from maskpro_deploy.runtime.sessions.executor import Reach, longest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the provider is given.

    Attributes:
        model: the ONNX file.
        providers: for the session; the options of the first say what the provider may do.
        reach: what can be called.
        optimise: whether onnxruntime may rewrite the graph first.
    """

    model: Path
    providers: tuple[Any, ...]
    reach: Reach
    optimise: bool


def plan(bundle: Path, manifest: Manifest, graph: Graph, others: tuple[str, ...], wanted: str | None = None) -> Served:
    """Choose an engine of the bundle, or the graph with its profile.

    Args:
        bundle: the bundle's folder.
        manifest: its manifest.
        graph: what is run where no engine fits.
        others: the providers behind TensorRT's.
        wanted: an engine's file; None for any.

    Raises:
        InputError: there is no such engine.
        MachineError: the engine that was asked for cannot be run by this onnxruntime; the message says what can.
        FormatError: the engine is damaged.
    """
    linked, gpu = onnxruntime_tensorrt(), compute_capability()
    engines = [e for e in manifest.engines if wanted in (None, e.file, Path(e.file).name)]
    if wanted is not None and not engines:
        raise InputError(f"{bundle} has no engine {wanted}.")
    reasons = {e.file: context_refusal(e, linked, gpu or "") for e in engines}
    for engine in engines:
        if not reasons[engine.file] and engine.ep_context is not None:
            check_hash(bundle, manifest, engine.file)
            reach = _first_reach(engine)
            log.info("onnxruntime runs %s, sequences of up to %d tokens", engine.file, longest([reach])[1])
            model = check_hash(bundle, manifest, engine.ep_context)
            return Served(model=model, providers=((PROVIDER, {"device_id": "0"}), *others), reach=reach, optimise=False)
    told = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
    if wanted is not None:
        raise MachineError(f"onnxruntime cannot run that engine: {told}.")
    if told:
        log.warning("onnxruntime builds an engine of its own, because it cannot run the bundle's: %s", told)
    bounds = Bounds.within(manifest.model)
    profile = whole_profile(manifest.model, graph, bounds)
    kept = kept_engines(manifest, profile, gpu)
    kept.mkdir(parents=True, exist_ok=True)
    if not any(kept.glob("*.engine")):
        log.warning("the first start builds an engine, which takes minutes; it is kept in %s", kept)
    options = graph_options(graph, profile, sparse=manifest.sparsity == "2:4", timing_cache=kept_folder(), kept=kept)
    reach = Reach.of({name: (tuple(a), tuple(b), tuple(c)) for name, (a, b, c) in profile.items()}, None)
    return Served(model=safe_path(bundle, graph.file), providers=((PROVIDER, options), *others), reach=reach, optimise=True)


def context_refusal(engine: EngineFile, linked: int | None, gpu: str) -> str:
    """Why onnxruntime cannot run an engine of a bundle; "" if nothing is known against it.

    Args:
        engine: as the manifest describes it.
        linked: the major version of TensorRT that onnxruntime is linked with; None if that is not known.
        gpu: the GPU's compute capability; "" if there is none.
    """
    if engine.library != "tensorrt":
        return f"it is one of {engine.library}: serve it with --provider trt-native"
    major = engine.library_version.split(".")[0]
    if linked is not None and str(linked) != major:
        return (
            f"onnxruntime here is built for TensorRT {linked}, and the engine is one of TensorRT {engine.library_version}: "
            f"serve it with --provider trt-native, or build it with 'tensorrt<{linked + 1}'"
        )
    if reason := unfit(engine, {"tensorrt": engine.library_version}, gpu) if gpu else "":
        return reason
    if engine_form(engine) != "cat":
        return "its cache has a fixed length: serve it with --provider trt-native"
    if engine.ep_context is None:
        return "it has no EPContext file: build it again"
    if not longest([_first_reach(engine)])[0]:
        return (
            "onnxruntime uses an engine's first profile only, and that one does not decode: build it with --profiles mixed:8x512"
        )
    return ""


def _first_reach(engine: EngineFile) -> Reach:
    return Reach.of(engine_profiles(engine)[0], None)

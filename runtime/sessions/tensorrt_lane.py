"""What onnxruntime's TensorRT provider is given: an engine of the bundle by its EPContext file, or the graph and its profile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.backends.onnxruntime_ import tensorrt_provider
from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.backends.onnxruntime_.sessions import REWRITE_ALL, REWRITE_NOTHING
from maskpro_deploy.backends.profiles import Profile, ProfileCoverage, ServingBounds, engine_form, read_profiles, serving_bounds
from maskpro_deploy.backends.providers import NATIVE, PROVIDERS, TENSORRT
from maskpro_deploy.errors import InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, safe_path
from maskpro_deploy.runtime.sessions.native import check_hash, engines_named, why_not_runnable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderInput:
    """What the provider is given."""

    model: Path  # the ONNX file, and the provider's options
    options: dict[str, str]
    profile: Profile  # what can be called
    rewrite: str  # how far onnxruntime may rewrite the graph first

    @property
    def providers(self) -> tuple[Any, ...]:
        """For the session: the provider with its options, then those behind it."""
        first, *others = PROVIDERS[TENSORRT].onnxruntime
        return ((first, self.options), *others)


def choose_input(bundle: Path, manifest: Manifest, graph: Graph, wanted: str | None = None) -> ProviderInput:
    """Choose the engine `wanted` (None for any) of the bundle, or the graph with its profile where no engine fits.

    InputError if there is no engine `wanted`, MachineError if this onnxruntime cannot run it, FormatError if one is damaged.
    """
    linked, gpu = onnxruntime_tensorrt(), compute_capability()
    engines = engines_named(manifest, wanted)
    if wanted is not None and not engines:
        raise InputError(f"{bundle} has no engine {wanted}.")
    reasons = {e.file: why_not_loadable(e, linked, gpu or "") for e in engines}
    for engine in engines:
        if not reasons[engine.file] and engine.ep_context is not None:
            check_hash(bundle, manifest, engine.file)
            model = check_hash(bundle, manifest, engine.ep_context)
            profile = read_profiles(engine)[0]
            log.info("onnxruntime runs %s, sequences of up to %d tokens", engine.file, _bounds_of(profile).length)
            return ProviderInput(model=model, options={"device_id": "0"}, profile=profile, rewrite=REWRITE_NOTHING)
    listed = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
    if wanted is not None:
        raise MachineError(f"onnxruntime cannot run that engine: {listed}.")
    if listed:
        log.warning("onnxruntime builds an engine of its own, because it cannot run the bundle's: %s", listed)
    return _graph_input(bundle, manifest, graph, gpu)


def _graph_input(bundle: Path, manifest: Manifest, graph: Graph, gpu: str | None) -> ProviderInput:
    """The graph, of which the provider builds an engine that it keeps."""
    profile = tensorrt_provider.whole_profile(manifest.model, graph)
    kept = tensorrt_provider.locate_kept_engines(manifest, profile, gpu)
    kept.mkdir(parents=True, exist_ok=True)
    if not any(kept.glob("*.engine")):
        log.warning("the first start builds an engine, which takes minutes; it is kept in %s", kept)
    options = tensorrt_provider.graph_options(
        graph, profile, sparse=manifest.sparsity == "2:4", timing_cache=tensorrt_provider.locate_kept_folder(), kept=kept
    )
    return ProviderInput(model=safe_path(bundle, graph.file), options=options, profile=profile, rewrite=REWRITE_ALL)


def why_not_loadable(engine: EngineFile, linked: int | None, gpu: str) -> str:
    """Why onnxruntime, linked with this major version of TensorRT, cannot run an engine; "" if nothing is known against it."""
    if engine.library != "tensorrt":
        return f"it is one of {engine.library}: serve it with --provider {NATIVE}"
    if reason := tensorrt_provider.wrong_version_reason(engine, linked):
        return reason
    if reason := why_not_runnable(engine, {"tensorrt": engine.library_version}, gpu) if gpu else "":
        return reason
    return why_not_served(engine)


def why_not_served(engine: EngineFile) -> str:
    """What is against an engine in any of onnxruntime's providers, whatever is installed; "" if nothing is."""
    if engine_form(engine) != "cat":
        return f"its cache has a fixed length: serve it with --provider {NATIVE}"
    if engine.ep_context is None:
        return "it has no EPContext file: build it again"
    if not _bounds_of(read_profiles(engine)[0]).rows:
        return (
            "onnxruntime uses an engine's first profile only, and that one does not decode: build it with --profiles mixed:8x512"
        )
    return ""


def _bounds_of(profile: Profile) -> ServingBounds:
    return serving_bounds([ProfileCoverage.of(profile)])

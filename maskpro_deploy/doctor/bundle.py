"""`maskpro-deploy doctor BUNDLE`: which graphs and engines of a bundle can run on this machine, and why not the others."""

from __future__ import annotations

from pathlib import Path

from maskpro_deploy.backends.onnxruntime_.linked_libraries import onnxruntime_tensorrt
from maskpro_deploy.backends.onnxruntime_.rtx_plugin import EXTRA as RTX_EXTRA
from maskpro_deploy.backends.onnxruntime_.rtx_plugin import read_library_version
from maskpro_deploy.backends.providers import RTX
from maskpro_deploy.cache_forms import cache_form
from maskpro_deploy.doctor.abilities import Ability, version
from maskpro_deploy.doctor.machine import Diagnosis
from maskpro_deploy.errors import FormatError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest
from maskpro_deploy.runtime.sessions import rtx_lane
from maskpro_deploy.runtime.sessions.native import check_hash, why_not_runnable
from maskpro_deploy.runtime.sessions.tensorrt_lane import why_not_loadable
from maskpro_deploy.system.extras import missing

_NO_GPU = "an NVIDIA GPU"
_TENSORRT = "TensorrtExecutionProvider"
_GPU_LANES = {"cuda": "CUDAExecutionProvider", "tensorrt": _TENSORRT}


def examine_bundle(bundle: Path, diagnosis: Diagnosis) -> tuple[Ability, ...]:
    """What can be served of a bundle here: its graphs, then its engines (each of them is read, to see that it is whole).

    Raises:
        InputError: it is not a bundle.
        FormatError: its manifest or a file other than an engine is damaged.
    """
    manifest = Manifest.load(bundle, engines=False)
    graphs = [_check_graph(graph, diagnosis) for graph in (manifest.graph, *manifest.siblings)]
    return (*graphs, *(_check_engine(bundle, manifest, engine, diagnosis) for engine in manifest.engines))


def _check_graph(graph: Graph, diagnosis: Diagnosis) -> Ability:
    """A graph runs in onnxruntime; on a GPU in some forms of the cache only."""
    name = f"{graph.file} ({graph.form}, {graph.quantization or graph.dtype})"
    if missing("cpu"):
        return Ability(name=name, ready=False, lacks=("onnxruntime",), install="pip install 'maskpro-deploy[cpu]'")
    lanes = [] if graph.dtype == "bf16" else ["--provider cpu"]
    if cache_form(graph.form).onnxruntime_gpu and diagnosis.gpus and graph.dtype != "bf16":
        needs = " (needs cuda-bindings: pip install 'maskpro-deploy[gpu]')" if missing("native") else ""  # holds the cache
        lanes += [f"--provider {lane}{needs}" for lane in _GPU_LANES if _GPU_LANES[lane] in diagnosis.providers]
        lanes += [] if missing(RTX_EXTRA) else [f"--provider {RTX}"]
    lacks = () if lanes else ("kernels for bf16: export it with --dtype fp16 for a GPU, or build an engine",)
    return Ability(name=name, ready=bool(lanes), detail=", ".join(lanes), lacks=lacks)


def _check_engine(bundle: Path, manifest: Manifest, engine: EngineFile, diagnosis: Diagnosis) -> Ability:
    """An engine runs in its own library, or, if it is TensorRT's, in onnxruntime's provider."""
    name = f"{engine.file} ({engine.library} {engine.library_version}, {engine.target})"
    try:
        check_hash(bundle, manifest, engine.file)
    except FormatError:
        damage = "the bytes that the manifest names: it was changed or damaged"
        return Ability(name=name, ready=False, lacks=(damage,), install=f"maskpro-deploy build-engine {bundle}")
    gpu = f"sm{diagnosis.gpus[0].compute_capability.replace('.', '')}" if diagnosis.gpus else ""
    reasons = {
        "trt-native": _native_lacks(engine, gpu),
        "tensorrt": _provider_lacks(engine, gpu, diagnosis),
        RTX: _plugin_lacks(engine, gpu),
    }
    if ready := [f"--provider {lane}" for lane, why in reasons.items() if not why]:
        return Ability(name=name, ready=True, detail=", ".join(ready))
    del reasons[RTX if engine.library == "tensorrt" else "tensorrt"]
    lacks = tuple(f"for --provider {lane}: {', '.join(why)}" for lane, why in reasons.items())
    return Ability(name=name, ready=False, lacks=lacks)


def _native_lacks(engine: EngineFile, gpu: str) -> list[str]:
    lacks = [] if gpu else [_NO_GPU]
    lacks += missing("native")
    here = version(engine.library)
    installed = {engine.library: here} if here is not None else {}
    # without a GPU, what would be said of one that the engine was built for
    if reason := why_not_runnable(engine, installed, gpu or engine.target.split(",")[0]):
        lacks.append(reason)
    return lacks


def _plugin_lacks(engine: EngineFile, gpu: str) -> list[str]:
    lacks = [] if gpu else [_NO_GPU]
    if missing(RTX_EXTRA):
        lacks.append(f"the extra {RTX_EXTRA}")
    elif reason := rtx_lane.why_not_loadable(engine, read_library_version(), gpu):
        lacks.append(reason)
    return lacks


def _provider_lacks(engine: EngineFile, gpu: str, diagnosis: Diagnosis) -> list[str]:
    lacks = [] if gpu else [_NO_GPU]
    if _TENSORRT not in diagnosis.providers:
        lacks.append("onnxruntime-gpu")
    if reason := why_not_loadable(engine, onnxruntime_tensorrt(), gpu):
        lacks.append(reason)
    return lacks

"""Options of onnxruntime's TensorRT provider: for building an engine of a graph, and for running one.

The provider builds an engine for each graph that it is given, for the shapes that its profile covers, and keeps it in a folder.
Three things follow. Every varying input needs its smallest, best and largest shape, else the engine is built again, for minutes,
with each new shape. It uses the first profile of an engine only, so one profile has to cover prompts and single tokens. And the
provider names a kept engine by the graph alone, so the folder has to be another one for other weights, shapes or versions.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from maskpro_deploy.backends.profiles import DEFAULT_BATCH, DEFAULT_LENGTH, DEFAULT_PREFILL, Profile, make_profile
from maskpro_deploy.cache_forms import DEFAULT_FORM
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.manifest import EngineFile, Graph, Manifest, ModelShape
from maskpro_deploy.system.files import cache_folder

# packages that bring libnvinfer
_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-libs", "tensorrt-cu12-libs")


def whole_profile(
    model: ModelShape, graph: Graph, batch: int = DEFAULT_BATCH, new: int = DEFAULT_PREFILL, length: int = DEFAULT_LENGTH
) -> Profile:
    """One profile for prompts and for single tokens, over an empty or a filled cache of the `cat` form (ConfigError for others).

    It takes up to `batch` rows, `new` tokens of each in one call, and `length` tokens of a row, no more than the model does.
    """
    if graph.form != DEFAULT_FORM:
        raise ConfigError(
            f"onnxruntime's TensorRT provider takes the {DEFAULT_FORM} form here, not {graph.form}.\nGive --form {DEFAULT_FORM}."
        )
    length = min(model.max_length, length)
    new = min(new, length)
    # bounds that are beyond the model together are allowed, no call is
    return make_profile(graph, model, ((1, 1, 0), (1, new, 0), (batch, new, length - 1)))


def wrong_version_reason(engine: EngineFile, linked: int | None) -> str:
    """Why onnxruntime cannot load an engine of this version of TensorRT; "" if it can, as far as is known.

    `linked` is the major version that onnxruntime was linked with; None if that is not known.
    """
    if linked is None or str(linked) == engine.library_version.split(".")[0]:
        return ""
    return (
        f"onnxruntime here is built for TensorRT {linked} and cannot load an engine of TensorRT {engine.library_version}: "
        f"serve it with --provider trt-native, or build it with 'tensorrt<{linked + 1}'"
    )


def graph_options(
    graph: Graph, profile: Profile, *, sparse: bool, timing_cache: Path, kept: Path | None = None, context: Path | None = None
) -> dict[str, str]:
    """Options for building an engine of a graph, with or without sparse kernels, and measured kernel times in `timing_cache`.

    The provider builds weakly typed networks, in which TensorRT chooses the precision: the graph's own type is what is allowed
    next to fp32. Engines go to the folder `kept`, where the next session finds them; or next to an EPContext file, `context`.
    """
    options = {
        "device_id": "0",
        "trt_sparsity_enable": str(int(sparse)),
        "trt_fp16_enable": str(int(graph.dtype == "fp16")),
        "trt_bf16_enable": str(int(graph.dtype == "bf16")),
        "trt_layer_norm_fp32_fallback": str(int(graph.dtype != "fp32")),
        "trt_min_subgraph_size": "1",
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(timing_cache),
        "trt_engine_cache_enable": "1",
    }
    for i, which in enumerate(("min", "opt", "max")):
        shapes = ((name, at[i]) for name, at in profile.items())
        options[f"trt_profile_{which}_shapes"] = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes)
    if context is not None:  # the engine lands next to it, and its path in it is relative
        return options | {
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(context),
            "trt_ep_context_embed_mode": "0",
            "trt_detailed_build_log": "1",
        }
    return options | {"trt_engine_cache_path": str(kept)} if kept is not None else options


def locate_kept_engines(manifest: Manifest, profile: Profile, gpu: str | None) -> Path:
    """The folder for engines that the provider builds of this very graph, with these shapes, here."""
    graph = manifest.graph.file
    files = {f.path: f.sha256 for f in manifest.files if f.path.startswith(graph)}
    versions = [_read_installed_version(package) for package in ("onnxruntime-gpu", *_PACKAGES)]
    depends = [files, profile, gpu, *versions]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return locate_kept_folder() / key[:16]


def locate_kept_folder() -> Path:
    """Where kernel times are kept, and engines below it."""
    return cache_folder() / "onnxruntime-tensorrt"


def _read_installed_version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None

"""Options of onnxruntime's TensorRT provider: for building an engine of a graph, and for running one.

The provider builds an engine for each graph that it is given, for the shapes that its profile covers, and keeps it in a folder.
Three things follow. Every varying input needs its smallest, best and largest shape, else the engine is built again, for minutes,
with each new shape. It uses the first profile of an engine only, so one profile has to cover prompts and single tokens. And the
provider names a kept engine by the graph alone, so the folder has to be another one for other weights, shapes or versions.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `H` key/value heads, `D` head size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from maskpro_deploy.cache_forms import DEFAULT_FORM
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.manifest import Graph, Manifest, ModelShape
from maskpro_deploy.system.files import cache_folder

PROVIDER = "TensorrtExecutionProvider"
DEFAULT_BATCH, DEFAULT_LENGTH, DEFAULT_NEW = 8, 2048, 512
# packages that bring libnvinfer
_PACKAGES = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-libs", "tensorrt-cu12-libs")

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Sequence[int], Sequence[int], Sequence[int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the one profile covers: the most rows, new tokens in one call, and tokens of a row.

    Raises:
        ConfigError: there is no such call.
    """

    batch: int = DEFAULT_BATCH
    new: int = DEFAULT_NEW
    length: int = DEFAULT_LENGTH

    def __post_init__(self) -> None:
        if self.batch < 1 or not 1 <= self.new <= self.length:
            raise ConfigError(f"no profile: batch {self.batch}, {self.new} new tokens, length {self.length}.")

    @classmethod
    def within(cls, model: ModelShape, batch: int = DEFAULT_BATCH, length: int | None = None) -> Bounds:
        """The defaults, no larger than the model."""
        length = min(model.max_length, length or DEFAULT_LENGTH)
        return cls(batch=batch, new=min(DEFAULT_NEW, length), length=length)


def whole_profile(model: ModelShape, graph: Graph, bounds: Bounds) -> Profile:
    """One profile for prompts and for single tokens, over an empty or a filled cache of the `cat` form.

    Raises:
        ConfigError: the graph has another form.
    """
    if graph.form != DEFAULT_FORM:
        raise ConfigError(
            f"onnxruntime's TensorRT provider takes the {DEFAULT_FORM} form here, not {graph.form}.\nGive --form {DEFAULT_FORM}."
        )
    # (B, S, P): bounds that are beyond the model together are allowed, no call is
    at = ((1, 1, 0), (1, bounds.new, 0), (bounds.batch, bounds.new, bounds.length - 1))
    tokens = [(b, s) for b, s, _ in at]
    cache = [(b, model.num_kv_heads, p, model.head_dim) for b, _, p in at]
    shapes: dict[str, Sequence[Shape]] = {
        "input_ids": tokens,
        "attention_mask": [(b, s + p) for b, s, p in at],
        "position_ids": tokens,
    }
    for layer in range(model.num_layers):
        shapes |= {f"past_key_values.{layer}.key": cache, f"past_key_values.{layer}.value": cache}
    return {name: (s[0], s[1], s[2]) for name, s in shapes.items()}


def graph_options(
    graph: Graph, profile: Profile, *, sparse: bool, timing_cache: Path, kept: Path | None = None, context: Path | None = None
) -> dict[str, str]:
    """Options for building an engine of a graph.

    The provider builds weakly typed networks, in which TensorRT chooses the precision: the graph's own type is what is allowed
    besides fp32.

    Args:
        graph: what is built.
        profile: the shapes to build for.
        sparse: let the builder use sparse kernels.
        timing_cache: folder of measured kernel times.
        kept: folder of engines, to be found again by the next session.
        context: write an EPContext file here, and the engine beside it, instead.
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
    if context is not None:  # the engine lands beside it, and its path in it is relative
        return options | {
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(context),
            "trt_ep_context_embed_mode": "0",
            "trt_detailed_build_log": "1",
        }
    return options | {"trt_engine_cache_path": str(kept)} if kept is not None else options


def kept_engines(manifest: Manifest, profile: Profile, gpu: str | None) -> Path:
    """The folder for engines that the provider builds of this very graph, with these shapes, here."""
    graph = manifest.graph.file
    files = {f.path: f.sha256 for f in manifest.files if f.path.startswith(graph)}
    depends = [files, profile, gpu, _version("onnxruntime-gpu"), *(_version(package) for package in _PACKAGES)]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return kept_folder() / key[:16]


def kept_folder() -> Path:
    """Where kernel times are kept, and engines below it."""
    return cache_folder() / "onnxruntime-tensorrt"


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None

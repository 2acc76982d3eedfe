"""From bundle to engine: check what goes in, build in a process of its own, describe what came out.

The engine lands in `engines/` of the bundle under a name that holds its cache key (hash of graph, weights, settings, library
version and target); its report lies beside it. The manifest learns of both last: an interrupted build leaves the bundle
as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from maskpro_deploy.cuda_driver import compute_capability
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, MissingExtraError
from maskpro_deploy.exporters.engine_process import build_in_process
from maskpro_deploy.exporters.engine_report import EngineReport, layer_rows, sentence
from maskpro_deploy.exporters.engine_store import ENGINES, install, reusable
from maskpro_deploy.exporters.ep_context import context_model, wrapper_file
from maskpro_deploy.exporters.graph_weights import MatMulWeight, matmul_weights
from maskpro_deploy.exporters.proof import count_groups
from maskpro_deploy.exporters.settings import EngineConfig
from maskpro_deploy.exporters.trt_library import Profile
from maskpro_deploy.extras import missing
from maskpro_deploy.files import disk_errors
from maskpro_deploy.manifest import EngineFile, Manifest, safe_path
from maskpro_deploy.progress import SILENT, Progress

_DEFAULT_LENGTH, _DEFAULT_PREFILL = 2048, 512


def build_engine(bundle: Path, config: EngineConfig | None = None, progress: Progress = SILENT) -> EngineReport:
    """Build a TensorRT engine from a bundle and add it to the bundle.

    Args:
        bundle: the bundle's folder.
        config: pattern, backend, targets, profiles.
        progress: told the library's own steps, where it tells them.

    Returns:
        the report; `reused` if the same engine was there already.

    Raises:
        CheckFailed: the weights do not hold the pattern, or the library refuses the graph.
        ConfigError: a setting does not fit the model or the library.
        FormatError: the bundle is damaged.
        MissingExtraError: no builder library is installed.
        MachineError: the chosen library needs a GPU that is not here, or crashed.
    """
    config = config if config is not None else EngineConfig()
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    graph = safe_path(bundle, manifest.graph.file)
    weights = matmul_weights(graph)
    if not config.dense:
        _prove(bundle, manifest, weights, config)
    shapes = profiles(manifest, config)
    library, target = choose(config)
    settings = _settings(manifest, config, library, target, shapes)
    kind = "dense" if config.dense else "sparse"
    name = "-".join((library, target.replace(",", "-"), manifest.graph.dtype, kind, settings["key"][:12]))
    if (found := reusable(bundle, manifest, name)) is not None:
        return found
    with disk_errors(bundle / ENGINES), tempfile.TemporaryDirectory(prefix=".build-", dir=bundle) as scratch:
        engine, facts = build_in_process(Path(scratch), graph, library, config, shapes, progress)
        rows = layer_rows(weights, manifest.graph.dtype, dense=config.dense, facts=facts)
        entry = EngineFile(
            file=f"{ENGINES}/{name}.engine",
            library=library,
            library_version=facts["version"],
            target=target,
            dtype=manifest.graph.dtype,
            sparse_kernels=sentence(library, rows, dense=config.dense),
            settings=settings,
        )
        entry, wrapper, why_not = _wrapped(entry, graph)
        report = EngineReport(
            engine=entry,
            bytes=engine.stat().st_size,
            reused=False,
            build_s=facts["build_s"],
            peak_rss_bytes=facts["peak_rss_bytes"],
            warnings=tuple(dict.fromkeys([*facts["warnings"], *why_not])),
            layers=rows,
        )
        install(bundle, manifest, engine, report, wrapper)
    return report


def _wrapped(entry: EngineFile, graph: Path) -> tuple[EngineFile, onnx.ModelProto | None, list[str]]:
    """The entry with the wrapper by which onnxruntime serves the engine, or with the reason why there is none."""
    try:
        wrapper = context_model(graph, entry)
    except CheckFailed as e:
        return entry, None, [f"no EPContext file was written: {e}"]
    return dataclasses.replace(entry, ep_context=wrapper_file(entry)), wrapper, []


def _prove(bundle: Path, manifest: Manifest, weights: Sequence[MatMulWeight], config: EngineConfig) -> None:
    """Check that the graph's own bytes hold the pattern in every weight that the manifest lists.

    Raises:
        CheckFailed: the bundle is dense, or a weight does not hold the pattern.
    """
    by_name = {weight.initializer: weight for weight in weights}
    if not manifest.sparse_weights:
        raise CheckFailed(
            f"{bundle} does not hold {config.sparsity}: it is a dense bundle.\n"
            f"Export a sparse checkpoint, or build a dense engine with --dense."
        )
    if manifest.sparsity != str(config.sparsity):
        raise ConfigError(
            f"{bundle} holds {manifest.sparsity}; only {config.sparsity} has sparse tensor cores.\n"
            f"Build a dense engine from it with --dense."
        )
    for listed in manifest.sparse_weights:
        weight = by_name.get(listed.initializer)
        if weight is None:
            raise CheckFailed(f"{bundle}: no MatMul of the graph uses {listed.initializer}, which the manifest lists as sparse.")
        count = count_groups(weight.file, weight.initializer, weight.region, config.sparsity)
        if count.over:
            raise CheckFailed(
                f"{bundle} does not hold {config.sparsity}: {weight.initializer} has {count.over} of {count.groups} groups with "
                f"more than {config.sparsity.n} non-zeros.\nExport it again, or build a dense engine with --dense."
            )


def profiles(manifest: Manifest, config: EngineConfig) -> list[Profile]:
    """Shapes for prefill (many new tokens, with or without a past) and for decode (one new token).

    Raises:
        ConfigError: a bound is beyond the model's.
    """
    model = manifest.model
    length = config.max_length if config.max_length is not None else min(model.max_length, _DEFAULT_LENGTH)
    if length > model.max_length:
        raise ConfigError(f"--max-length {length} is more than the bundle can run: {model.max_length}.")
    new = config.max_prefill if config.max_prefill is not None else min(length, _DEFAULT_PREFILL)
    if new > length:
        raise ConfigError(f"--max-prefill {new} is more than the longest sequence, {length}.")
    batch = config.max_batch
    return [
        _profile(manifest, (1, 1, 0), (1, new, 0), (batch, new, length - new)),
        _profile(manifest, (1, 1, 0), (batch, 1, length // 2), (batch, 1, length - 1)),
    ]


def _profile(manifest: Manifest, *bounds: tuple[int, int, int]) -> Profile:
    """Shapes of all inputs at minimum, optimum and maximum, each given as (batch, new tokens, past tokens)."""
    model = manifest.model
    tokens = [(b, s) for b, s, _ in bounds]
    masks = [(b, s + p) for b, s, p in bounds]
    cache = [(b, model.num_kv_heads, p, model.head_dim) for b, _, p in bounds]
    shapes: dict[str, Sequence[Sequence[int]]] = {"input_ids": tokens, "attention_mask": masks, "position_ids": tokens}
    for layer in range(model.num_layers):
        shapes |= {f"past_key_values.{layer}.key": cache, f"past_key_values.{layer}.value": cache}
    return {name: (at[0], at[1], at[2]) for name, at in shapes.items()}


def choose(config: EngineConfig) -> tuple[str, str]:
    """The library to build with, and the target it builds for.

    Raises:
        MissingExtraError: the library, or with "auto" both, is not installed.
        MachineError: "tensorrt" was asked for, and this machine has no GPU.
    """
    gpu = compute_capability()
    installed = [name for name in ("tensorrt", "tensorrt-rtx") if not missing(name)]
    library = config.backend
    if library == "auto":
        library = "tensorrt" if "tensorrt" in installed and gpu and not config.targets else "tensorrt-rtx"
    if library == "tensorrt" and gpu is None:
        raise MachineError(
            "building with tensorrt needs an NVIDIA GPU and its driver, and there is none here.\n"
            "Build on the machine that will serve, or use --backend tensorrt-rtx, which builds without a GPU (dense kernels)."
        )
    if library not in installed:
        raise MissingExtraError(
            f"building an engine needs {library}, which is not installed here.\n"
            f"Install it with: pip install 'maskpro-deploy[{library}]'"
        )
    if library == "tensorrt":
        return library, gpu or ""
    return library, ",".join(config.targets) or "default"


def _settings(manifest: Manifest, config: EngineConfig, library: str, target: str, shapes: Sequence[Profile]) -> dict[str, Any]:
    """What the engine depends on, and the hash of it all: nothing stale is ever reused."""
    hashes = {entry.path: entry.sha256 for entry in manifest.files}
    settings: dict[str, Any] = {
        "sparse_weights": not config.dense,
        "max_batch": config.max_batch,
        "profiles": {
            kind: {name: at for name, at in shape.items() if not name.startswith("past_key_values.") or ".0.key" in name}
            for kind, shape in zip(("prefill", "decode"), shapes, strict=True)
        },
    }
    files = {path: hashes[path] for path in sorted(hashes) if path.startswith(manifest.graph.file)}
    depends = [settings, files, library, _installed_version(library), target, _driver_part(library)]
    settings = json.loads(json.dumps(settings))  # as the manifest gives it back
    settings["key"] = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return settings


def _installed_version(library: str) -> str:
    """Version of the installed package, without loading it."""
    for package in (library, library.replace("-", "_")):
        with suppress(PackageNotFoundError):
            return version(package)
    return "unknown"


def _driver_part(library: str) -> str:
    """TensorRT builds for the very GPU it finds; TensorRT-RTX does not look for one."""
    return compute_capability() or "" if library == "tensorrt" else ""

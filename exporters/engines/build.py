"""From bundle to engine: check what goes in, build in a process of its own, describe what came out.

The engine lands in `engines/` of the bundle under a name that holds its cache key (hash of graph, weights, settings, library
version and target); its report is next to it. The manifest is changed last: an interrupted build leaves the bundle
as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from maskpro_deploy._version import __version__
from maskpro_deploy.backends.cuda.driver import compute_capability
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, MissingExtraError
from maskpro_deploy.exporters.engines.compare import compare_with_dense
from maskpro_deploy.exporters.engines.config import EngineConfig
from maskpro_deploy.exporters.engines.ep_context import context_model, wrapper_file
from maskpro_deploy.exporters.engines.preflight import Source, count_spoiled, inspect_weights, prove
from maskpro_deploy.exporters.engines.process import build_in_process
from maskpro_deploy.exporters.engines.profiles import buckets_for, describe_profiles, profiles
from maskpro_deploy.exporters.engines.provider_builder import LIBRARY, check_machine, provider_job
from maskpro_deploy.exporters.engines.report import EngineReport, layer_rows, sentence
from maskpro_deploy.exporters.engines.store import install, reusable
from maskpro_deploy.exporters.graph.weights import matmul_weights
from maskpro_deploy.manifest import ENGINES, EngineFile, Graph, Manifest, safe_path
from maskpro_deploy.system.extras import missing, require
from maskpro_deploy.system.files import disk_errors
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.system.working_folder import remove_abandoned, working_folder


def build_engine(bundle: Path, config: EngineConfig | None = None, progress: Progress = SILENT) -> EngineReport:
    """Build a TensorRT engine from a bundle and add it to the bundle; `reused` in the report if it was there already.

    Args:
        bundle: the bundle's folder.
        config: pattern, backend, targets, profiles.
        progress: takes the library's own steps, where it reports them.

    Raises:
        CheckFailed: the weights do not hold the pattern, or the library refuses the graph.
        ConfigError: a setting does not fit the model or the library.
        FormatError: the bundle is damaged.
        MissingExtraError: no builder library is installed.
        MachineError: the chosen library needs a GPU that is not here, or crashed.
    """
    config = config if config is not None else EngineConfig()
    source = open_source(bundle, config)
    for place in (bundle, bundle / ENGINES):
        remove_abandoned(place)
    with disk_errors(bundle / ENGINES), working_folder(bundle, "build") as scratch:
        if not config.compare_dense:
            return _build_one(source, config, scratch, progress)
        return compare_with_dense(source, config, scratch, progress, _build_one)


def open_source(bundle: Path, config: EngineConfig) -> Source:
    """Check everything that can be checked before a library is started; errors as in `build_engine`."""
    manifest = Manifest.load(bundle, engines=False)
    graph = _graph(manifest, config)
    buckets, length = buckets_for(graph, manifest.model, config)
    manifest.check_hashes(bundle, engines=False)
    weights = inspect_weights(manifest, matmul_weights(safe_path(bundle, graph.file)))
    if not config.dense:
        prove(bundle, manifest, weights, config)
    library, target = choose_library(config)
    if library == "tensorrt-rtx" and config.timing_cache is not None:
        raise ConfigError("--timing-cache: tensorrt-rtx times no kernels when it builds, so it has none to keep. Leave it out.")
    if config.compare_dense and compute_capability() is not None:
        require("native", "timing engines (--compare-dense)")
    return Source(bundle, manifest, graph, weights, buckets, length, library, target)


def _graph(manifest: Manifest, config: EngineConfig) -> Graph:
    """The graph of the form that is asked for."""
    if config.form is None:
        return manifest.graph
    graphs = {graph.form: graph for graph in (manifest.graph, *manifest.siblings)}
    if config.form not in graphs:
        forms = ",".join(dict.fromkeys([*graphs, config.form]))
        raise ConfigError(
            f"--form {config.form}: the bundle has no such graph, it has {', '.join(graphs)}.\n"
            f"Export it again with --forms {forms}."
        )
    return graphs[config.form]


def _build_one(source: Source, config: EngineConfig, scratch: Path, progress: Progress) -> EngineReport:
    """Build one engine, or find it."""
    bundle, manifest = source.bundle, source.manifest
    shapes = profiles(manifest, config, source.graph)
    settings = _settings(source, config, describe_profiles(source.buckets, shapes))
    kind = "dense" if config.dense else "sparse"
    parts = (source.library, source.target.replace(",", "-"), source.graph.form, source.graph.dtype, kind, settings["key"][:12])
    name = "-".join(parts)
    if (built_before := reusable(bundle, manifest, name)) is not None:
        return built_before
    is_sparse = not config.dense
    options = provider_job(scratch, source.graph, shapes, config.flags, sparse=is_sparse) if config.via_onnxruntime else None
    engine, facts = build_in_process(scratch, source.path, source.library, config, shapes, progress, options)
    rows = layer_rows(source.weights, dense=config.dense, facts=facts)
    entry = EngineFile(
        file=f"{ENGINES}/{name}.engine",
        library=source.library,
        library_version=facts["version"],
        target=source.target,
        dtype=source.graph.dtype,
        sparse_kernels=sentence(source.library, rows, dense=config.dense),
        settings=settings,
    )
    entry, wrapper, why_not = _add_wrapper(entry, source.path)
    report = EngineReport(
        engine=entry,
        bytes=engine.stat().st_size,
        reused=False,
        build_s=facts["build_s"],
        peak_rss_bytes=facts["peak_rss_bytes"],
        warnings=tuple(dict.fromkeys([*facts["warnings"], *why_not])),
        layers=rows,
        spoiled=count_spoiled(source.weights),
        log_eligible=len(facts["eligible"]) if facts["spoke"] else None,
    )
    install(bundle, manifest, engine, report, wrapper)
    return report


def _add_wrapper(entry: EngineFile, graph: Path) -> tuple[EngineFile, onnx.ModelProto | None, list[str]]:
    """The entry with the wrapper by which onnxruntime serves the engine, or with the reason why there is none."""
    try:
        wrapper = context_model(graph, entry)
    except CheckFailed as e:
        return entry, None, [f"no EPContext file was written: {e}"]
    return dataclasses.replace(entry, ep_context=wrapper_file(entry)), wrapper, []


def choose_library(config: EngineConfig) -> tuple[str, str]:
    """The library to build with, and the target it builds for; errors as in `build_engine`."""
    if config.via_onnxruntime:
        return LIBRARY, check_machine()
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


def _settings(source: Source, config: EngineConfig, profiles: Sequence[Any]) -> dict[str, Any]:
    """What the engine depends on, and the hash of it all: nothing stale is ever reused."""
    hashes = {entry.path: entry.sha256 for entry in source.manifest.files}
    flags = {name: value for name, value in dataclasses.asdict(config.flags).items() if value not in (None, False)}
    settings: dict[str, Any] = {
        "sparse_weights": not config.dense,
        "form": source.graph.form,
        "max_length": source.length,
        "max_batch": max(bucket.most[0] for bucket in source.buckets),
        "flags": flags,
        "hardware_compatibility": flags.get("hardware_compatible") == "ampere+",  # as EPContext has it
        "profiles": profiles,
    }
    if config.via_onnxruntime:
        settings["via_onnxruntime"] = _read_installed_version("onnxruntime-gpu")
    files = {path: hashes[path] for path in (source.graph.file, *_data_files(source))}
    library = source.library
    gpu = (compute_capability() or "") if library == "tensorrt" else ""  # it builds for the very GPU that it finds
    depends = [__version__, settings, files, library, _read_installed_version(library), source.target, gpu]
    settings = json.loads(json.dumps(settings))  # as the manifest gives it back
    settings["key"] = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return settings


def _data_files(source: Source) -> list[str]:
    """Files of the bundle from which the graph takes its weights."""
    model = onnx.load(source.path, load_external_data=False)
    places = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
    return sorted((PurePosixPath(source.graph.file).parent / place).as_posix() for place in places)


def _read_installed_version(library: str) -> str:
    """Version of the installed package, without loading it."""
    for package in (library, library.replace("-", "_")):
        with suppress(PackageNotFoundError):
            return version(package)
    return "unknown"

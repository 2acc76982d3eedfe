"""From bundle to engine: check what goes in, build in a process of its own, describe what came out.

The engine lands in `engines/` of the bundle under a name that holds its cache key (hash of graph, weights, settings, library
version and target); its report lies beside it. The manifest learns of both last: an interrupted build
leaves the bundle as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, MissingExtraError
from maskpro_deploy.exporters.cuda_driver import compute_capability
from maskpro_deploy.exporters.engine_report import EngineReport, LayerRow, layer_rows, sentence
from maskpro_deploy.exporters.engine_worker import ERRORS
from maskpro_deploy.exporters.graph_weights import MatMulWeight, matmul_weights
from maskpro_deploy.exporters.proof import count_groups
from maskpro_deploy.exporters.settings import EngineConfig
from maskpro_deploy.exporters.trt_library import Profile
from maskpro_deploy.extras import missing
from maskpro_deploy.files import atomic_file, disk_errors, read_json, write_json
from maskpro_deploy.manifest import EngineFile, FileEntry, Manifest, file_entry, safe_path
from maskpro_deploy.progress import SILENT, Progress

log = logging.getLogger(__name__)

ENGINES = "engines"
_DEFAULT_LENGTH, _DEFAULT_PREFILL = 2048, 512
_STDERR_TAIL = 300


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
    if (found := _reusable(bundle, manifest, name)) is not None:
        return found
    with disk_errors(bundle / ENGINES), tempfile.TemporaryDirectory(prefix=".build-", dir=bundle) as scratch:
        engine, facts = _build(Path(scratch), graph, library, config, shapes, progress)
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
        report = EngineReport(
            engine=entry,
            bytes=engine.stat().st_size,
            reused=False,
            build_s=facts["build_s"],
            peak_rss_bytes=facts["peak_rss_bytes"],
            warnings=tuple(dict.fromkeys(facts["warnings"])),
            layers=rows,
        )
        _install(bundle, manifest, engine, report)
    return report


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


def _reusable(bundle: Path, manifest: Manifest, name: str) -> EngineReport | None:
    """The report of an engine of that name, if it is there whole (its hash was checked with the bundle's other files)."""
    if not any(e.file == f"{ENGINES}/{name}.engine" for e in manifest.engines):
        return None
    value = read_json(bundle / ENGINES / f"{name}.json")
    log.info("the engine is up to date: same graph, settings and library")
    return EngineReport(
        engine=EngineFile.from_json(value["engine"]),
        bytes=value["bytes"],
        reused=True,
        build_s=value["build_s"],
        peak_rss_bytes=value["peak_rss_bytes"],
        warnings=tuple(value["warnings"]),
        layers=tuple(LayerRow(**{**row, "shape": tuple(row["shape"])}) for row in value["layers"]),
    )


def _build(
    scratch: Path, graph: Path, library: str, config: EngineConfig, shapes: Sequence[Profile], progress: Progress
) -> tuple[Path, dict[str, Any]]:
    """Run the worker process and read its result.

    Raises:
        MaskProError: what the worker reports; MachineError if it died.
    """
    job = {
        "library": library,
        "graph": str(graph.resolve()),
        "engine": str((scratch / "engine").resolve()),
        "result": str((scratch / "result.json").resolve()),
        "profiles": shapes,
        "sparse": not config.dense,
        "targets": config.targets,
        "timing_cache": str(config.timing_cache.resolve()) if config.timing_cache is not None else None,
    }
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    code, stderr = _run_worker(scratch, progress)
    result = scratch / "result.json"
    if code != 0 or not result.is_file():
        ended = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        last = (stderr.strip().splitlines() or ["it left no message"])[-1][-_STDERR_TAIL:]
        raise MachineError(f"the process that runs {library} {ended}; the bundle is unchanged.\nIts last words: {last}")
    facts = json.loads(result.read_text(encoding="utf-8"))
    if "error" in facts:
        raise ERRORS[facts["kind"]](facts["error"])
    progress.update(100, 100)
    return scratch / "engine", facts


def _run_worker(scratch: Path, progress: Progress) -> tuple[int, str]:
    """Run the worker in a process group of its own, which dies with this call. Returns exit code and stderr."""
    command = [sys.executable, "-m", "maskpro_deploy.exporters.engine_worker", str(scratch / "job.json")]
    with (scratch / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                _tell(progress, line)
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        stderr.seek(0)
        return code, stderr.read()


def _tell(progress: Progress, line: str) -> None:
    """Pass one line of the worker on; the libraries print to stdout as well, so other lines are skipped."""
    with suppress(json.JSONDecodeError, KeyError, TypeError):
        step = json.loads(line)
        progress.update(step["percent"], 100, step["phase"])


def _install(bundle: Path, manifest: Manifest, engine: Path, report: EngineReport) -> None:
    """Move the engine and its report into the bundle; the manifest learns of them last, what they replace goes after that."""
    entry = report.engine
    target = safe_path(bundle, entry.file)
    target.parent.mkdir(exist_ok=True)
    with atomic_file(target) as temporary:
        engine.replace(temporary)
    described = target.with_suffix(".json")
    write_json(described, report.to_json())
    same = [e for e in manifest.engines if _purpose(e) == _purpose(entry)]
    gone = {path for e in same for path in (e.file, e.file.removesuffix(".engine") + ".json")}
    added: tuple[FileEntry, ...] = (file_entry(bundle, target), file_entry(bundle, described))
    gone |= {f.path for f in added}
    dataclasses.replace(
        manifest,
        engines=(*(e for e in manifest.engines if e not in same), entry),
        files=tuple(sorted((*(f for f in manifest.files if f.path not in gone), *added), key=lambda f: f.path)),
    ).save(bundle)
    for path in gone - {f.path for f in added}:
        safe_path(bundle, path).unlink(missing_ok=True)


def _purpose(engine: EngineFile) -> tuple[str, str, str, bool]:
    """Engines that agree in this replace one another."""
    return engine.library, engine.target, engine.dtype, bool(engine.settings.get("sparse_weights"))

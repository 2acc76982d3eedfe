"""Engines in a bundle: found again, put in, replaced. The manifest is what counts, and it changes last."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import onnx

from maskpro_deploy.exporters.engine_report import EngineReport, LayerRow
from maskpro_deploy.files import atomic_file, read_json, write_json
from maskpro_deploy.manifest import EngineFile, FileEntry, Manifest, file_entry, safe_path

log = logging.getLogger(__name__)

ENGINES = "engines"


def reusable(bundle: Path, manifest: Manifest, name: str) -> EngineReport | None:
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


def install(bundle: Path, manifest: Manifest, engine: Path, report: EngineReport, wrapper: onnx.ModelProto | None = None) -> None:
    """Move the engine, its wrapper and its report into the bundle.

    The manifest learns of them last; what they replace goes after that.
    """
    entry = report.engine
    target = safe_path(bundle, entry.file)
    target.parent.mkdir(exist_ok=True)
    with atomic_file(target) as temporary:
        engine.replace(temporary)
    described = target.with_suffix(".json")
    write_json(described, report.to_json())
    written = [target, described]
    if wrapper is not None and entry.ep_context is not None:
        written.append(safe_path(bundle, entry.ep_context))
        with atomic_file(written[-1]) as temporary:
            temporary.write_bytes(wrapper.SerializeToString())
    same = [e for e in manifest.engines if _purpose(e) == _purpose(entry)]
    gone = {path for e in same for path in (e.file, e.file.removesuffix(".engine") + ".json", e.ep_context) if path}
    added: tuple[FileEntry, ...] = tuple(file_entry(bundle, path) for path in written)
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

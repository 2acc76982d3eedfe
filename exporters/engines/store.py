"""Engines in a bundle: found again, put in, replaced. The manifest is what counts, and it changes last.

Several builds may end in one bundle at the same time. Each reads the manifest again under the bundle's lock before it adds its
engine, so none is lost.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import onnx

from maskpro_deploy.errors import CheckFailed, MaskProError
from maskpro_deploy.exporters.engines.report import EngineReport
from maskpro_deploy.manifest import ENGINES, EngineFile, FileEntry, Manifest, file_entry, safe_path
from maskpro_deploy.system.files import atomic_file, exclusive, read_json, sha256_file, write_json

log = logging.getLogger(__name__)


def reusable(bundle: Path, manifest: Manifest, name: str) -> EngineReport | None:
    """The report of an engine of that name, if the engine is there and as it was built."""
    entry = next((e for e in manifest.engines if e.file == f"{ENGINES}/{name}.engine"), None)
    if entry is None:
        return None
    files = {f.path: f for f in manifest.files}
    for path in _files_of(entry):
        file = safe_path(bundle, path)
        if path not in files or not file.is_file() or sha256_file(file) != files[path].sha256:
            log.warning("%s is missing or damaged: the engine is built again", path)
            return None
    try:
        report = EngineReport.from_json(read_json(bundle / _report_of(entry)))
    except (KeyError, TypeError, ValueError, MaskProError):
        log.info("another version of this tool wrote the engine's report: the engine is built again")
        return None
    log.info("the engine is up to date: same graph, settings and library")
    return dataclasses.replace(report, reused=True, engine=entry)


def install(bundle: Path, manifest: Manifest, engine: Path, report: EngineReport, wrapper: onnx.ModelProto | None = None) -> None:
    """Move the engine, its wrapper and its report into the bundle; CheckFailed if that was exported since `manifest` was read."""
    entry = report.engine
    target = safe_path(bundle, entry.file)
    with exclusive(bundle):
        now = _same_bundle(bundle, manifest)
        target.parent.mkdir(exist_ok=True)
        with atomic_file(target) as temporary:
            engine.replace(temporary)
        write_json(bundle / _report_of(entry), report.to_json())
        if wrapper is not None and entry.ep_context is not None:
            with atomic_file(safe_path(bundle, entry.ep_context)) as temporary:
                temporary.write_bytes(wrapper.SerializeToString())
        _record(bundle, now, entry)


def update_report(bundle: Path, manifest: Manifest, report: EngineReport) -> None:
    """Replace the report of an engine that is in the bundle; CheckFailed if that was exported again, or the engine is gone."""
    with exclusive(bundle):
        now = _same_bundle(bundle, manifest)
        if report.engine not in now.engines:
            raise CheckFailed(f"{bundle}: {report.engine.file} was replaced by another build meanwhile.\nBuild it again.")
        write_json(bundle / _report_of(report.engine), report.to_json())
        _record(bundle, now, report.engine)


def _same_bundle(bundle: Path, manifest: Manifest) -> Manifest:
    """The manifest as it is now; its engines may be others, its graphs and weights may not."""
    now = Manifest.load(bundle, engines=False)
    if _list_exported_files(now) != _list_exported_files(manifest):
        raise CheckFailed(f"{bundle} was exported again while an engine was built from it.\nBuild the engine again.")
    return now


def _list_exported_files(manifest: Manifest) -> set[FileEntry]:
    return {entry for entry in manifest.files if not entry.path.startswith(f"{ENGINES}/")}


def _record(bundle: Path, manifest: Manifest, entry: EngineFile) -> None:
    """Put the engine into the manifest in the place of those it replaces, and remove their files."""
    replaced = [e for e in manifest.engines if _purpose(e) == _purpose(entry)]
    added = tuple(file_entry(bundle, safe_path(bundle, path)) for path in _files_of(entry))
    kept = {f.path for f in added}
    gone = {path for e in replaced for path in _files_of(e)}
    dataclasses.replace(
        manifest,
        engines=(*(e for e in manifest.engines if e not in replaced), entry),
        files=tuple(sorted((*(f for f in manifest.files if f.path not in gone | kept), *added), key=lambda f: f.path)),
    ).save(bundle)
    for path in gone - kept:
        safe_path(bundle, path).unlink(missing_ok=True)


def _report_of(engine: EngineFile) -> str:
    return engine.file.removesuffix(".engine") + ".json"


def _files_of(engine: EngineFile) -> list[str]:
    return [engine.file, _report_of(engine), *([engine.ep_context] if engine.ep_context else [])]


def _purpose(engine: EngineFile) -> tuple[str, str, str, str, bool]:
    """Engines that agree in this replace one another."""
    settings = engine.settings
    return engine.library, engine.target, engine.dtype, settings.get("form", "cat"), bool(settings.get("sparse_weights"))

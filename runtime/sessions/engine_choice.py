"""Which engine of a bundle this machine can run, and why not the others: decided from the manifest, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.profiles import engine_form
from maskpro_deploy.errors import FormatError, InputError, MachineError
from maskpro_deploy.manifest import EngineFile, Manifest, safe_path
from maskpro_deploy.system.files import sha256_file

_AMPERE = 80


def builder_setting(engine: EngineFile, name: str) -> Any:
    """A builder flag of an engine, None if it was not given."""
    flags = engine.settings.get("flags")
    return engine.settings.get(name, flags.get(name) if isinstance(flags, dict) else None)


def why_not_runnable(engine: EngineFile, installed: Mapping[str, str], gpu: str) -> str:
    """Why an engine cannot run here; "" if nothing is known against it.

    Args:
        engine: as the manifest describes it.
        installed: library -> version, of those that can be loaded here.
        gpu: the GPU's compute capability, such as "sm89".
    """
    if engine.library not in installed:
        return f"it needs {engine.library} {engine.library_version}, which is not installed"
    if builder_setting(engine, "strip_weights"):
        return "its weights were left out (--strip-weights)"
    if builder_setting(engine, "version_compatible"):
        return "it was built with --version-compatible and brings a library of its own, which is not run for safety"
    if not _same_version(engine.library_version, installed[engine.library]):
        return f"it was built with {engine.library} {engine.library_version}, and {installed[engine.library]} is installed"
    targets = re.findall(r"sm\d+", engine.target)
    compatible = builder_setting(engine, "hardware_compatible") == "ampere+" and int(gpu[2:]) >= _AMPERE
    if targets and gpu not in targets and not compatible:
        return f"it was built for {engine.target}, and this GPU is {gpu}"
    return ""


def _same_version(built: str, installed: str) -> bool:
    numbers = [[int(n) for n in re.findall(r"\d+", version)[:4]] for version in (built, installed)]
    known = min(len(n) for n in numbers)  # onnxruntime reports no build number
    return numbers[0][:known] == numbers[1][:known]


def engines_named(manifest: Manifest, wanted: str | None) -> list[EngineFile]:
    """The engines of a bundle that `--engine` names, by path or file name; all of them for None."""
    return [e for e in manifest.engines if wanted in (None, e.file, Path(e.file).name)]


def choose_engine(
    bundle: Path, manifest: Manifest, installed: Mapping[str, str], gpu: str, wanted: str | None = None
) -> EngineFile:
    """The engine to run: sparse before dense, TensorRT before TensorRT-RTX, a cache updated in place before a growing one.

    `installed` and `gpu` are those of `why_not_runnable`; `wanted` is the engine's file, None for any.

    Raises:
        InputError: the bundle has no engine, or not that one.
        MachineError: none of them can run here; the message says why, and what to do.
    """
    engines = engines_named(manifest, wanted)
    if not engines:
        which = f"no engine {wanted}" if wanted is not None else "no engine"
        raise InputError(f"{bundle} has {which}.\nBuild one on this machine: maskpro-deploy build-engine {bundle}")
    reasons = {engine.file: why_not_runnable(engine, installed, gpu) for engine in engines}
    if fitting := [e for e in engines if not reasons[e.file]]:
        return min(fitting, key=_preference)
    listed = "; ".join(f"{file}: {reason}" for file, reason in reasons.items())
    raise MachineError(
        f"no engine of {bundle} can run here: {listed}.\nBuild one on this machine: maskpro-deploy build-engine {bundle}"
    )


def _preference(engine: EngineFile) -> tuple[bool, bool, bool, str]:
    return not engine.settings.get("sparse_weights"), engine.library != "tensorrt", engine_form(engine) != "static", engine.file


def check_hash(bundle: Path, manifest: Manifest, file: str) -> Path:
    """The path of a file of the bundle, which is what the manifest says: damaged engines can crash the library that loads them.

    Raises:
        FormatError: it was changed or damaged, or is not listed.
    """
    path = safe_path(bundle, file)
    entry = next((f for f in manifest.files if f.path == file), None)
    if entry is None or not path.is_file() or sha256_file(path) != entry.sha256:
        raise FormatError(
            f"{path} is missing, or differs from its SHA-256 in the manifest: it was changed or damaged.\n"
            f"Build it again: maskpro-deploy build-engine {bundle}"
        )
    return path

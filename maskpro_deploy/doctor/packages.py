"""Packages: which are installed, whether the base works, and which extras are complete.

Versions come from package metadata, so that nothing heavy is imported; only the base packages are, since they must work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module, metadata

from maskpro_deploy.errors import first_line
from maskpro_deploy.system.extras import EXTRAS, missing

# module -> distribution, of everything the base cannot work without
BASE = {
    "click": "click",
    "ml_dtypes": "ml-dtypes",
    "numpy": "numpy",
    "onnx": "onnx",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
}
_DISTRIBUTIONS = {"mobius": "mobius-onnx"}  # modules whose distribution has another name


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """Something that works here or does not: an extra, a TensorRT lane, a step.

    Attributes:
        name: what it is.
        ready: whether it works.
        detail: versions, or what is there.
        lacks: what is missing, in words; empty if ready.
        install: the command that fixes it, if a command can.
    """

    name: str
    ready: bool
    detail: str = ""
    lacks: tuple[str, ...] = ()
    install: str = ""


def version(distribution: str) -> str | None:
    """The installed version of a distribution."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def lower_bound(distribution: str) -> str | None:
    """The lowest version of a distribution that our own metadata accepts."""
    try:
        requirements = metadata.requires("maskpro-deploy") or []
    except metadata.PackageNotFoundError:
        return None
    matches = (re.match(rf"{re.escape(distribution)}\s*>=\s*([\d.]+)", r) for r in requirements)
    return next((m[1] for m in matches if m), None)


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: "11.4.0.dev1" -> (11, 4, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def check_base(module: str, distribution: str) -> Ability:
    """A package that the base needs: it must import, in the version that our own metadata asks for."""
    command = "pip install --upgrade maskpro-deploy"
    try:
        import_module(module)
    except Exception as e:  # a broken installation raises anything
        return Ability(name=distribution, ready=False, lacks=(f"does not import: {first_line(e)}",), install=command)
    installed, lowest = version(distribution) or "?", lower_bound(distribution)
    if lowest is not None and version_numbers(installed) < version_numbers(lowest):
        return Ability(name=distribution, ready=False, detail=installed, lacks=(f"is older than {lowest}",), install=command)
    return Ability(name=distribution, ready=True, detail=installed)


def check_extra(name: str) -> Ability:
    """Whether the packages of an extra are installed."""
    absent = missing(name)
    if name == "gpu" and version("onnxruntime-gpu") is None:
        return Ability(
            name=name,
            ready=False,
            lacks=("onnxruntime-gpu",),
            install="pip uninstall onnxruntime; pip install 'maskpro-deploy[gpu]'  (both packages bring the same module)",
        )
    versions = [
        f"{m} {v}"
        for m in EXTRAS[name]
        if m not in absent and (v := version(_DISTRIBUTIONS.get(m, m.replace("_", "-")))) is not None
    ]
    install = f"pip install 'maskpro-deploy[{name}]'" if absent else ""
    return Ability(name=name, ready=not absent, detail=", ".join(versions), lacks=tuple(absent), install=install)

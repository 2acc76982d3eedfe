"""`maskpro-deploy doctor`: what this machine can do, and how to get what is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from maskpro_deploy.commands.options import PATH, json_option
from maskpro_deploy.errors import MachineError
from maskpro_deploy.system.output import emit

if TYPE_CHECKING:
    from maskpro_deploy.doctor.machine import Ability, Diagnosis

_GIB = 1 << 30


@click.command("doctor", short_help="Say what this machine can do, and how to get what is missing.")
@click.argument("bundle", type=PATH, required=False)
@json_option
def command(bundle: Path | None, as_json: bool) -> None:
    r"""Say what this machine can do: hardware, packages, TensorRT lanes, and which steps can run here.

    With a BUNDLE, also which of its graphs and engines can be served here, with which --provider, and what the others lack.

    Exit code: 0, or 3 if a package that everything needs is missing, too old or broken.

    \b
    Examples:
      maskpro-deploy doctor
      maskpro-deploy doctor bundle
      maskpro-deploy doctor --json
    """
    from maskpro_deploy.doctor.machine import examine

    diagnosis = examine()
    value, text = diagnosis.to_json(), render(diagnosis)
    if bundle is not None and diagnosis.healthy:
        from maskpro_deploy.doctor.bundle import examine_bundle

        found = examine_bundle(bundle, diagnosis)
        value["bundle"] = [dataclasses.asdict(item) for item in found]
        text = "\n".join([text, f"Bundle {bundle}", *_abilities(found)])
    emit(as_json, value, text)
    if not diagnosis.healthy:
        broken = ", ".join(b.name for b in diagnosis.base if not b.ready)
        raise MachineError(f"the base installation is broken: {broken}.\nMend it with: pip install --upgrade maskpro-deploy")


def render(diagnosis: Diagnosis) -> str:
    """The diagnosis as text, section by section."""
    features = ", ".join(diagnosis.cpu_features) or "no known vector features"
    lines = [
        "Machine",
        f"  CPU     {diagnosis.cpu or 'unknown'}, {diagnosis.cores} cores usable ({features})",
        f"  memory  {_size(diagnosis.memory_bytes)}",
        f"  cache   {diagnosis.cache}, {_size(diagnosis.cache_free_bytes)} free",
        f"  demo    {'the demo model is in the cache' if diagnosis.demo_cached else 'not fetched yet (93 MB, once)'}",
        *_gpus(diagnosis),
        "Software",
        f"  Python  {diagnosis.python}",
        *_abilities(diagnosis.base),
        f"  onnxruntime providers: {', '.join(diagnosis.providers) or 'none'}",
        "Extras",
        *_abilities(diagnosis.extras),
        "TensorRT lanes",
        *_abilities(diagnosis.lanes),
        "Steps",
        *_abilities(diagnosis.steps),
    ]
    return "\n".join(lines)


def _gpus(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.gpus:
        return ["  GPU     none that the NVIDIA driver knows"]
    return [
        f"  GPU     {g.name}, {g.memory}, compute capability {g.compute_capability}, driver {g.driver}, "
        + ("sparse tensor cores" if g.sparse_tensor_cores else "no sparse tensor cores")
        for g in diagnosis.gpus
    ]


def _abilities(items: tuple[Ability, ...]) -> list[str]:
    lines = []
    for item in items:
        lines.append(f"  {'yes' if item.ready else 'no':4}{item.name}" + (f": {item.detail}" if item.detail else ""))
        if item.lacks:
            lines.append(f"      lacks {', '.join(item.lacks)}")
        if item.install:
            lines.append(f"      {item.install}")
    return lines


def _size(size_bytes: int | None) -> str:
    return f"{size_bytes / _GIB:.1f} GiB" if size_bytes is not None else "unknown"

"""A diagnosis as text, section by section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskpro_deploy.doctor.machine import Diagnosis
from maskpro_deploy.doctor.packages import Ability

_GIB = 1 << 30


def render_text(diagnosis: Diagnosis) -> str:
    """The diagnosis as it is printed."""
    features = ", ".join(diagnosis.cpu_features) or "no known vector features"
    lines = [
        "Machine",
        f"  CPU     {diagnosis.cpu or 'unknown'}, {diagnosis.cores} cores usable ({features})",
        f"  memory  {_size(diagnosis.memory_bytes)}",
        f"  cache   {diagnosis.cache}, {_size(diagnosis.cache_free_bytes)} free",
        f"  demo    {'the demo model is in the cache' if diagnosis.demo_cached else 'not fetched yet (93 MB, once)'}",
        *_gpu_lines(diagnosis),
        "Software",
        f"  Python  {diagnosis.python}",
        *_ability_lines(diagnosis.base),
        f"  onnxruntime providers: {', '.join(diagnosis.providers) or 'none'}",
        "Extras",
        *_ability_lines(diagnosis.extras),
        "TensorRT lanes",
        *_ability_lines(diagnosis.lanes),
        "Steps",
        *_ability_lines(diagnosis.steps),
    ]
    return "\n".join(lines)


def _gpu_lines(diagnosis: Diagnosis) -> list[str]:
    if not diagnosis.gpus:
        return ["  GPU     none that the NVIDIA driver knows"]
    return [
        f"  GPU     {g.name}, {g.memory}, compute capability {g.compute_capability}, driver {g.driver}, "
        + ("sparse tensor cores" if g.sparse_tensor_cores else "no sparse tensor cores")
        for g in diagnosis.gpus
    ]


def _ability_lines(items: Sequence[Ability]) -> list[str]:
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


def render_bundle(bundle: Path, abilities: Sequence[Ability]) -> str:
    """What of a bundle can run here, as a further section."""
    return "\n".join([f"Bundle {bundle}", *_ability_lines(abilities)])

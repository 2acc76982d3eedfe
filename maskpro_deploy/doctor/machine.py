"""What this machine can do: hardware, installed packages, TensorRT lanes and steps of the path, and the whole as text."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy._version import __version__
from maskpro_deploy.bench.environment import cpu_model
from maskpro_deploy.doctor.abilities import (
    BASE,
    Ability,
    check_base,
    check_extra,
    check_steps,
    describe_place,
    onnxruntime_providers,
    tensorrt_lanes,
)
from maskpro_deploy.doctor.hardware import Gpu, count_cores, cpu_features, find_gpus, free_bytes, usable_memory_bytes
from maskpro_deploy.models import demo_is_cached
from maskpro_deploy.system.extras import EXTRAS
from maskpro_deploy.system.files import cache_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Everything that is known of this machine."""

    cpu: str | None
    cores: int
    cpu_features: tuple[str, ...]
    memory_bytes: int | None
    cache: Path
    cache_free_bytes: int | None
    demo_cached: bool
    gpus: tuple[Gpu, ...]
    python: str
    base: tuple[Ability, ...]
    extras: tuple[Ability, ...]
    providers: tuple[str, ...]
    lanes: tuple[Ability, ...]
    steps: tuple[Ability, ...]

    @property
    def healthy(self) -> bool:
        return all(b.ready for b in self.base)

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        value["cache"] = str(self.cache)
        value["gpus"] = [dataclasses.asdict(g) | {"sparse_tensor_cores": g.sparse_tensor_cores} for g in self.gpus]
        return {"maskpro_deploy": __version__, "healthy": self.healthy, **value}


def examine() -> Diagnosis:
    """Look at this machine. Takes a second or two; changes nothing."""
    gpus = find_gpus()
    providers = onnxruntime_providers()
    lanes = tensorrt_lanes(gpus, providers)
    cache = cache_folder()
    return Diagnosis(
        cpu=cpu_model(),
        cores=count_cores(),
        cpu_features=cpu_features(Path("/proc/cpuinfo")),
        memory_bytes=usable_memory_bytes(),
        cache=cache,
        cache_free_bytes=free_bytes(cache),
        demo_cached=demo_is_cached(),
        gpus=gpus,
        python=platform.python_version(),
        base=tuple(check_base(module, distribution) for module, distribution in BASE.items()),
        extras=tuple(check_extra(name) for name in EXTRAS),
        providers=providers,
        lanes=lanes,
        steps=check_steps(lanes, describe_place(gpus, providers)),
    )


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

"""What this machine can do: hardware, installed packages, TensorRT lanes, and which steps of the path can run here."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy._version import __version__
from maskpro_deploy.bench.environment import cpu_model
from maskpro_deploy.doctor.abilities import check_steps, describe_place, onnxruntime_providers, tensorrt_lanes
from maskpro_deploy.doctor.hardware import Gpu, count_cores, cpu_features, find_gpus, free_bytes, usable_memory_bytes
from maskpro_deploy.doctor.packages import BASE, Ability, check_base, check_extra
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
        """Whether everything the base needs works."""
        return all(b.ready for b in self.base)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
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

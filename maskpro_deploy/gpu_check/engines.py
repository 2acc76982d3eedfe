"""Items: engines with sparse kernels next to dense ones, whole and layer by layer, on random sparse models in fp16.

`engine-7b` has the widths of a 7B model in a few layers and next to no vocabulary, so that its products are those of the whole
model; prefill is timed at batch x length 4096.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from maskpro_deploy.gpu_check.items import Record, Settings, check_installed
from maskpro_deploy.gpu_check.models import SEVEN_B, SMOL, TINY, LlamaShape, make_bundles, make_sparse_bundle

WIDE = dataclasses.replace(SEVEN_B, name="7b-4-layers", layers=4, vocabulary=1024, length=4096)
_WIDE_PROFILES = "prefill:1x512,1x4096,8x512 decode:1,8,64"


def measure_library(library: str, settings: Settings, record: Record) -> str:
    """Build engines, sparse and dense, report for how many layers the library chose sparse kernels, and time both.

    tensorrt-rtx builds ahead of time and knows dense kernels only.
    """
    _check_library(library, settings)
    line = ""
    shapes = (TINY,) if settings.rehearse else (TINY, SMOL)
    for shape in shapes:
        bundle, _ = make_bundles(shape, settings.scratch)
        line = _build_and_compare(library, shape, bundle, "prefill:1x128,8x128 decode:1,8", settings, record, parts=len(shapes))
    return line


def _check_library(library: str, settings: Settings) -> None:
    check_installed(*((library,) if settings.rehearse else (library, "native")))  # a rehearsal times nothing


def measure_engine_7b(settings: Settings, record: Record) -> str:
    """Build and time a model with the widths of a 7B one, with tensorrt; in a rehearsal a tiny one with what is installed."""
    library = "tensorrt-rtx" if settings.rehearse else "tensorrt"
    _check_library(library, settings)
    shape, profiles = (TINY, "prefill:1x32,4x32 decode:1,4") if settings.rehearse else (WIDE, _WIDE_PROFILES)
    record.put(model=dataclasses.asdict(shape), profiles=profiles)
    bundle = make_sparse_bundle(shape, settings.scratch)
    return _build_and_compare(library, shape, bundle, profiles, settings, record)


def _build_and_compare(
    library: str, shape: LlamaShape, bundle: Path, profiles: str, settings: Settings, record: Record, parts: int = 1
) -> str:
    """Build both engines, time them where there is a GPU, and tell it in a line; every layer is in the figures."""
    from maskpro_deploy.exporters import EngineConfig, build_engine

    config = EngineConfig(
        backend=library,
        profiles=profiles,
        max_length=shape.length,
        compare_dense=True,  # both engines choose among the same measured kernel times
        compare_budget_s=settings.budget_s / parts,
    )
    report = build_engine(bundle, config)
    engines: dict[str, Any] = {**record.figures.get("engines", {}), shape.name: report.to_json()}
    record.put(engines=engines)
    builds = f"built in {report.build_s:.0f} s"
    return f"{shape.name}: {report.engine.sparse_kernels}; {builds}; speed: {report.gain}"

"""Items: engines with sparse kernels beside dense ones, whole and layer by layer, on random sparse models in fp16.

`engine-7b` has the widths of a 7B model in a few layers and next to no vocabulary, so that its products are those of the whole
model; prefill is timed at batch x length 4096.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.deploy import make_bundles
from maskpro_deploy.gpu_check.items import Record, Settings
from maskpro_deploy.gpu_check.models import SEVEN_B, SMOL, TINY, LlamaShape, write_checkpoint, write_sparse
from maskpro_deploy.system.extras import missing

WIDE = dataclasses.replace(SEVEN_B, name="7b-4-layers", layers=4, vocabulary=1024, length=4096)
_WIDE_PROFILES = "prefill:1x512,1x4096,8x512 decode:1,8,64"
_BYTES_OF_A_WEIGHT = 2 * 5  # fp16: two checkpoints, the bundle, two engines
_SPARE_BYTES = 1 << 30


def measure_tensorrt(settings: Settings, record: Record) -> str:
    """Build engines with tensorrt, sparse and dense, tell for how many layers it chose sparse kernels, and time both.

    Raises:
        MachineError: tensorrt or the GPU is missing.
    """
    return _build_small("tensorrt", settings, record)


def measure_tensorrt_rtx(settings: Settings, record: Record) -> str:
    """The same with tensorrt-rtx, which builds ahead of time and knows dense kernels only.

    Raises:
        MachineError: tensorrt-rtx is missing.
    """
    return _build_small("tensorrt-rtx", settings, record)


def _build_small(library: str, settings: Settings, record: Record) -> str:
    _check_installed(library, settings)
    line = ""
    shapes = (TINY,) if settings.rehearse else (TINY, SMOL)
    for shape in shapes:
        bundle, _ = make_bundles(shape, settings.scratch)
        line = _build_and_compare(library, shape, bundle, "prefill:1x128,8x128 decode:1,8", settings, record, parts=len(shapes))
    return line


def measure_engine_7b(settings: Settings, record: Record) -> str:
    """Build and time a model with the widths of a 7B one, with tensorrt; in a rehearsal a tiny one with what is installed.

    Raises:
        MachineError: tensorrt, the GPU or space is missing.
    """
    library = "tensorrt-rtx" if settings.rehearse else "tensorrt"
    _check_installed(library, settings)
    shape, profiles = (TINY, "prefill:1x32,4x32 decode:1,4") if settings.rehearse else (WIDE, _WIDE_PROFILES)
    record.put(model=dataclasses.asdict(shape), profiles=profiles)
    bundle = make_sparse_bundle(shape, settings.scratch)
    return _build_and_compare(library, shape, bundle, profiles, settings, record)


def make_sparse_bundle(shape: LlamaShape, scratch: Path) -> Path:
    """The sparse bundle of a random model in fp16, without a dense twin.

    Raises:
        MachineError: there is not enough space.
    """
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / f"{shape.name}-alone"
    needed, free = _BYTES_OF_A_WEIGHT * shape.weights + _SPARE_BYTES, shutil.disk_usage(scratch).free
    if free < needed:
        raise MachineError(f"{scratch} needs {needed / 1e9:.1f} GB for a {shape.name} model, {free / 1e9:.1f} GB are free")
    shutil.rmtree(folder, ignore_errors=True)  # of an item that was ended
    sparse = write_sparse(write_checkpoint(shape, folder / "dense"), folder / "sparse")
    shutil.rmtree(folder / "dense")
    export(sparse, folder / "bundle", ExportConfig(dtype="fp16"), unverified="a random model for the GPU check")
    shutil.rmtree(sparse)
    return folder / "bundle"


def _check_installed(library: str, settings: Settings) -> None:
    for extra in (library,) if settings.rehearse else (library, "native"):  # a rehearsal times nothing
        if absent := missing(extra):
            raise MachineError(f"{', '.join(absent)} is not installed: pip install 'maskpro-deploy[{extra}]'")


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

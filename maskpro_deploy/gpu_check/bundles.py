"""The bundles that several items use: random models, exported to fp16."""

from __future__ import annotations

import shutil
from pathlib import Path

from maskpro_deploy.errors import MachineError
from maskpro_deploy.gpu_check.models import LlamaShape, write_checkpoint, write_sparse

DTYPE = "fp16"
_WITH_TWIN, _ALONE = 6, 5  # fp16 copies of the model on disk: two checkpoints, the bundles, two engines
_SPARE_BYTES = 1 << 30
_UNVERIFIED = "a random model for the GPU check"


def make_bundles(shape: LlamaShape, scratch: Path) -> tuple[Path, Path]:
    """The sparse bundle of a random model and its dense twin; made by the item that first needs them.

    Raises:
        MachineError: there is not enough space.
    """
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / shape.name
    sparse, dense = folder / "sparse-bundle", folder / "dense-bundle"
    if dense.is_dir():  # the last to be made
        return sparse, dense
    if folder.exists():  # an item was ended while it made them
        shutil.rmtree(folder)
    _check_space(shape, scratch, _WITH_TWIN)
    checkpoint = write_checkpoint(shape, folder / "dense")
    config = ExportConfig(dtype=DTYPE, forms=("cat", "static"))
    export(write_sparse(checkpoint, folder / "sparse"), sparse, config, unverified=_UNVERIFIED)
    export(checkpoint, dense, config, unverified=_UNVERIFIED)
    return sparse, dense


def make_sparse_bundle(shape: LlamaShape, scratch: Path) -> Path:
    """The sparse bundle of a random model in fp16, without a dense twin.

    Raises:
        MachineError: there is not enough space.
    """
    from maskpro_deploy.exporters import ExportConfig, export

    folder = scratch / f"{shape.name}-alone"
    _check_space(shape, scratch, _ALONE)
    shutil.rmtree(folder, ignore_errors=True)  # of an item that was ended
    sparse = write_sparse(write_checkpoint(shape, folder / "dense"), folder / "sparse")
    shutil.rmtree(folder / "dense")
    export(sparse, folder / "bundle", ExportConfig(dtype=DTYPE), unverified=_UNVERIFIED)
    shutil.rmtree(sparse)
    return folder / "bundle"


def _check_space(shape: LlamaShape, scratch: Path, copies: int) -> None:
    needed, free = copies * 2 * shape.weights + _SPARE_BYTES, shutil.disk_usage(scratch).free
    if free < needed:
        raise MachineError(f"{scratch} needs {needed / 1e9:.1f} GB for a {shape.name} model, {free / 1e9:.1f} GB are free")

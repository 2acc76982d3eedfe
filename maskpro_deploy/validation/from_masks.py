"""A mask file: the masks themselves have to hold the pattern."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from maskpro_deploy.masks import FORMAT, MASKS_FILE, MaskSet
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation.arrays import BitArray
from maskpro_deploy.validation.source import Source, Weight


def mask_array(masks: MaskSet, name: str) -> BitArray:
    """One mask as booleans in row-major order, unpacked piece by piece."""
    rows, columns = masks.shapes[name]
    return BitArray(packed=masks.packed[name], size=rows * columns)


class MasksReader:
    """Reader of `masks.safetensors`, known by its name or by the format in its metadata."""

    def accepts(self, path: Path) -> bool:
        if not path.is_file() or path.suffix.lower() != ".safetensors":
            return False
        if path.name == MASKS_FILE:
            return True
        try:
            with safe_open(path, "np") as file:
                return bool((file.metadata() or {}).get("format") == FORMAT)
        except (SafetensorError, OSError):
            return False

    def read(self, path: Path, progress: Progress) -> Source:
        masks = MaskSet.load(path)
        weights = tuple(
            Weight(name=name, shape=masks.shapes[name], dtype="bit", axis=1, data=mask_array(masks, name), listed=True)
            for name in masks
        )
        return Source(kind="masks", weights=weights, num_parameters=masks.num_weights, pattern=masks.pattern, has_list=True)

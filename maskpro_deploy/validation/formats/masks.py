"""A mask file: the masks themselves have to hold the pattern. Masks are read piece by piece, one bit a weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from maskpro_deploy.masks import FORMAT, MASKS_FILE, MaskSet, StoredBits
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import BitArray, FileArray, FlatArray, LoadedArray, MemoryArray, TransposedArray
from maskpro_deploy.validation.source import Reader, Source, Weight


def mask_array(masks: MaskSet, name: str) -> BitArray:
    """One mask as booleans in row-major order."""
    rows, columns = masks.shapes[name]
    return BitArray(base=_make_packed_array(masks, name), size=rows * columns, columns=rows * columns)


def transpose_mask(masks: MaskSet, name: str) -> TransposedArray:
    """One mask as booleans of shape (in, out); its bits are in memory while it is read."""
    rows, columns = masks.shapes[name]
    packed = _make_packed_array(masks, name)
    whole = LoadedArray(lambda: packed.read(0, packed.size), packed.size)
    return TransposedArray(base=whole, rows=rows, columns=columns)


def mask_inputs(masks: MaskSet | None) -> tuple[InputFile, ...]:
    """The file that masks are read from, if they are."""
    return (masks.packed.file,) if masks is not None and isinstance(masks.packed, StoredBits) else ()


def _make_packed_array(masks: MaskSet, name: str) -> FlatArray:
    bits = masks.packed
    if not isinstance(bits, StoredBits):
        return MemoryArray(bits[name])
    place = bits.entries[name]
    return FileArray(file=bits.file, offset=place.offset, dtype=np.dtype(np.uint8), size=place.bytes)


class MasksReader(Reader):
    """Reader of `masks.safetensors`, known by its name or by the format in its metadata."""

    takes, suffix = "a mask file", ".safetensors"

    def accepts(self, path: Path) -> bool:
        if not super().accepts(path):
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
            Weight(
                name=name,
                shape=masks.shapes[name],
                dtype="bit",
                axis=1,
                data=mask_array(masks, name),
                listed=True,
                pattern=masks.patterns.get(name),
            )
            for name in masks
        )
        return Source(
            kind="masks",
            weights=weights,
            num_parameters=masks.num_weights,
            pattern=masks.pattern,
            has_list=True,
            transposable=masks.transposable,
            inputs=mask_inputs(masks),
            left_dense=masks.dense,
        )

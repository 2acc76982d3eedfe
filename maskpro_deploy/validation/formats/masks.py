"""A mask file: the masks themselves have to hold the pattern. Masks are read piece by piece, one bit a weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from maskpro_deploy.masks import FORMAT, MASKS_FILE, read_layout
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import BitArray, FileArray, FlatArray, LoadedArray, TransposedArray
from maskpro_deploy.validation.formats.safetensors_file import read_header
from maskpro_deploy.validation.inputs import InputFile
from maskpro_deploy.validation.source import Source, Weight

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFile:
    """An opened mask file: what `MaskSet` has, with the bits left on the disk.

    Attributes:
        file: where it is.
        pattern: that all masks claim to hold.
        shapes: weight name -> (out, in).
        offsets: weight name -> first byte of its bits.
    """

    file: InputFile
    pattern: NMPattern
    shapes: dict[str, tuple[int, int]]
    offsets: dict[str, int]

    @classmethod
    def open(cls, path: Path) -> MaskFile:
        """Read the head of a mask file.

        Raises:
            FormatError: it is no mask file, or a damaged one.
        """
        file = InputFile(path)
        entries, metadata = read_header(file)
        stored = {name: ("uint8" if e.dtype == "U8" else e.dtype, e.shape) for name, e in entries.items()}
        pattern, shapes = read_layout(path, metadata, stored)
        offsets = {name: e.offset for name, e in entries.items()}
        return cls(file=file, pattern=pattern, shapes=shapes, offsets=offsets)

    def array(self, name: str) -> BitArray:
        """One mask as booleans in row-major order."""
        rows, columns = self.shapes[name]
        return BitArray(packed=self._packed(name), size=rows * columns, columns=rows * columns)

    def transposed(self, name: str) -> FlatArray:
        """One mask as booleans of shape (in, out); its bits are in memory while it is read."""
        rows, columns = self.shapes[name]
        packed = self._packed(name)
        return TransposedArray(packed=LoadedArray(lambda: packed.read(0, packed.size), packed.size), rows=rows, columns=columns)

    def sha256(self) -> str:
        """The same as `MaskSet.sha256`."""
        digest = hashlib.sha256(str(self.pattern).encode())
        for name in sorted(self.shapes):
            digest.update(f"\0{name}\0{self.shapes[name]}\0".encode())
            packed = self._packed(name)
            for start in range(0, packed.size, _CHUNK):
                digest.update(packed.read(start, min(start + _CHUNK, packed.size)).data)
        return digest.hexdigest()

    def _packed(self, name: str) -> FileArray:
        rows, columns = self.shapes[name]
        return FileArray(file=self.file, offset=self.offsets[name], dtype=np.dtype(np.uint8), size=-(-rows * columns // 8))


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
        masks = MaskFile.open(path)
        weights = tuple(
            Weight(name=name, shape=masks.shapes[name], dtype="bit", axis=1, data=masks.array(name), listed=True)
            for name in sorted(masks.shapes)
        )
        total = sum(w.size for w in weights)
        return Source(
            kind="masks", weights=weights, num_parameters=total, pattern=masks.pattern, has_list=True, inputs=(masks.file,)
        )

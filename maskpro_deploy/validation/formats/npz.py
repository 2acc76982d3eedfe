"""MaskLLM's `mask_compressed.npz`: per weight, under `<weight>.mask`, `numpy.packbits` of its booleans as one flat run.

It has neither N and M nor shapes. Shapes are taken from a checkpoint in the same folder; without one, groups are counted along
the flat order, and the report says so. Members are unpacked as they are counted, never whole. Object arrays are pickles and
refused; so is an archive that claims to grow beyond reason.
"""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.system.input_file import InputFile
from maskpro_deploy.system.progress import Progress
from maskpro_deploy.validation.arrays import BitArray
from maskpro_deploy.validation.source import Reader, Source, Unchecked, Weight

_SUFFIX = ".mask"
_MOST_GROWTH, _SMALL_BYTES = 200, 1 << 26  # masks hardly compress: an archive of other proportions is a trap
_FLAT = (
    "shapes are not known: groups are counted along the flat order, which is right if every reduction dimension is a multiple "
    "of M (a checkpoint in the same folder gives shapes)"
)
_NOT_READ = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, OSError, KeyError)


@dataclass(frozen=True, slots=True)
class _Member:
    """One array in the archive: how many bytes its head has, and how many bytes of bits follow."""

    name: str
    head: int
    count: int


class NpzReader(Reader):
    """Reader of MaskLLM mask files."""

    takes, suffix = "a .npz file", ".npz"

    def read(self, path: Path, progress: Progress) -> Source:
        file = InputFile(path)
        members = _read_members(file)
        shapes = _read_neighbour_shapes(path)
        results = [_make_weight(file, member, shapes) for member in members]
        weights = tuple(f for f in results if isinstance(f, Weight))
        notes = ["a file of this format names no pattern, no weights and no model: it is judged by its bits alone"]
        if any(len(w.shape) == 1 for w in weights):
            notes.append(_FLAT)
        return Source(
            kind="maskllm masks",
            weights=weights,
            unchecked=tuple(f for f in results if isinstance(f, Unchecked)),
            num_parameters=sum(math.prod(f.shape) for f in results),
            has_list=True,
            inputs=(file,),
            notes=tuple(notes),
        )


def _read_members(file: InputFile) -> list[_Member]:
    """The arrays of an archive, their heads read; refused if it holds something else, or would grow beyond reason."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            entries = archive.infolist()
            total = sum(e.file_size for e in entries)
            if total > max(_SMALL_BYTES, _MOST_GROWTH * file.size):
                raise FormatError(f"{file.path} claims to hold {total} bytes in {file.size}: it is not unpacked.")
            if len({e.filename for e in entries}) != len(entries):
                raise FormatError(f"{file.path} holds two arrays of one name.")
            return [_read_member(file, archive, entry) for entry in sorted(entries, key=lambda e: e.filename)]
    except _NOT_READ as e:
        raise FormatError(f"{file.path} is not a complete npz file: {e}.\nFetch or write it again.") from e


def _read_member(file: InputFile, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise FormatError(f"{file.path}: {entry.filename} has an array header of an unknown version.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # heads written by Python 2 are read all the same
            shape, _, dtype = read(stream)
        head = stream.tell()
    if dtype.hasobject:
        raise FormatError(f"{file.path}: {entry.filename} is a pickle, which can run code when it is opened: it is not read.")
    if dtype != np.uint8 or len(shape) != 1 or entry.file_size != head + shape[0]:
        raise FormatError(f"{file.path}: {entry.filename} is not a packed mask: {dtype} of shape {list(shape)}.")
    return _Member(entry.filename, head, int(shape[0]))


def _read_neighbour_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of the checkpoint in the same folder; none if there is none."""
    if not (path.parent / "config.json").is_file() or not any(p.is_file() for p in path.parent.glob("*.safetensors")):
        return {}
    return Checkpoint.open(path.parent).shapes


def _make_weight(file: InputFile, member: _Member, shapes: dict[str, tuple[int, ...]]) -> Weight | Unchecked:
    name = member.name.removesuffix(".npy").removesuffix(_SUFFIX)
    shape = shapes.get(name, (8 * member.count,))
    size = math.prod(shape)
    if -(-size // 8) != member.count or len(shape) > 2:
        reason = f"its mask has {8 * member.count} bits, the weight {list(shape)} has {size}"
        return Unchecked(name=name, shape=shape, reason=reason)
    data = BitArray(base=_MemberArray(file, member), size=size, columns=size)
    return Weight(name=name, shape=shape, dtype="bit", axis=len(shape) - 1, data=data, listed=True)


class _MemberArray:
    """The bytes of one member, unpacked as they are asked for; pieces come in order, or from the front again."""

    def __init__(self, file: InputFile, member: _Member) -> None:
        self._file, self._member = file, member
        self._archive: zipfile.ZipFile | None = None
        self._stream: IO[bytes] | None = None
        self._position, self._last = 0, b""  # pieces may share the byte where they meet

    @property
    def size(self) -> int:
        return self._member.count

    def read(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        try:
            return np.frombuffer(self._read(start, stop), dtype=np.uint8)
        except _NOT_READ as e:
            raise FormatError(f"{self._file.path}: {self._member.name} is damaged: {e}.") from e

    def _read(self, start: int, stop: int) -> bytes:
        kept = self._position - start
        if self._stream is None or not 0 <= kept <= len(self._last):
            self.release()
            self._archive = zipfile.ZipFile(self._file.path)
            self._stream = self._archive.open(self._member.name)
            self._stream.read(self._member.head)
            while self._position < start:
                self._take(min(1 << 20, start - self._position))
            kept = 0
        head = self._last[len(self._last) - kept :] if kept else b""
        piece = head + self._take(stop - start - kept)
        self._last = piece[-1:]
        return piece

    def _take(self, count: int) -> bytes:
        assert self._stream is not None
        piece = self._stream.read(count)
        if len(piece) != count:
            raise EOFError("it ends early")
        self._position += count
        return piece

    def release(self) -> None:
        if self._stream is not None and self._archive is not None:
            self._stream.close()
            self._archive.close()
        self._stream = self._archive = None
        self._position, self._last = 0, b""

"""Files that are read by position, and proved unchanged at the end.

A file is stat-ed when it is first named and again when all was read. If its size, its times or the file behind the name differ,
what was read is worth nothing, and the answer is an error. Files are read, not mapped: one that shrinks while it is
being read then gives an error instead of killing the process. Only regular files are opened (a pipe would hang).
"""

from __future__ import annotations

import json
import os
import stat
import threading
import weakref
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from maskpro_deploy.errors import FormatError


class InputFile:
    """One file that is read in pieces, by several threads if need be; links are followed.

    Raises:
        FormatError: it is missing or not a regular file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
        except OSError as e:
            raise FormatError(f"{path} cannot be read: {e.strerror or e}.") from e
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path} is not a regular file: it is not read.")
        self.size = status.st_size
        self._identity = _identity(status)
        self._lock = threading.Lock()
        self._descriptor: int | None = None

    def read(self, offset: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes from `offset` on.

        Raises:
            FormatError: the file ends before, or cannot be read.
        """
        if offset < 0 or count < 0 or offset + count > self.size:
            raise FormatError(f"{self.path} ends early: it has {self.size} bytes, {offset + count} are needed.")
        content = np.empty(count, dtype=np.uint8)
        rest = content.data
        try:
            descriptor = self._open()
            while rest:
                got = os.preadv(descriptor, [rest], offset)
                if got == 0:
                    raise FormatError(f"{self.path} ends early: it was truncated while it was being read.")
                rest, offset = rest[got:], offset + got
        except OSError as e:
            raise FormatError(f"{self.path} cannot be read: {e.strerror or e}.") from e
        return content

    def check_unchanged(self) -> None:
        """Compare the file with what it was at first.

        Raises:
            FormatError: it was changed, replaced or removed.
        """
        try:
            now = self.path.stat()
        except OSError as e:
            raise FormatError(f"{self.path} vanished while it was being read: {e.strerror or e}.") from e
        if _identity(now) != self._identity:
            raise FormatError(f"{self.path} was changed while it was being read.\nRun the check again when nothing writes to it.")

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                weakref.finalize(self, os.close, self._descriptor)
                if _identity(os.fstat(self._descriptor)) != self._identity:
                    raise FormatError(f"{self.path} was replaced while it was being read.")
            return self._descriptor


def _identity(status: os.stat_result) -> tuple[Any, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Entry(NamedTuple):
    """One tensor of a safetensors file: dtype as the header names it, shape, where its bytes begin, and how many they are."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


class Header(NamedTuple):
    """What the header of a safetensors file says."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def open_tensors(path: Path, framework: str = "np") -> Any:
    """`safe_open`, for numpy or for torch ("pt"), with an error that says what is wrong with which file.

    Raises:
        FormatError: the file is missing or damaged.
    """
    try:
        return safe_open(path, framework)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing: the checkpoint is incomplete.") from None
    except (SafetensorError, OSError) as e:
        raise FormatError(f"{path} is not a complete safetensors file: {e}.\nFetch or write it again.") from e


def read_header(file: InputFile) -> Header:
    """The tensors and the metadata of a file.

    Raises:
        FormatError: the file is truncated, its header is damaged, or its tensors overlap or leave it.
    """
    with open_tensors(file.path):  # checks every entry against the file
        pass
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    try:
        header = json.loads(file.read(8, length).tobytes())
        metadata = header.pop("__metadata__", None) or {}
        return Header({name: _entry(e, 8 + length, file.size) for name, e in header.items()}, metadata)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise FormatError(f"{file.path} has a damaged header: {e}.") from e


def _entry(value: dict[str, Any], start: int, size: int) -> Entry:
    first, last = (int(v) for v in value["data_offsets"])
    if not 0 <= first <= last <= size - start:
        raise ValueError(f"a tensor lies at bytes {first} to {last} of {size - start}")
    return Entry(str(value["dtype"]), tuple(int(d) for d in value["shape"]), start + first, last - first)

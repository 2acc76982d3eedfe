"""Files that are read by position, and proved unchanged at the end.

A file is stat-ed when it is first named and again when all was read. If its size, its times or the file behind the name differ,
what was read is worth nothing, and the answer is an error. Files are read, not mapped: one that shrinks while it is
being read then gives an error instead of killing the process. Only regular files are opened (a pipe would hang).
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import FormatError


class InputFile:
    """One file that is read in pieces, by several threads if need be.

    Args:
        path: where it is; links are followed.

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

"""Folders to work in, which go with the process: when it is killed, at the next run.

A killed process cleans nothing up. So a working folder is locked as long as it is in use, and the kernel lets go of the lock when
the process ends, however it ends: a folder whose lock is free is nobody's. (The number of a process in its name would not tell:
numbers are used again, and those of other containers are not seen.) Where a file system has no such locks, nothing is removed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_NAME = re.compile(r"\.(?P<of>.+)\.[a-z0-9_]{8}\.tmp")  # what `tempfile` makes of it


@contextmanager
def working_folder(parent: Path, name: str) -> Iterator[Path]:
    """Yield a new folder in `parent` for work on what will be called `name` there; it is removed in the end."""
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder, and the open file by which it is locked."""
    import fcntl

    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=parent))
        with suppress(FileNotFoundError):  # another process took it for one that was left, before it was locked
            lock = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without such locks: then nobody removes it either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if is_still(folder, lock):
                return folder, lock
            os.close(lock)


def find_abandoned(parent: Path, name: str | None = None) -> Iterator[Path]:
    """Yield each working folder in `parent` (of one name, if given) whose process is gone, locked; it is removed after that."""
    import fcntl

    for folder in _list_candidates(parent, name):
        with suppress(OSError):  # in use, gone, not ours to touch, or on a file system without locks
            lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                log.info("removing %s: the run that made it was killed", folder)
                yield folder
                shutil.rmtree(folder)
            finally:
                os.close(lock)


def remove_abandoned(parent: Path, name: str | None = None) -> None:
    """Remove working folders whose process is gone (`abandoned`)."""
    for _ in find_abandoned(parent, name):
        pass


def _list_candidates(parent: Path, name: str | None) -> list[Path]:
    if not parent.is_dir():
        return []
    with os.scandir(parent) as entries:
        named = [(_NAME.fullmatch(entry.name), entry) for entry in entries]
        return [
            Path(entry.path)
            for match, entry in named
            if match and name in (None, match["of"]) and entry.is_dir(follow_symlinks=False)
        ]


def is_still(path: Path, fd: int) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False

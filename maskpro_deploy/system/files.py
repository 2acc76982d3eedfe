"""Files that appear whole or not at all, and their hashes.

Whatever is written goes to a working folder next to its final place, is fsynced, and then renamed: a crash, an interrupt or a
full disk leaves the old state. The same holds for folders (`new_folder`). What a killed process leaves there is removed when the
same file or folder is written again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import DiskFullError, FormatError, InputError
from maskpro_deploy.system.working_folder import find_abandoned, is_still, remove_abandoned, working_folder

LOCK_FILE = ".lock"
_NEW, _REPLACED = "new", "replaced"  # in a working folder: a folder to be, and what was in its place
_CHUNK_BYTES = 1 << 20
_LARGEST_JSON = 1 << 28  # bytes; an index of a million tensors has half of that


def cache_folder() -> Path:
    """Where this tool keeps what it can make again: `$MASKPRO_CACHE`, else a folder in the user's cache."""
    if own := os.environ.get("MASKPRO_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "maskpro-deploy"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's write errors into ones that say where and what to do."""
    try:
        yield
    except Exception as e:
        code = _system_code(e)
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DiskFullError(
                f"no space left while writing {path}; nothing was kept.\nFree some space or choose another place."
            ) from e
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"cannot write {path}: {os.strerror(code)}.\nChoose a place that you may write to.") from e
        raise


def _system_code(error: Exception) -> int | None:
    """The system's number of a write error; libraries written in Rust (safetensors) have it only in their text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def sync_folder(folder: Path) -> None:
    """Make the entries of `folder` durable (a rename is only safe once its folder is synced)."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`; on success it is fsynced and takes the name `path`.

    Raises:
        DiskFullError: no space left. The old file, if any, stays as it was.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        with working_folder(path.parent, path.name) as scratch:
            temporary = scratch / path.name
            yield temporary
            _publish(temporary)
            temporary.replace(path)
            sync_folder(path.parent)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold a folder's lock: of all processes that ask for it, one at a time goes on. The lock file goes with its last holder.

    For changes that read a file first, such as adding an entry to a list: without the lock two of them may read the same list,
    and the entry of the one that writes first is lost.
    """
    import fcntl

    lock = folder / LOCK_FILE
    with disk_errors(lock):
        while True:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if is_still(lock, fd):
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # its holder removed it while we waited: take the one that is there now
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            os.close(fd)


@contextmanager
def new_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` on success and vanishes on failure; an empty one may exist at `path`.

    Raises:
        InputError: `path` exists, is not empty, and `force` (replace what is there) is off.
        DiskFullError: no space left.
    """
    _put_back(path)
    check_free(path, force=force)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with working_folder(path.parent, path.name) as scratch:
            temporary = scratch / _NEW
            temporary.mkdir()
            yield temporary
            for file in sorted(p for p in temporary.rglob("*") if p.is_file() and not p.is_symlink()):
                _publish(file)
            _swap_in(temporary, path, scratch / _REPLACED)


def _publish(file: Path) -> None:
    """Make a finished file durable, and readable as the user's umask says (some writers make theirs private)."""
    with file.open("rb") as f:
        os.fsync(f.fileno())
    program = file.stat().st_mode & 0o111
    file.chmod((0o777 if program else 0o666) & ~_umask())


def _swap_in(temporary: Path, path: Path, aside: Path) -> None:
    """Rename `temporary` to `path`; what was there moves to `aside` first."""
    try:
        if path.exists():
            path.rename(aside)
        temporary.rename(path)
    except BaseException:
        if aside.exists() and not path.exists():
            aside.rename(path)
        raise
    sync_folder(path.parent)


def _put_back(path: Path) -> None:
    """Remove what killed runs left of `path`; the old state comes back if one was killed between the two renames."""
    for folder in find_abandoned(path.parent, path.name):
        if (old := folder / _REPLACED).exists() and not path.exists():
            old.rename(path)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_free(path: Path, *, force: bool) -> None:
    """Refuse an output folder that holds something, unless `force`.

    Raises:
        InputError: naming the folder and the flag.
    """
    occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
    if occupied and not force:
        raise InputError(f"{path} exists already.\nChoose another --out, or replace it with --force.")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically; NaN and infinity are refused."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: there is no such file, or it cannot be read.
        FormatError: it is no JSON object, or is so large that it cannot be meant as one.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise FormatError(f"{path} has {path.stat().st_size} bytes: no file of its kind is that large.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror}.") from e
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise FormatError(f"{path} is not valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise FormatError(f"{path} holds no JSON object.")
    return value


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes (symlinks are followed, so that the copy stands alone)."""
    with suppress(FileExistsError):
        target.parent.mkdir(parents=True)
    shutil.copyfile(source, target)

"""Large blocks of this process' memory on huge pages, where Linux gives them on request.

Decoding reads every weight for each token, so on a CPU it is as fast as memory is read. With pages of 4 KiB the processor's
prefetching ends at each of them, and in a virtual machine every miss of the translation buffer is walked twice: one core reads a
third less a second than on pages of 2 MiB. Many systems give huge pages only where a program asks for them
(`transparent_hugepage/enabled` is `madvise`), and libraries that hold weights do not ask. So this asks for what is there already.

`MADV_COLLAPSE` (Linux 6.1) moves pages at once and keeps their content. Older kernels know `MADV_HUGEPAGE` and move them in
their own time. Where neither works, nothing changes.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_SIZE = 2 << 20  # bytes of a huge page on x86-64, and on ARM with pages of 4 KiB
_HUGEPAGE, _COLLAPSE = 14, 25  # of <asm/mman.h>
_RESIDENT = 7 / 8  # share of a mapping that has to be in memory: to fill what nobody touched would only cost memory
_WAIT = 1.0  # seconds; a model of some GB goes on in the background
_MAPS = Path("/proc/self/smaps")


def use_huge_pages() -> None:
    """Move large anonymous memory of this process to huge pages; returns after a second at most, the rest follows."""
    thread = threading.Thread(target=_collapse_all, name="huge-pages", daemon=True)
    thread.start()
    thread.join(_WAIT)


def _collapse_all() -> None:
    try:
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        ranges = list(find_ranges(_MAPS.read_text(encoding="utf-8", errors="replace")))
    except (OSError, AttributeError):  # not Linux
        return
    # each call lets other threads go on
    moved = sum(size for start, size in ranges if advise(start, size, _COLLAPSE) == 0 or advise(start, size, _HUGEPAGE) == 0)
    log.debug("%d MB of memory asked to be on huge pages", moved >> 20)


def find_ranges(smaps: str) -> Iterator[tuple[int, int]]:
    """Address and bytes of what can be moved, in whole huge pages, from the text of `/proc/PID/smaps`.

    That is private, writable memory without a file, nearly all of it in use and not on huge pages yet.
    """
    for start, end, facts in _read_mappings(smaps):
        first, last = -(-start // _SIZE) * _SIZE, end // _SIZE * _SIZE
        resident, huge = facts.get("Anonymous", 0), facts.get("AnonHugePages", 0)
        if last > first and resident >= _RESIDENT * (end - start) and huge < last - first:
            yield first, last - first


def _read_mappings(smaps: str) -> Iterator[tuple[int, int, dict[str, int]]]:
    """First and last address, and sizes in bytes by name, of private writable mappings without a file."""
    current: tuple[int, int, dict[str, int]] | None = None
    for line in smaps.splitlines():
        words = line.split(None, 5)
        if not words[0].endswith(":"):  # "7f00-7f80 rw-p offset device inode name"
            if current is not None:
                yield current
            current = None
            if words[1] == "rw-p" and (len(words) < 6 or words[5] == "[heap]" or words[5].startswith("[anon")):
                start, end = (int(address, 16) for address in words[0].split("-"))
                current = (start, end, {})
        elif current is not None and len(words) == 3 and words[2] == "kB":
            current[2][words[0][:-1]] = int(words[1]) << 10
    if current is not None:
        yield current

"""Huge pages: only memory that is in use moves, and its content stays."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from maskpro_deploy.system.huge_pages import find_ranges, use_huge_pages

MIB = 2**20


def mapping(start: int, size: int, *, rights: str = "rw-p", name: str = "", resident: float = 1.0, huge: int = 0) -> str:
    header = f"{start:x}-{start + size:x} {rights} 00000000 00:00 0 {name}".rstrip()
    facts = {"Size": size, "Anonymous": int(size * resident), "AnonHugePages": huge}
    return "\n".join([header, *(f"{key}: {value >> 10:8d} kB" for key, value in facts.items()), "VmFlags: rd wr mr mw me ac sd"])


def test_whole_huge_pages_inside_a_mapping_are_taken() -> None:
    assert list(find_ranges(mapping(MIB, 8 * MIB))) == [(2 * MIB, 6 * MIB)]
    assert list(find_ranges(mapping(MIB, 2 * MIB))) == []
    assert list(find_ranges(mapping(0, 4 * MIB, name="[heap]"))) == [(0, 4 * MIB)]


@pytest.mark.parametrize(
    "left",
    [
        {"rights": "r--p"},
        {"rights": "rw-s"},
        {"name": "/lib/libonnxruntime.so"},
        {"name": "[stack]"},
        {"resident": 0.5},  # what nobody touched stays unallocated
        {"huge": 8 * MIB},  # done before
    ],
)
def test_other_memory_is_left_as_it_is(left: dict[str, object]) -> None:
    text = "\n".join([mapping(0, 8 * MIB, **left), mapping(64 * MIB, 4 * MIB)])  # type: ignore[arg-type]
    assert list(find_ranges(text)) == [(64 * MIB, 4 * MIB)]


def huge_bytes() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    match = re.search(r"^AnonHugePages:\s+(\d+) kB", text, re.M)
    return int(match[1]) << 10 if match else 0


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
def test_the_content_of_memory_stays_and_little_is_added() -> None:
    values = np.arange(8 * MIB, dtype=np.int64)  # 64 MiB, all of it in use
    untouched = np.empty(64 * MIB, np.uint8)
    use_huge_pages()
    assert (values == np.arange(8 * MIB)).all()
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = tuple(int(n) for n in re.findall(r"\d+", Path("/proc/sys/kernel/osrelease").read_text())[:2])
    if mode.is_file() and "[never]" not in mode.read_text() and release >= (6, 1):
        assert huge_bytes() >= 60 * MIB
        start = untouched.ctypes.data
        held = [n for a, n in find_ranges(Path("/proc/self/smaps").read_text()) if a <= start < a + n]
        assert not held

"""Which libraries a shared library was linked with, read from the file: nothing is loaded to find out.

The format is ELF ("Tool Interface Standard, Executable and Linking Format", version 1.2): a table of segments, one of which holds
the dynamic section, a list of tags and values. `DT_NEEDED` values are offsets into the string table that `DT_STRTAB` locates.
"""

from __future__ import annotations

import mmap
import re
import struct
from importlib.util import find_spec
from pathlib import Path

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_PROVIDER = "capi/libonnxruntime_providers_tensorrt.so"


def read_needed_libraries(path: Path) -> tuple[str, ...]:
    """Names of the libraries that a 64-bit little-endian ELF file was linked with; empty for any other file."""
    with path.open("rb") as f:
        if f.read(len(_MAGIC)) != _MAGIC:
            return ()
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _read_needed(data)
            except (struct.error, StopIteration, ValueError):  # truncated, or not what its header says
                return ()


def _read_needed(data: mmap.mmap) -> tuple[str, ...]:
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []  # (type, offset in the file, address, bytes in the file)
    for i in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", data, table + i * size)
        segments.append((kind, offset, address, length))
    start, length = next((offset, length) for kind, offset, _, length in segments if kind == _PT_DYNAMIC)
    tags: list[tuple[int, int]] = []
    for at in range(start, start + length, 16):
        tag, value = struct.unpack_from("<QQ", data, at)
        if tag == _DT_NULL:
            break
        tags.append((tag, value))
    strings = next(value for tag, value in tags if tag == _DT_STRTAB)
    strings = next(o + strings - a for kind, o, a, n in segments if kind == _PT_LOAD and a <= strings < a + n)
    return tuple(_text(data, strings + value) for tag, value in tags if tag == _DT_NEEDED)


def _text(data: mmap.mmap, start: int) -> str:
    end = data.find(b"\0", start)
    if end < 0:
        raise ValueError("a name without an end")
    return data[start:end].decode("ascii", "replace")


def onnxruntime_tensorrt() -> int | None:
    """The major version of TensorRT that the installed onnxruntime was linked with; None if it has no TensorRT provider.

    Only ELF files are read: on other systems the answer is None, and the provider itself reports a mismatch.
    """
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    provider = Path(spec.origin).parent / _PROVIDER
    if not provider.is_file():
        return None
    matches = (re.fullmatch(r"libnvinfer\.so\.(\d+)", name) for name in read_needed_libraries(provider))
    return next((int(match[1]) for match in matches if match), None)

"""The header of a safetensors file: which tensors it holds, and where their bytes are.

The safetensors library checks the header against the file; values are then read by their offsets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from maskpro_deploy.errors import FormatError
from maskpro_deploy.system.input_file import InputFile


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


def open_tensors(path: Path) -> Any:
    """`safe_open` with an error that says what is wrong with which file.

    Raises:
        FormatError: the file is missing or damaged.
    """
    try:
        return safe_open(path, "np")
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

"""One safetensors file. Its header is checked by the safetensors library; values are then read by their offsets.

Which tensors count: all matrices named `*.weight` that are no embedding, norm or output head. Their axis is 1, `(out, in)`, as
`torch.nn.Linear` stores them; models of the GPT-2 family, known by the `config.json` beside the file, store `(in, out)`.
Weights that the compressed-tensors library stored as `sparse-24-bitmask` are unpacked (see `bitmask24`). Other packed forms are
reported as not checked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from maskpro_deploy.errors import FormatError
from maskpro_deploy.files import read_json
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation import bitmask24
from maskpro_deploy.validation.arrays import Array, FileArray, FlatArray, MappedArray, NibbleArray
from maskpro_deploy.validation.bitmask24 import DTYPES, Entry
from maskpro_deploy.validation.inputs import InputFile
from maskpro_deploy.validation.source import Source, Unchecked, Weight, is_linear

_FP4 = np.dtype(ml_dtypes.float4_e2m1fn)
# linear layers in packed forms that are not read: GPTQ, AWQ, HQQ, Marlin and compressed-tensors name them so
_PACKED = (".weight_packed", ".qweight", ".W_q", ".B_24")
_TRANSPOSED_FAMILIES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}


class Header(NamedTuple):
    """What the head of a safetensors file says."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(file: InputFile) -> Header:
    """The tensors and the metadata of a file.

    Raises:
        FormatError: the file is truncated, its header is damaged, or its tensors overlap or leave it.
    """
    try:
        with safe_open(file.path, "np"):  # checks every entry against the file
            pass
    except (SafetensorError, OSError) as e:
        raise FormatError(f"{file.path} is no whole safetensors file: {e}.\nFetch or write it again.") from e
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
    return Entry(str(value["dtype"]), tuple(int(d) for d in value["shape"]), start + first)


def linear_axis(config: dict[str, Any]) -> int:
    """The reduction axis of the linear layers of a model with this `config.json`."""
    return 0 if config.get("model_type") in _TRANSPOSED_FAMILIES else 1


def find(file: InputFile, name: str, entry: Entry, axis: int, *, listed: bool = False) -> Weight | Unchecked | None:
    """What a tensor is to the checker: a weight, one that cannot be checked, or nothing."""
    packed = name.endswith(_PACKED)
    matrix = len(entry.shape) == 2 and name.endswith((".weight", "in_proj_weight"))
    linear = (matrix or packed or (len(entry.shape) > 2 and "expert" in name)) and is_linear(name)
    if not (listed or matrix or linear):
        return None
    if len(entry.shape) != 2 and not packed:
        reason = f"a tensor of {len(entry.shape)} dimensions does not say which one is the reduction axis"
        return Unchecked(name=name, shape=entry.shape, reason=reason, listed=listed, linear=linear)
    size = math.prod(entry.shape)
    data: FlatArray
    if entry.dtype in DTYPES and not packed:
        data = FileArray(file=file, offset=entry.offset, dtype=DTYPES[entry.dtype], size=size)
    elif entry.dtype == "F4" and not packed:  # two to a byte
        nibbles = FileArray(file=file, offset=entry.offset, dtype=np.dtype(np.uint8), size=-(-size // 2))
        data = MappedArray(base=NibbleArray(base=nibbles, size=size, signed=False), function=_as_fp4)
    else:
        reason = f"dtype {entry.dtype} packs or encodes its weights"
        return Unchecked(name=name, shape=entry.shape, reason=reason, listed=listed, linear=linear)
    return Weight(name=name, shape=entry.shape, dtype=entry.dtype.lower(), axis=axis, data=data, listed=listed, linear=linear)


def _as_fp4(piece: Array, start: int) -> Array:
    return piece.view(_FP4)


def matrices(found: Iterable[Weight | Unchecked], config: Mapping[str, Any]) -> int:
    """Multiply-adds of a model for one token: every matrix once, the output head too, also where it is the tied embedding.

    Every expert counts as if it were used.
    """
    total = 0
    for item in found:
        size = math.prod(item.shape)
        head = re.search(r"(^|\.)(lm_head|embed_out|output_head)\.", item.name) is not None
        tied = (
            bool(config.get("tie_word_embeddings")) and re.search(r"(embed_tokens|wte|embed_in)\.weight$", item.name) is not None
        )
        if item.linear or item.listed or head or tied:
            total += size
    return total


class SafetensorsReader:
    """Reader of single safetensors files."""

    def accepts(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".safetensors"

    def read(self, path: Path, progress: Progress) -> Source:
        file = InputFile(path)
        entries = {name: (file, entry) for name, entry in read_header(file).entries.items()}
        beside = path.parent / "config.json"
        config = read_json(beside) if beside.is_file() else {}
        found = [*collect(entries, linear_axis(config), {})]
        return Source(
            kind="safetensors",
            weights=tuple(f for f in found if isinstance(f, Weight) and f.linear),
            unchecked=tuple(f for f in found if isinstance(f, Unchecked) and f.linear),
            num_parameters=num_parameters(entries, found),
            pattern=bitmask24.PATTERN if bitmask24.prefixes(entries) else None,
            inputs=(file,),
            multiply_adds=matrices(found, config),
        )


def collect(entries: Mapping[str, tuple[InputFile, Entry]], axis: int, listed: Container[str]) -> Iterator[Weight | Unchecked]:
    """Everything that may be a weight, in name order; three tensors of a compressed one make one weight."""
    compressed = bitmask24.prefixes(entries)
    for name in sorted(entries):
        prefix = bitmask24.prefix_of(name)
        if prefix in compressed:
            if name.endswith(bitmask24.VALUES):
                yield bitmask24.weight(prefix, entries, listed)
            continue
        file, entry = entries[name]
        item = find(file, name, entry, axis, listed=name in listed)
        if item is not None:
            yield item


def num_parameters(entries: Mapping[str, tuple[InputFile, Entry]], found: Iterable[Weight | Unchecked]) -> int:
    """Elements of all tensors, compressed ones in their full shape."""
    compressed = bitmask24.prefixes(entries)
    stored = sum(math.prod(e.shape) for name, (_, e) in entries.items() if bitmask24.prefix_of(name) not in compressed)
    full = {f.name: math.prod(f.shape) for f in found}
    return stored + sum(full[bitmask24.weight_name(p)] for p in compressed)

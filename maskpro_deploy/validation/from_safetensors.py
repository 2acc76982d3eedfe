"""One safetensors file. Its header is checked by the safetensors library; values are then read by their offsets.

Which tensors count: all matrices named `*.weight` that are no embedding, norm or output head. Their axis is 1, `(out, in)`, as
`torch.nn.Linear` stores them; models of the GPT-2 family, known by the `config.json` beside the file, store `(in, out)`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from maskpro_deploy.errors import FormatError
from maskpro_deploy.files import read_json
from maskpro_deploy.progress import Progress
from maskpro_deploy.validation.arrays import FileArray, read_bytes
from maskpro_deploy.validation.source import Source, Unchecked, Weight, is_linear

_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "I8": np.dtype(np.int8),
}
_TRANSPOSED_FAMILIES = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer"}


class Entry(NamedTuple):
    """One tensor of a safetensors file: dtype as the header names it, shape, where its bytes begin."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


def read_header(path: Path) -> dict[str, Entry]:
    """Tensor name -> entry.

    Raises:
        FormatError: the file is truncated, its header is damaged, or its tensors overlap or leave it.
    """
    try:
        with safe_open(path, "np"):  # checks every entry against the file
            pass
    except (SafetensorError, OSError) as e:
        raise FormatError(f"{path} is no whole safetensors file: {e}.\nFetch or write it again.") from e
    length = int.from_bytes(read_bytes(path, 0, 8).tobytes(), "little")
    header = json.loads(read_bytes(path, 8, length).tobytes())
    header.pop("__metadata__", None)
    return {name: Entry(str(e["dtype"]), tuple(e["shape"]), 8 + length + int(e["data_offsets"][0])) for name, e in header.items()}


def linear_axis(config: dict[str, Any]) -> int:
    """The reduction axis of the linear layers of a model with this `config.json`."""
    return 0 if config.get("model_type") in _TRANSPOSED_FAMILIES else 1


def find(path: Path, name: str, entry: Entry, axis: int, *, listed: bool = False) -> Weight | Unchecked | None:
    """What a tensor is to the checker: a weight, one that cannot be checked, or nothing."""
    matrix = len(entry.shape) == 2 and name.endswith(".weight")
    linear = (matrix or (len(entry.shape) > 2 and "expert" in name)) and is_linear(name)
    if not (listed or matrix or linear):
        return None
    if len(entry.shape) != 2:
        reason = f"a tensor of {len(entry.shape)} dimensions does not say which one is the reduction axis"
        return Unchecked(name=name, shape=entry.shape, reason=reason, listed=listed, linear=linear)
    if entry.dtype not in _DTYPES:
        reason = f"dtype {entry.dtype} packs or encodes its weights"
        return Unchecked(name=name, shape=entry.shape, reason=reason, listed=listed, linear=linear)
    data = FileArray(path=path, offset=entry.offset, dtype=_DTYPES[entry.dtype], size=math.prod(entry.shape))
    return Weight(name=name, shape=entry.shape, dtype=entry.dtype.lower(), axis=axis, data=data, listed=listed, linear=linear)


class SafetensorsReader:
    """Reader of single safetensors files."""

    def accepts(self, path: Path) -> bool:
        return path.is_file() and path.suffix.lower() == ".safetensors"

    def read(self, path: Path, progress: Progress) -> Source:
        header = read_header(path)
        config = path.parent / "config.json"
        axis = linear_axis(read_json(config)) if config.is_file() else 1
        found = [find(path, name, header[name], axis) for name in sorted(header)]
        return Source(
            kind="safetensors",
            weights=tuple(f for f in found if isinstance(f, Weight) and f.linear),
            unchecked=tuple(f for f in found if isinstance(f, Unchecked) and f.linear),
            num_parameters=sum(math.prod(e.shape) for e in header.values()),
        )

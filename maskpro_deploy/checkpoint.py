"""Hugging Face checkpoint folders, read shard by shard without torch.

A checkpoint is `config.json`, one or more `*.safetensors`, and tokenizer files. A *sparse* checkpoint is the same folder with
zeros in its pruned weights, plus `masks.safetensors` and `learn.json`. Tensors are mapped, never loaded as a whole model.

Weights behind a bitmask of compressed-tensors (`bitmask`) are unpacked as they are read, one at a time. Weights that another tool
packed (`packing`) are refused when the folder is opened. What config.json says of quantisation then no longer holds for what is
read, and is left out of it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import ml_dtypes  # teaches numpy the names bfloat16 and float8_*, too
import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save, save_file

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.storage.bitmask import BITS, SHAPE, VALUES, Expanded, expand, list_parts, list_prefixes, name_weight
from maskpro_deploy.storage.packing import QUANTISATION_KEYS, find_packing
from maskpro_deploy.storage.shards import INDEX_FILE, find_shards, read_config
from maskpro_deploy.system.files import copy_file, new_folder, write_json
from maskpro_deploy.system.input_file import open_tensors
from maskpro_deploy.system.progress import SILENT, Progress

LEARN_FILE = "learn.json"
_BLOCK_VALUES = 1 << 21
# what goes along with the weights into every folder made from a checkpoint
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint folder."""

    folder: Path  # where it is
    config: dict[str, Any]  # the content of `config.json`, without what it says of quantisation
    shard_of: Mapping[str, Path]  # tensor name -> file that holds it
    bitmasks: Mapping[str, Mapping[str, Path]] = field(default_factory=dict)  # weight behind a bitmask -> file of each part

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Open a folder and read the headers of its shards.

        Raises:
            InputError: the folder does not exist or is not a checkpoint.
            FormatError: a file is truncated or damaged, or its weights are packed in a form that is not read.
        """
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist or is not a folder.\nGive a Hugging Face checkpoint folder.")
        config, (stored, types) = read_config(folder), find_shards(folder)
        if packing := find_packing(folder, config, types):
            raise FormatError(f"{folder} is {packing}: its weights cannot be read as they are.\n{packing.remedy}")
        bitmasks, shard_of = {}, dict(stored)
        for prefix in list_prefixes(stored):
            parts = {part: shard_of.pop(part) for part in list_parts(prefix) if part in stored}
            bitmasks[name_weight(prefix)], shard_of[name_weight(prefix)] = parts, parts[prefix + VALUES]
        return cls(folder=folder, config=_omit_quantisation(config), shard_of=shard_of, bitmasks=bitmasks)

    @property
    def shards(self) -> list[Path]:
        """The weight files, in name order."""
        return sorted(set(self.shard_of.values()))

    @property
    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self.shard_of)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, from the headers alone."""
        shapes: dict[str, tuple[int, ...]] = {name: tuple(self.slices(name).get_shape()) for name in self.bitmasks}
        for shard in self.shards:
            with open_tensors(shard) as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    if name in self.shard_of:
                        shapes[name] = tuple(file.get_slice(name).get_shape())
        return shapes

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """One tensor, in its own dtype (bf16 as `ml_dtypes.bfloat16`); a FormatError if there is none of that name."""
        if name in self.bitmasks:
            return self._expand(name)[:]
        shard = self._shard_holding(name)
        with open_tensors(shard) as file:
            return _read_tensor(file, name, shard)

    def slices(self, name: str) -> Any:
        """One tensor to read in parts: `slices(name)[a:b, c:d]` reads only these, whatever its size. Errors as of `tensor`.

        One behind a bitmask is unpacked as a whole when its first part is read.
        """
        if name in self.bitmasks:
            return self._expand(name)
        with open_tensors(self._shard_holding(name)) as file:
            return file.get_slice(name)

    def map_torch(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The tensors as torch has them, by name, but for some; plain ones are read from disk when they are used."""
        from safetensors.torch import load

        tensors: dict[str, Any] = {}
        for shard in self.shards:
            with safe_open(shard, "pt") as file:
                names = [n for n in file.keys() if n in self.shard_of and n not in without]  # noqa: SIM118 (no mapping)
                tensors |= {name: file.get_tensor(name) for name in names}
        for name in self.bitmasks.keys() - set(without):
            tensors |= load(save({name: self.tensor(name)}))
        return tensors

    def _expand(self, name: str) -> Expanded:
        """A weight behind a bitmask (FormatError: its parts do not fit together)."""
        parts = {"." + part.rpartition(".")[2]: (file, part) for part, file in self.bitmasks[name].items()}

        def read(kind: str) -> npt.NDArray[Any]:
            path, part = parts[kind]
            with open_tensors(path) as file:
                return _read_tensor(file, part, path)

        def unpack() -> npt.NDArray[Any]:
            try:
                return expand(read(VALUES), read(BITS), (rows, columns))
            except ValueError as e:
                raise FormatError(f"{self.folder}: {name} cannot be unpacked: {e}.") from e

        shape = read(SHAPE).reshape(-1).tolist() if SHAPE in parts else []
        if len(shape) != 2 or not all(isinstance(d, int) and d > 0 for d in shape):
            raise FormatError(f"{self.folder}: {name} cannot be unpacked: its compressed form has no valid shape.")
        rows, columns = shape
        with open_tensors(parts[VALUES][0]) as file:
            return Expanded((rows, columns), file.get_slice(parts[VALUES][1]).get_dtype(), unpack)

    def _shard_holding(self, name: str) -> Path:
        if name not in self.shard_of:
            raise FormatError(f"{self.folder} has no tensor {name!r}.")
        return self.shard_of[name]

    @cached_property
    def masks(self) -> MaskSet | None:
        """The checkpoint's own masks, if it is a sparse one."""
        path = self.folder / MASKS_FILE
        return MaskSet.load(path) if path.is_file() else None

    @cached_property
    def record(self) -> dict[str, Any]:
        """What `learn.json` says of how the checkpoint was made; empty where there is none that can be read."""
        try:
            record = json.loads((self.folder / LEARN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    @property
    def weights_changed(self) -> bool:
        """Whether kept weights are not those of the dense model that the masks were made for."""
        return bool(self.record.get("weights_changed"))

    def dense_sha256(self, names: Iterable[str]) -> str:
        """Hash of the named weights: name, dtype, shape and bytes, in name order."""
        return self.dense_sha256s(names)[0]

    def dense_sha256s(self, *choices: Iterable[str]) -> list[str]:
        """`dense_sha256` of several choices of weights, each of which is read once."""
        digests = [(hashlib.sha256(), frozenset(names)) for names in choices]
        for name in sorted(frozenset().union(*(names for _, names in digests))):
            chosen = [digest for digest, names in digests if name in names]
            for i, block in enumerate(self.read_blocks(name)):
                for digest in chosen:
                    if i == 0:
                        digest.update(f"\0{name}\0{block.dtype.name}\0{self.shapes[name]}\0".encode())
                    digest.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
        return [digest.hexdigest() for digest, _ in digests]

    def read_first_rows(self, names: Iterable[str]) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """The first row of each of the named matrices, shard by shard: a file is opened once. Errors as of `tensor`."""
        by_shard: dict[Path, list[str]] = {}
        for name in names:
            by_shard.setdefault(self._shard_holding(name), []).append(name)
        for shard, held in by_shard.items():
            with open_tensors(shard) as file:
                stored = frozenset(file.keys())
                for name in held:
                    parts = file.get_slice(name) if name in stored else self.slices(name)
                    yield name, _read_rows(parts, 0, 1, name, shard)

    def read_blocks(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """One tensor as runs of rows of some megabytes, so that a large one is never whole in memory."""
        parts, shard = self.slices(name), self._shard_holding(name)
        rows, *others = self.shapes[name] or (0,)
        if not rows:
            yield self.tensor(name)
        step = max(1, _BLOCK_VALUES // max(1, math.prod(others)))
        for start in range(0, rows, step):
            yield _read_rows(parts, start, min(start + step, rows), name, shard)


def _omit_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of plain weights: without what it says of quantisation, also of the text model inside."""
    kept = {name: value for name, value in config.items() if name not in QUANTISATION_KEYS}
    return {n: _omit_quantisation(v) if n == "text_config" and isinstance(v, Mapping) else v for n, v in kept.items()}


def _read_tensor(file: Any, name: str, path: Path) -> npt.NDArray[Any]:
    """A tensor of an opened file, in its own dtype."""
    with _known_dtype(name, path):
        tensor: npt.NDArray[Any] = file.get_tensor(name)
    return tensor


def _read_rows(parts: Any, start: int, stop: int, name: str, path: Path) -> npt.NDArray[Any]:
    """Rows [start, stop) of a tensor that is read in parts, in its own dtype."""
    with _known_dtype(name, path):
        rows: npt.NDArray[Any] = parts[start:stop]
    return rows


@contextmanager
def _known_dtype(name: str, path: Path) -> Iterator[None]:
    """Say so where the library has no numpy dtype for a tensor (FormatError)."""
    try:
        yield
    except (AttributeError, TypeError) as e:
        raise FormatError(f"{path}: {name} has a dtype that is not read here (fp8 or packed): {e}") from e


def apply_mask(weight: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The weight with +0.0 wherever the mask does not keep it (never -0.0: some sparse kernels take it for a value)."""
    return np.ascontiguousarray(np.where(mask, weight, np.zeros((), dtype=weight.dtype)))  # safetensors writes memory as it is


def cast_weight(weight: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A weight in another dtype; what is not zero stays so, and what is finite, too: masks count nonzeros."""
    limits = ml_dtypes.finfo(dtype)
    size = np.abs(weight)
    nearest = np.clip(size, float(limits.smallest_subnormal), float(limits.max))
    cast: npt.NDArray[Any] = np.copysign(np.where((size > 0) & np.isfinite(size), nearest, size), weight).astype(dtype)
    return cast


def save_sparse(
    dense: Checkpoint,
    masks: MaskSet,
    out: Path,
    learn: Mapping[str, Any],
    *,
    force: bool = False,
    progress: Progress = SILENT,
    weights: Mapping[str, npt.NDArray[Any]] | None = None,
    changes_basis: bool = True,
    add: Callable[[Path], None] | None = None,
) -> None:
    """Write a sparse checkpoint: the dense one with its masks applied, shard by shard, as a whole or not at all.

    `learn` says how the masks came about and becomes `learn.json`. `weights` replace some of the checkpoint's, by name, and are
    cast to their dtypes; they are in the masks' bases, and the others are brought there unless the checkpoint is there already
    (`changes_basis` false). `add` writes more into the folder. `progress` gets the number of shards; with `force`, `out` is
    replaced if it exists.

    Raises:
        InputError: a mask names a weight that the checkpoint lacks or that has another shape, or `out` exists.
    """
    masks.check_fits(dense.shapes, "the masks", str(dense.folder))
    with new_folder(out, force=force) as folder:
        copy_side_files(dense.folder, folder)
        for done, shard in enumerate(dense.shards, start=1):
            with open_tensors(shard) as file:
                metadata = file.metadata() or {"format": "pt"}
                names = [name for name in file.keys() if name in dense.shard_of]  # noqa: SIM118 (no mapping)
                tensors = {name: _read_tensor(file, name, shard) for name in names}
            tensors |= {name: dense.tensor(name) for name in dense.bitmasks if dense.shard_of[name] == shard}
            if changes_basis:
                tensors = {name: masks.transform.apply(name, tensor) for name, tensor in tensors.items()}
            for name in tensors.keys() & (weights or {}).keys():
                tensors[name] = cast_weight((weights or {})[name], tensors[name].dtype)
            for name in tensors.keys() & masks.packed.keys():
                tensors[name] = apply_mask(tensors[name], masks.stored_mask(name))
            save_file(tensors, folder / shard.name, metadata=metadata)
            progress.update(done, len(dense.shards))
        if dense.bitmasks and (dense.folder / INDEX_FILE).is_file():
            write_json(folder / INDEX_FILE, {"metadata": {}, "weight_map": {n: dense.shard_of[n].name for n in dense.names}})
        elif (dense.folder / INDEX_FILE).is_file():
            copy_file(dense.folder / INDEX_FILE, folder / INDEX_FILE)
        masks.save(folder / MASKS_FILE)
        write_json(folder / LEARN_FILE, json.loads(json.dumps(learn)))
        if add is not None:
            add(folder)


def copy_side_files(source: Path, target: Path) -> None:
    """Copy config, tokenizer and licence files, as far as they exist; config.json without what it says of quantisation."""
    for name in SIDE_FILES:
        if (source / name).is_file():
            copy_file(source / name, target / name)
    config = read_config(source)
    if (plain := _omit_quantisation(config)) != config:
        write_json(target / "config.json", plain)

"""Small folders in the layouts that other tools write: a checkpoint's projections repacked, and what config.json then says.

The layouts were recorded from the tools themselves (`scripts/check_foreign_folders` makes folders with them).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

Array = npt.NDArray[Any]
Repack = Callable[[Array], Mapping[str, Array]]
INDEX = "model.safetensors.index.json"


def compress(weight: Array, *, free: bool = False) -> dict[str, Array]:
    """A weight behind a bitmask, as `sparse-24-bitmask` or, if `free`, as `sparse-bitmask`."""
    mask = weight.astype(np.float32) != 0
    counts = mask.sum(axis=1)
    parts = {".bitmask": np.packbits(mask, axis=1, bitorder="little"), ".compressed": weight[mask]}
    if free:
        starts = np.concatenate([[0], counts[:-1].cumsum()]).astype(np.int64)
        return parts | {".shape": np.array(weight.shape, np.int64), ".row_offsets": starts}
    values = parts[".compressed"].reshape(len(weight), -1)
    return parts | {".shape": np.array(weight.shape, np.int64).reshape(2, 1), ".compressed": values}


def quantise(weight: Array, most: int, dtype: Any) -> tuple[Array, Array]:
    """One scale a row.  # (R, C) -> (R, C), (R, 1)"""
    scale = np.abs(weight).max(axis=1, keepdims=True).astype(np.float32) / most
    scaled = weight / scale
    return (np.rint(scaled) if np.dtype(dtype).kind == "i" else scaled).astype(dtype), scale


def _eight_bits(weight: Array, dtype: Any, name: str = ".weight", scale_name: str = ".weight_scale") -> dict[str, Array]:
    values, scale = quantise(weight, 127 if np.dtype(dtype).kind == "i" else 448, dtype)
    return {name: values, scale_name: scale}


def _packed(weight: Array, name: str, dtype: Any, per: int, **others: Array) -> dict[str, Array]:
    """Some weights in each element: which values does not matter here."""
    rows, columns = weight.shape
    return {f".{name}": np.ones((rows, columns // per), dtype), **{f".{key}": value for key, value in others.items()}}


def _ct(form: str, bits: int, kind: str, sparsity: str = "") -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": kind}, "format": form}
    statement = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return statement | {"sparsity_config": {"format": sparsity, "sparsity_structure": "2:4"} if sparsity else {}}


_ONES, _ZEROS = np.ones((4, 1), np.float32), np.ones((4, 4), np.int32)
_F8 = ml_dtypes.float8_e4m3fn
_MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "producer": {"name": "modelopt"}}
# label -> how a layer is stored (names behind that of the layer), what config.json says, and how the folder has to be named
PACKED: dict[str, tuple[Repack, Mapping[str, Any] | None, str]] = {
    "int4": (
        lambda w: _packed(w, "weight_packed", np.int32, 8, weight_scale=_ONES, weight_shape=np.array(w.shape)),
        _ct("pack-quantized", 4, "int"),
        "compressed-tensors (pack-quantized, int4)",
    ),
    "marlin": (
        lambda w: _packed(w, "weight_packed", np.int32, 16, scale_packed=_ONES, meta=np.ones((4, 4), np.int16)),
        _ct("marlin-24", 4, "int"),
        "compressed-tensors (marlin-24, int4)",
    ),
    "nvfp4": (
        lambda w: _packed(w, "weight_packed", np.uint8, 2, weight_scale=_ONES.astype(_F8), weight_global_scale=_ONES[0]),
        _ct("nvfp4-pack-quantized", 4, "float"),
        "compressed-tensors (nvfp4-pack-quantized, float4)",
    ),
    "int8": (lambda w: _eight_bits(w, np.int8), _ct("int-quantized", 8, "int"), "compressed-tensors (int-quantized, int8)"),
    "fp8": (lambda w: _eight_bits(w, _F8), _ct("float-quantized", 8, "float"), "compressed-tensors (float-quantized, float8)"),
    "fp8 behind a bitmask": (
        lambda w: compress((parts := _eight_bits(w, _F8))[".weight"]) | {".weight_scale": parts[".weight_scale"]},
        _ct("float-quantized", 8, "float", "sparse-24-bitmask"),
        "compressed-tensors (sparse-24-bitmask, float-quantized, float8)",
    ),
    "int8 behind a free bitmask": (
        lambda w: compress((parts := _eight_bits(w, np.int8))[".weight"], free=True) | {".weight_scale": parts[".weight_scale"]},
        _ct("int-quantized", 8, "int", "sparse-bitmask"),
        "compressed-tensors (sparse-bitmask, int-quantized, int8)",
    ),
    "modelopt": (lambda w: _eight_bits(w, _F8), _MODELOPT, "ModelOpt (FP8)"),
    "modelopt nvfp4": (
        lambda w: _packed(w, "weight", np.uint8, 2, weight_scale=_ONES.astype(_F8), weight_scale_2=_ONES[0]),
        _MODELOPT | {"quant_algo": "NVFP4"},
        "ModelOpt (NVFP4)",
    ),
    "gptq": (
        lambda w: _packed(w, "qweight", np.int32, 8, qzeros=_ZEROS, scales=_ONES, g_idx=np.zeros(32, np.int32)),
        {"quant_method": "gptq", "bits": 4},
        "GPTQ (4 bits)",
    ),
    "awq": (
        lambda w: _packed(w, "qweight", np.int32, 8, qzeros=_ZEROS, scales=_ONES),
        {"quant_method": "awq", "bits": 4},
        "AWQ (4 bits)",
    ),
    "bitsandbytes 4": (
        lambda w: {".weight": np.ones((w.size // 2, 1), np.uint8), ".weight.absmax": np.ones(8, np.uint8)},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "bitsandbytes (4 bits)",
    ),
    "bitsandbytes 8": (
        lambda w: _eight_bits(w, np.int8, scale_name=".SCB"),
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "bitsandbytes (8 bits)",
    ),
    "torchao": (
        lambda w: _eight_bits(w, np.int8, "._weight_qdata", "._weight_scale"),
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
        "torchao (Int8WeightOnlyConfig)",
    ),
    "quanto": (lambda w: _eight_bits(w, np.int8, ".weight._data", ".weight._scale"), None, "quanto (I8)"),
    "hqq": (lambda w: _packed(w, "W_q", np.uint8, 2, meta=_ONES[0]), {"quant_method": "hqq"}, "HQQ"),
    "deepseek": (
        lambda w: {".weight": w.astype(_F8), ".weight_scale_inv": np.ones((1, 1), np.float32)},
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        "block FP8 (e4m3)",
    ),
    "integers": (lambda w: {".weight": np.ones(w.shape, np.uint8)}, None, "a tool that it does not name (U8)"),
}
# what config.json says in folders of plain weights
VESTIGIAL: dict[str, Mapping[str, Any]] = {
    "dense with a sparsity_config": {
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "sparsity_config": {"format": "dense", "sparsity_structure": "2:4", "global_sparsity": 0.5},
        }
    },
    "nothing is quantised": {"quantization_config": {"quant_method": "modelopt", "quant_algo": None, "config_groups": {}}},
    "the older key": {"compression_config": {"quant_method": "compressed-tensors", "format": "dense"}},
    "null": {"quantization_config": None},
}


def repack(source: Path, out: Path, layer: Repack, statement: Mapping[str, Any] | None, shards: int = 1) -> Path:
    """A copy of a checkpoint with its projections stored another way, in one file or in several with an index."""
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "learn.json"))
    tensors: dict[str, Array] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        parts = {name: tensor}
        if name.endswith("_proj.weight"):
            parts = {name.removesuffix(".weight") + part: value for part, value in layer(tensor).items()}
        tensors |= parts
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in sorted(set(files.values())):
        held = {name: np.ascontiguousarray(tensors[name]) for name in tensors if files[name] == file}
        save_file(held, out / (file if shards > 1 else "model.safetensors"), metadata={"format": "pt"})
    if shards > 1:
        (out / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return say(out, {"quantization_config": statement} if statement is not None else {})


def say(folder: Path, fields: Mapping[str, Any]) -> Path:
    """Add fields to config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    return folder

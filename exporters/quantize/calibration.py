"""Calibration: weights become integers with the errors that matter, found by running the model on text.

The model runs on built-in text twice side by side, as it is and as far as it is rounded. Each projection is rounded when both
have come to it: on the inputs that it will really get, x', towards the outputs that it should have given, on x. So it makes good
some of what the projections before it have lost; where its output is added to a sum (the residual), of what that sum has
lost, too.

    least  sum over tokens of (q * scale)^T x'  -  (w^T x  +  r - r')       r, r': the sum before, without rounding and with it

Projections that share an input share its sums of outer products. `descent.py` does the rounding. The rounded weights go to a
file as they are made. (Frantar et al. 2022, GPTQ, section 4, rounds on the inputs of the rounded model, towards w^T x'.)

Shapes: `K` inputs of a projection, `N` outputs, `T` tokens.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import BUILTIN, load_text, load_tokenizer
from maskpro_deploy.exporters.graph.builder import DTYPES, Graph, Weight
from maskpro_deploy.exporters.graph.data_file import Quantised, write_weights
from maskpro_deploy.exporters.graph.weight_kinds import DType, Floats
from maskpro_deploy.exporters.graph.weight_tiles import read_columns
from maskpro_deploy.exporters.quantize.descent import damp, descend
from maskpro_deploy.exporters.quantize.stages import Stream, cut_stages
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.progress import SILENT, Progress

_SEQUENCES, _TOKENS = 32, 256
_HEAD = "lm_head"


def calibrate(
    graph: Graph,
    weights: Mapping[str, Weight],
    checkpoint: Checkpoint,
    folder: Path,
    dtype: str,
    max_length: int,
    progress: Progress = SILENT,
) -> dict[str, Quantised]:
    """Round every projection of `weights`, those of a graph in `dtype`, that is to be quantised; needs onnxruntime.

    `graph` is the same model in fp32, not quantised, in the `cat` form, and runs sequences of up to `max_length`. `folder` is
    empty; it takes the fp32 model and the rounded weights, and may go once the weights are written.
    """
    require("cpu", "calibrating on text")
    blob = write_weights(graph.weights.values(), checkpoint, folder / "model.onnx.data", "fp32")
    model = graph.model(blob.tensors(), {})
    feeds = [_make_feeds(model, tokens) for tokens in _load_texts(checkpoint, min(_TOKENS, max_length))]
    copy = folder / "rounded.onnx.data"
    shutil.copyfile(blob.path, copy)
    plain, rounded = Stream(model, blob.path, feeds), Stream(model, copy, feeds)
    todo = {
        piece.name: dataclasses.replace(piece, quantization=weight.quantization)
        for weight in weights.values()
        if weight.quantization is not None and (weight.projection or weight.quantization.stored.bits < 8)
        for piece in weight.pieces
    }
    products = _find_products(model, set(todo))
    result: dict[str, Quantised] = {}
    for stage, (value, users) in zip(cut_stages(model, [p[0].number for p in products.values()]), products.items(), strict=True):
        plain.advance(stage)
        rounded.advance(stage)
        hessian, drift = _sum_outer_products(plain, rounded, value)
        for product in users:
            pulled = _sum_pull(plain, rounded, value, product.added_to)
            weight = todo[product.weight]
            result[weight.name], dequantised = _round_projection(
                weight, checkpoint, hessian, drift, pulled, folder, DTYPES[dtype][1]
            )
            rounded.change(weight.name, dequantised)
            progress.update(len(result), len(todo))
    return result


def _load_texts(checkpoint: Checkpoint, length: int) -> list[npt.NDArray[np.int64]]:
    """Token sequences of the built-in text that masks are learned on; the held-out part stays unseen."""
    tokenizer = load_tokenizer(checkpoint.folder)
    documents = load_text(BUILTIN).documents
    sequences = []
    for text in documents[:: max(1, len(documents) // _SEQUENCES)][:_SEQUENCES]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        if len(ids) > 1:
            sequences.append(np.asarray([ids], dtype=np.int64))
    return sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A MatMul, by its number, its weight, and what its output, or output and bias, is added to; "" if to nothing."""

    number: int
    weight: str
    added_to: str


def _find_products(model: onnx.ModelProto, names: set[str]) -> dict[str, list[_Product]]:
    """The value that goes into each product -> the products, in graph order."""
    constant = {tensor.name for tensor in model.graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    products: dict[str, list[_Product]] = {}
    for number, node in enumerate(model.graph.node):
        if node.op_type != "MatMul":
            continue
        # a tied head is a transposed embedding here, and a weight of its own once it is quantised
        name = f"{_HEAD}.weight" if node.name == f"/{_HEAD}" and node.input[1] not in names else node.input[1]
        if name in names:
            product = _Product(number=number, weight=name, added_to=_find_sum(users, constant, node.output[0]))
            products.setdefault(node.input[0], []).append(product)
    return products


def _find_sum(users: Mapping[str, list[onnx.NodeProto]], constant: set[str], value: str) -> str:
    """What a value is added to, past its bias; "" if anything else uses it first."""
    while len(adds := users.get(value, [])) == 1 and adds[0].op_type == "Add":
        other = next((name for name in adds[0].input if name != value), "")
        if other not in constant:
            return other
        value = adds[0].output[0]
    return ""


def _sum_outer_products(plain: Stream, rounded: Stream, value: str) -> tuple[Floats, Floats]:
    """Sums over all tokens: H = x' x'^T, damped, and the drift x' (x' - x)^T.  # (K, K) each"""
    hessian = drift = np.zeros((), np.float32)
    for before, now in zip(plain.values, rounded.values, strict=True):
        x, own = _flatten(before[value]), _flatten(now[value])
        hessian = hessian + own.T @ own
        drift = drift + own.T @ (own - x)
    return damp(hessian), drift


def _sum_pull(plain: Stream, rounded: Stream, value: str, added_to: str) -> Floats | None:
    """The sum over all tokens of x' (r' - r)^T; None if the output is not added to what is there already.  # (K, N)"""
    first = plain.values[0]
    if added_to not in first or first[added_to].shape[:-1] != first[value].shape[:-1]:
        return None
    total = np.zeros((), np.float32)
    for before, now in zip(plain.values, rounded.values, strict=True):
        total = total + _flatten(now[value]).T @ (_flatten(now[added_to]) - _flatten(before[added_to]))
    return total


def _flatten(value: npt.NDArray[Any]) -> Floats:
    """# (1, T, K) -> (T, K)"""
    return value.reshape(-1, value.shape[-1])


def _make_feeds(model: onnx.ModelProto, tokens: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the `cat` form without a past."""
    feeds: dict[str, npt.NDArray[Any]] = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1])[None],
    }
    for value in model.graph.input:
        if value.name.startswith("past_key_values"):
            _, heads, _, size = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
            feeds[value.name] = np.zeros((1, heads, 0, size), np.float32)
    return {value.name: feeds[value.name] for value in model.graph.input}


def _round_projection(
    weight: Weight, checkpoint: Checkpoint, hessian: Floats, drift: Floats, pulled: Floats | None, folder: Path, scale_type: DType
) -> tuple[Quantised, Floats]:
    """One projection, its integers mapped from a file, and what it stands for.  # [K, N]"""
    quantization = weight.quantization
    assert quantization is not None
    k, n = weight.shape
    w = np.ascontiguousarray(read_columns(weight, checkpoint, 0, n).T)  # (K, N)
    slope = drift @ w
    if pulled is not None:
        slope += pulled
    integers, scales = descend(w, hessian, quantization, scale_type, slope)
    path = folder / f"{weight.name}.int8"
    integers.tofile(path)
    wide = np.repeat(scales, k // len(scales), axis=0) if scales.ndim > 1 else scales
    return Quantised(integers=np.memmap(path, np.int8, "r", shape=(k, n)), scales=scales), integers * wide

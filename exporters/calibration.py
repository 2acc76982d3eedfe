"""Calibration: weights become integers with the errors that matter, found by running the model on text.

The inputs of every projection are collected from the fp32 graph itself, run in onnxruntime on built-in text; projections that
share an input share its sum of outer products. `descent.py` does the rounding. The rounded weights go to a file as they are made.

Shapes: `K` inputs of a projection, `N` outputs, `T` tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import BUILTIN, load_text, load_tokenizer
from maskpro_deploy.exporters.blob import Quantised, columns, write_weights
from maskpro_deploy.exporters.descent import damped, descend
from maskpro_deploy.exporters.graph import DTYPES, Graph, Weight
from maskpro_deploy.extras import require
from maskpro_deploy.progress import SILENT, Progress

Floats = npt.NDArray[np.float32]

_SEQUENCES, _TOKENS = 32, 256
_HEAD = "lm_head"
_SECTION_BYTES = 512 << 20  # of sums of outer products held at a time


def calibrate(
    graph: Graph,
    weights: Mapping[str, Weight],
    checkpoint: Checkpoint,
    folder: Path,
    dtype: str,
    max_length: int,
    progress: Progress = SILENT,
) -> dict[str, Quantised]:
    """Round every projection that is to be quantised.

    Args:
        graph: the same model in fp32, not quantised, in the `cat` form.
        weights: the weights of the graph to be written, by name.
        checkpoint: where they come from.
        folder: an empty folder for the fp32 model and the rounded weights; it may go once the weights are written.
        dtype: float type of the graph to be written, in which the scales will lie.
        max_length: the longest sequence that the graph can run.
        progress: told the projections done.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    require("cpu", "calibrating on text")
    path, texts = folder / "model.onnx", _texts(checkpoint, min(_TOKENS, max_length))
    blob = write_weights(graph.weights.values(), checkpoint, folder / "model.onnx.data", "fp32")
    model = graph.model(blob.tensors(), {})
    todo = {
        piece.name: dataclasses.replace(piece, quantization=weight.quantization)
        for weight in weights.values()
        if weight.quantization is not None and (weight.projection or weight.quantization.kind == "int4")
        for piece in weight.pieces
    }
    result: dict[str, Quantised] = {}
    for inputs in _sections(_inputs(model, set(todo)), todo):
        for value, hessian in _hessians(model, path, list(inputs), texts).items():
            damped(hessian)
            for name in inputs[value]:
                result[name] = _rounded(todo[name], checkpoint, hessian, folder, DTYPES[dtype][1])
                progress.update(len(result), len(todo))
    return result


def _texts(checkpoint: Checkpoint, length: int) -> list[npt.NDArray[np.int64]]:
    """Token sequences of the built-in text that masks are learned on; the held-out part stays unseen."""
    tokenizer = load_tokenizer(checkpoint.folder)
    documents = load_text(BUILTIN).documents
    found = []
    for text in documents[:: max(1, len(documents) // _SEQUENCES)][:_SEQUENCES]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[:length]
        if len(ids) > 1:
            found.append(np.asarray([ids], dtype=np.int64))
    return found


def _inputs(model: onnx.ModelProto, names: set[str]) -> dict[str, list[str]]:
    """The value that goes into each projection -> the projections, in graph order."""
    users: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul":
            continue
        # a tied head is a transposed embedding here, and a weight of its own once it is quantised
        name = f"{_HEAD}.weight" if node.name == f"/{_HEAD}" and node.input[1] not in names else node.input[1]
        if name in names:
            users.setdefault(node.input[0], []).append(name)
    return users


def _sections(users: Mapping[str, list[str]], weights: Mapping[str, Weight]) -> Iterator[dict[str, list[str]]]:
    """As many inputs at a time as their sums of outer products may take memory."""
    section: dict[str, list[str]] = {}
    held = 0
    for value, names in users.items():
        size = 4 * weights[names[0]].shape[0] ** 2
        if section and held + size > _SECTION_BYTES:
            yield section
            section, held = {}, 0
        section[value] = names
        held += size
    if section:
        yield section


def _hessians(
    model: onnx.ModelProto, path: Path, values: Sequence[str], texts: Sequence[npt.NDArray[np.int64]]
) -> dict[str, Floats]:
    """The sum of outer products of each value over all tokens.  # (K, K) each"""
    import onnxruntime

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values)
    path.write_bytes(probe.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sums: dict[str, Floats] = {}
    for tokens in texts:
        for value, x in zip(values, session.run(list(values), _feeds(session, tokens)), strict=True):
            flat = x.reshape(-1, x.shape[-1])
            sums[value] = sums[value] + flat.T @ flat if value in sums else flat.T @ flat
    return sums


def _feeds(session: Any, tokens: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the `cat` form without a past."""
    feeds: dict[str, npt.NDArray[Any]] = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1])[None],
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return {value.name: feeds[value.name] for value in session.get_inputs()}


def _rounded(
    weight: Weight, checkpoint: Checkpoint, hessian: Floats, folder: Path, scale_type: np.dtype[np.generic]
) -> Quantised:
    """One projection; its integers are mapped from a file."""
    quantization = weight.quantization
    assert quantization is not None
    k, n = weight.shape
    w = np.ascontiguousarray(columns(weight, checkpoint, 0, n).T)  # (K, N)
    integers, scales = descend(w, hessian, quantization, scale_type)
    path = folder / f"{weight.name}.int8"
    integers.tofile(path)
    return Quantised(integers=np.memmap(path, np.int8, "r", shape=(k, n)), scales=scales)

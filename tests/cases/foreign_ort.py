"""What onnxruntime's own tools make of a graph: its optimiser, its transformer optimiser, its float16 conversion, its quantisers.

Each takes the path of a graph and the path to write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from foreign_models import HEADS, HIDDEN, VOCAB
from onnxruntime import quantization as q
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

Tool = Callable[[Path, Path], None]
LEVELS = {
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def optimised(level: str) -> Tool:
    """A session's graph, as it is saved."""

    def run(source: Path, target: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[level]
        options.optimized_model_filepath = str(target)
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return run


def transformer(kind: str, *, half: bool = False, level: int | None = None) -> Tool:
    """`onnxruntime.transformers.optimizer`."""

    def run(source: Path, target: Path) -> None:
        from onnxruntime.transformers import optimizer

        model = optimizer.optimize_model(str(source), kind, num_heads=HEADS, hidden_size=HIDDEN, opt_level=level)
        if half:
            model.convert_float_to_float16(keep_io_types=True)
        model.save_model_to_file(str(target))

    return run


def half(source: Path, target: Path) -> None:
    """`onnxruntime.transformers.float16`."""
    from onnxruntime.transformers import float16

    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def dynamic(**settings: Any) -> Tool:
    """`quantize_dynamic`."""

    def run(source: Path, target: Path) -> None:
        q.quantize_dynamic(source, target, **settings)

    return run


def static(**settings: Any) -> Tool:
    """`quantize_static` with random inputs."""

    def run(source: Path, target: Path) -> None:
        q.quantize_static(str(source), str(target), Feeds(source), **settings)

    return run


def bits(config: Callable[[Path], nbits.WeightOnlyQuantConfig]) -> Tool:
    """`MatMulNBitsQuantizer`."""

    def run(source: Path, target: Path) -> None:
        made = config(source)
        quantizer = nbits.MatMulNBitsQuantizer(onnx.load(source), algo_config=made, block_size=32, bits=getattr(made, "bits", 4))
        quantizer.process()
        onnx.save(quantizer.model.model, target)

    return run


def bnb(kind: int) -> Tool:
    """`MatMulBnb4Quantizer`: 0 is FP4, 1 is NF4."""

    def run(source: Path, target: Path) -> None:
        from onnxruntime.quantization.matmul_bnb4_quantizer import MatMulBnb4Quantizer

        quantizer = MatMulBnb4Quantizer(onnx.load(source), kind, 32)
        quantizer.process()
        onnx.save(quantizer.model.model, target)

    return run


class Feeds(q.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """A few random inputs of a graph."""

    def __init__(self, path: Path) -> None:
        rng = np.random.default_rng(0)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        wanted = session.get_inputs()
        past = 3 if any(i.name.startswith("past") for i in wanted) else 0
        self._feeds = iter([{i.name: _input(rng, i, past) for i in wanted} for _ in range(2)])

    def get_next(self) -> Any:
        """One set of inputs."""
        return next(self._feeds, None)


def _input(rng: np.random.Generator, wanted: Any, past: int) -> np.ndarray:
    rank = len(wanted.shape)
    at = dict(enumerate((2, past if wanted.name.startswith("past") and rank == 4 else 5) if rank == 2 else (2,)))
    if wanted.name.startswith("past"):
        at = {0: 2, 2: past}
    elif rank >= 2:
        at = {0: 2, 1: 5 + (past if "mask" in wanted.name else 0)}
    shape = [size if isinstance(size, int) else at[i] for i, size in enumerate(wanted.shape)]
    if "int" in wanted.type:
        high = 2 if "mask" in wanted.name else VOCAB
        return np.ones(shape, np.int64) if high == 2 else rng.integers(0, high, shape)
    return rng.normal(size=shape).astype(np.float32)

"""Single matrix products in onnxruntime: small graphs of the forms that bundles have.

    fp32   MatMul
    2:4    the same, with two of every four weights along K zero
    int8   DequantizeLinear (one scale a column) and MatMul: onnxruntime fuses them into one kernel
    int4   DequantizeLinear (a scale for 32 rows of a column) and MatMul, likewise

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.quantization import Quantization, pack_nibbles

FP32, SPARSE, INT8, INT4 = "fp32", "2:4", "int8", "int4"
FORMS = (FP32, SPARSE, INT8, INT4)
_OPSET, _IR_VERSION = 23, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """One product with a constant weight.

    Attributes:
        form: how the weight is stored, one of `FORMS`.
        k, n: its shape, `# (K, N)`.
    """

    form: str
    k: int
    n: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weight and its scales."""
        values = self.k * self.n
        if self.form == INT8:
            return values + 4 * self.n
        if self.form == INT4:
            return values // 2 + 4 * self.n * (self.k // 32)
        return 4 * values


def weights(gemm: Gemm, seed: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A random weight as integers of 4 bits and a scale for each column, so that all forms can hold the same numbers.

    Returns:
        `# (K, N), (N,)`; for `SPARSE` with two of every four integers along K zero.
    """
    rng = np.random.default_rng([seed, gemm.k, gemm.n])
    integers = rng.integers(-7, 8, (gemm.k, gemm.n), dtype=np.int8)
    if gemm.form == SPARSE:
        groups = integers[: gemm.k // 4 * 4].reshape(-1, 4, gemm.n)
        groups[:, 1::2] = 0
    return integers, rng.uniform(0.5, 1.5, gemm.n).astype(np.float32) / np.float32(7 * gemm.k**0.5)


def gemm_model(gemm: Gemm, copies: int = 1) -> bytes:
    """An ONNX model that multiplies x (M, K) with `copies` different weights: outputs y0 (M, N), y1, ..."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []
    for i in range(copies):
        integers, scale = weights(gemm, i)
        if gemm.form in (FP32, SPARSE):
            constants.append(numpy_helper.from_array(integers * scale, f"w{i}"))
            name = f"w{i}"
        else:
            stored, scales, settings = _quantised(gemm, integers, scale, i)
            constants += [stored, numpy_helper.from_array(scales, f"s{i}")]
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}"], [f"w{i}"], **settings))
            name = f"w{i}"
        nodes.append(helper.make_node("MatMul", ["x", name], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", gemm.n]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", gemm.k])
    graph = helper.make_graph(nodes, "products", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _quantised(
    gemm: Gemm, integers: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], i: int
) -> tuple[Any, npt.NDArray[np.float32], dict[str, int]]:
    """The stored tensor, its scales and the settings of DequantizeLinear, as bundles have them."""
    from onnx import TensorProto, helper

    if gemm.form == INT8:
        return helper.make_tensor(f"q{i}", TensorProto.INT8, integers.shape, integers.tobytes(), raw=True), scale, {"axis": 1}
    packed = pack_nibbles(integers).tobytes()
    stored = helper.make_tensor(f"q{i}", TensorProto.INT4, integers.shape, packed, raw=True)
    block = Quantization.make(INT4, None).block_for(gemm.k)
    if not block:
        return stored, scale, {"axis": 1}
    return stored, np.tile(scale, (gemm.k // block, 1)), {"axis": 0, "block_size": block}


class Product:
    """An open session of `gemm_model`.

    Args:
        gemm: the product.
        copies: different weights that one call multiplies with.
        threads: CPU threads; None: all cores.
    """

    def __init__(self, gemm: Gemm, copies: int = 1, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if threads is not None:
            options.intra_op_num_threads = threads
        self._copies = copies
        self._session = onnxruntime.InferenceSession(gemm_model(gemm, copies), options, providers=["CPUExecutionProvider"])

    def call(self, x: npt.NDArray[np.float32]) -> Callable[[], list[npt.NDArray[np.float32]]]:
        """What multiplies x with all weights; the outputs stay in one place and are overwritten by the next call.  # (M, K)"""
        import onnxruntime

        binding = self._session.io_binding()
        given = onnxruntime.OrtValue.ortvalue_from_numpy(x)
        binding.bind_ortvalue_input("x", given)
        outputs = [np.zeros((len(x), o.shape[1]), np.float32) for o in self._session.get_outputs()]
        bound = [onnxruntime.OrtValue.ortvalue_from_numpy(y) for y in outputs]
        for i, value in enumerate(bound):
            binding.bind_ortvalue_output(f"y{i}", value)

        def run() -> list[npt.NDArray[np.float32]]:
            self._session.run_with_iobinding(binding)
            return [value.numpy() for value in bound]

        return run


def open_gemm(gemm: Gemm, m: int, threads: int | None) -> Callable[[], object]:
    """One product of `m` tokens, ready to run."""
    x = np.random.default_rng(0).standard_normal((m, gemm.k), dtype=np.float32)
    return Product(gemm, threads=threads).call(x)

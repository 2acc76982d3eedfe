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

from maskpro_deploy.backends.onnxruntime_.sessions import open_graph
from maskpro_deploy.bench.arms import PreparedTask, Task, Work
from maskpro_deploy.bench.kernels.measure import KernelCase
from maskpro_deploy.exporters.graph.quantization import Quantization, pack_nibbles
from maskpro_deploy.exporters.graph.weight_kinds import WEIGHT_KINDS

FP32, SPARSE = "fp32", "2:4"
FORMS = (FP32, SPARSE, *(kind.name for kind in WEIGHT_KINDS.values() if kind.fused_on_cpu))
_OPSET, _IR_VERSION = 23, 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """One product with a constant weight of shape (K, N); `form` is how that is stored, one of `FORMS`."""

    form: str
    k: int
    n: int

    @property
    def weight_bytes(self) -> int:
        """Bytes of the stored weight and its scales."""
        if (stored := self.quantization) is None:
            return 4 * self.k * self.n
        block = stored.block_for(self.k)
        return self.k * self.n * stored.stored.bits // 8 + 4 * self.n * (self.k // block if block else 1)

    @property
    def quantization(self) -> Quantization | None:
        """How bundles store such a weight; None for fp32."""
        return Quantization.make(self.form, None) if self.form in WEIGHT_KINDS else None


def draw_weights(gemm: Gemm, seed: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """A random weight as integers of 4 bits and a scale for each column, so that all forms can hold the same numbers.

    For `SPARSE`, two of every four integers along K are zero.  # (K, N), (N,)
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
        integers, scale = draw_weights(gemm, i)
        if gemm.quantization is None:
            constants.append(numpy_helper.from_array(integers * scale, f"w{i}"))
        else:
            stored, scales, settings = _quantise(gemm.quantization, integers, scale, f"q{i}")
            constants += [stored, numpy_helper.from_array(scales, f"s{i}")]
            nodes.append(helper.make_node("DequantizeLinear", [f"q{i}", f"s{i}"], [f"w{i}"], **settings))
        nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["M", gemm.n]))
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", gemm.k])
    graph = helper.make_graph(nodes, "products", [given], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def _quantise(
    quantization: Quantization, integers: npt.NDArray[np.int8], scale: npt.NDArray[np.float32], name: str
) -> tuple[Any, npt.NDArray[np.float32], dict[str, int]]:
    """The stored tensor, its scales and the settings of DequantizeLinear, as bundles have them."""
    from onnx import helper

    k, kind = len(integers), quantization.stored
    raw = (pack_nibbles(integers) if kind.bits < 8 else integers).tobytes()
    stored = helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(kind.dtype), integers.shape, raw, raw=True)
    if block := quantization.block_for(k):
        return stored, np.tile(scale, (k // block, 1)), {"axis": 0, "block_size": block}
    return stored, scale, {"axis": 1}


class Product:
    """An open session of `gemm_model`; `threads` None takes all cores."""

    def __init__(self, gemm: Gemm, copies: int = 1, threads: int | None = None) -> None:
        self._session = open_graph(gemm_model(gemm, copies), threads=threads)

    def call(self, x: npt.NDArray[np.float32]) -> Callable[[], list[npt.NDArray[np.float32]]]:
        """What multiplies x with all weights; the outputs stay in one place and are overwritten by the next call.  # (M, K)"""
        import onnxruntime

        binding = self._session.io_binding()
        given = onnxruntime.OrtValue.ortvalue_from_numpy(x)  # shares the array's memory, as do the outputs
        binding.bind_ortvalue_input("x", given)
        outputs = [np.zeros((len(x), o.shape[1]), np.float32) for o in self._session.get_outputs()]
        for i, array in enumerate(outputs):
            binding.bind_ortvalue_output(f"y{i}", onnxruntime.OrtValue.ortvalue_from_numpy(array))

        def run() -> list[npt.NDArray[np.float32]]:
            self._session.run_with_iobinding(binding)
            return outputs

        return run


def open_gemm(gemm: Gemm, m: int, threads: int | None) -> Callable[[], object]:
    """One product of `m` tokens, ready to run."""
    x = np.random.default_rng(0).standard_normal((m, gemm.k), dtype=np.float32)
    return Product(gemm, threads=threads).call(x)


class OpenForm:
    """All products of a model in one form; holds one of them at a time, as cases come product by product.

    Args:
        form: of the weights.
        threads: CPU threads; None: all cores.
        flush: empties the caches before each timed call, so that weights come from memory as in a whole model.
    """

    def __init__(self, form: str, threads: int | None, flush: Callable[[], object]) -> None:
        self._form, self._threads, self._flush = form, threads, flush
        self._shape: tuple[int, int] | None = None
        self._product: Product | None = None

    def __call__(self, case: KernelCase) -> Task:
        run = self._call(case)

        def work() -> Work:
            bits: npt.NDArray[np.int64] = run()[0][:1, :4].view(np.int32).astype(np.int64)
            return Work(tokens=bits)

        return PreparedTask(self._flush, work)

    def error(self, case: KernelCase) -> float:
        """The largest difference of the first product from numpy's in fp32, as a part of the largest value."""
        integers, scale = draw_weights(Gemm(form=self._form, k=case.k, n=case.n), 0)
        expected = _draw_tokens(case) @ (integers * scale)
        return float(np.abs(self._call(case)()[0] - expected).max() / np.abs(expected).max())

    def _call(self, case: KernelCase) -> Callable[[], list[npt.NDArray[np.float32]]]:
        if self._product is None or self._shape != (case.k, case.n):
            self._product = None  # before the next one is made
            self._product = Product(Gemm(form=self._form, k=case.k, n=case.n), case.copies, self._threads)
            self._shape = (case.k, case.n)
        return self._product.call(_draw_tokens(case))


def _draw_tokens(case: KernelCase) -> npt.NDArray[np.float32]:
    """# (M, K)"""
    return np.random.default_rng([case.m, case.k]).standard_normal((case.m, case.k), dtype=np.float32)

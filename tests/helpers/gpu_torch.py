"""Stand-ins for what torch has on a GPU only: ways to store a weight, and libraries that refuse some shapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

from maskpro_deploy.bench.products.timing import CPU
from maskpro_deploy.bench.products.ways import cusparselt, int8_dense


class Same:
    """A way to store a weight that changes nothing."""

    from_dense = staticmethod(lambda weight: weight)


class Wrong:
    from_dense = staticmethod(lambda weight: 1.1 * weight)


class Refusing:
    @staticmethod
    def from_dense(weight: Any) -> Any:
        raise RuntimeError("not this shape\nand more")


class Packed:
    """What the 8-bit products take: `packed`; here it is the weight itself."""

    def __init__(self, weight: Any) -> None:
        self.packed = weight

    from_dense = classmethod(lambda cls, weight: cls(weight))


class GpuTorch:
    """torch as a GPU's libraries are: dense 8-bit products of more than 16 tokens, 2:4 ones of multiples of 16.

    Args:
        torch: the module.
        outputs: the (out_dtype, transpose_result) that cuSPARSELt takes.
    """

    def __init__(self, torch: Any, outputs: Collection[tuple[Any, bool]]) -> None:
        self._torch, self._outputs = torch, outputs
        self.multiplied: list[int] = []
        self.algorithms: list[dict[str, Any]] = []
        self._C = SimpleNamespace(_cusparselt=SimpleNamespace(mm_search=self._search))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def _int_mm(self, x: Any, weight: Any) -> Any:
        if len(x) <= 16:
            raise RuntimeError(f"self.size(0) needs to be greater than 16, but got {len(x)}")
        self.multiplied.append(len(x))
        return self._torch._int_mm(x, weight)

    def _cslt_sparse_mm(self, packed: Any, x: Any, *, out_dtype: Any, transpose_result: bool, **algorithm: Any) -> Any:
        if x.shape[1] % 16 or (out_dtype, transpose_result) not in self._outputs:
            raise RuntimeError(f"CUDA error: not supported for {out_dtype}")
        self.algorithms.append(algorithm)
        wide = self._torch.int32 if x.dtype == self._torch.int8 else x.dtype
        product = (packed.to(wide) @ x.to(wide)).to(out_dtype or x.dtype)
        return product.t() if transpose_result else product

    def _search(
        self, packed: Any, x: Any, bias: Any, alpha: Any, out_dtype: Any, transpose_result: bool
    ) -> tuple[int, int, int, int]:
        if x.shape[1] % 16:
            raise RuntimeError("CUDA error: not supported")
        return x.shape[1], 2, 1, 40


def make_int8_ways(torch: Any) -> dict[str, Callable[..., Any]]:
    tuned = cusparselt(torch, Packed, tuned=True)
    return {"dense": int8_dense(torch), "cusparselt": cusparselt(torch, Packed), "cusparselt-tuned": tuned}


class WallClock:
    """For work that is done when the call returns."""

    device = CPU

    def cover(self, launch_ms: float) -> None:
        """The launch is all there is."""

    def time(self, work: Callable[[], object]) -> Callable[[], float]:
        started = time.perf_counter()
        work()
        milliseconds = 1e3 * (time.perf_counter() - started)
        return lambda: milliseconds

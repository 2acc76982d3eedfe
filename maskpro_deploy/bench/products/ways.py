"""The ways in which torch multiplies on a GPU: dense and 2:4, in fp16, bf16 and int8.

A way takes a weight and the input of a layer and makes a product that is ready to run. fp16 and bf16 go through `linear`, where
torch itself pads the input of a 2:4 product to the multiple of tokens that the library asks for. The 8-bit products add up in
int32: dense ones by `torch._int_mm`, 2:4 ones by cuSPARSELt. Where these take no M as small as the one asked for, the input is
padded, and padding is part of the product and timed with it; `Product.rows` gives the padded M. Quantising the input and scaling
the output, which a layer needs as well, is in neither. cuSPARSELt runs by the algorithm that torch takes by default, and as
`TUNED` by the fastest that the library's own search finds for this shape; the search is not timed.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from maskpro_deploy.bench.products.timing import DENSE
from maskpro_deploy.errors import first_line

CUSPARSELT, TUNED, CUTLASS = "cusparselt", "cusparselt-tuned", "cutlass"
# torch's two ways to run 2:4: name -> tensor class in torch.sparse
BACKENDS = {CUSPARSELT: "SparseSemiStructuredTensorCUSPARSELT", CUTLASS: "SparseSemiStructuredTensorCUTLASS"}
INT8 = "int8"
DTYPES = ("float16", "bfloat16", INT8)
_PROBE = 64  # M, N and K of the product that shows whether a way works at all
_STEPS = (16, 32)  # multiples of M that 8-bit kernels ask for; those for 16 bits take 8 as well
_RANGE = 127
_SEARCH = "import sys, torch; from maskpro_deploy.bench.products.ways import search_once; search_once(torch, sys.argv[1])"
_SEARCH_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product with its weight in place."""

    run: Callable[[], Any]  # multiplies; gives `# (M, N)`
    rows: int  # the M that is multiplied: above the one asked for where `run` pads the input
    output: str  # type of the result


Way = Callable[[Any, Any], Product]  # of a weight (N, K) and an input (M, K); raises where the library refuses
Prepare = Callable[[Any], Callable[[Any], Any]]  # given a padded input, makes what multiplies such ones
Ways = Mapping[str, Mapping[str, Way]]  # dtype -> arm -> way


def linear(torch: Any, convert: Callable[[Any], Any] = lambda weight: weight) -> Way:
    """A layer of torch, with the weight stored by `convert`."""

    def way(weight: Any, x: Any) -> Product:
        stored = convert(weight)
        multiply = torch.nn.functional.linear
        return Product(run=lambda: multiply(x, stored), rows=len(x), output=_type_name(x.dtype))

    return way


def int8_dense(torch: Any) -> Way:
    """`torch._int_mm`, which on CUDA has asked for more than 16 tokens."""

    def way(weight: Any, x: Any) -> Product:
        turned = weight.t()  # a view: the kernels take a weight that lies column by column
        return _pad_input(torch, x, (1, *_STEPS), lambda sample: lambda given: torch._int_mm(given, turned), "int32")

    return way


def cusparselt(torch: Any, kind: Any, *, tuned: bool = False) -> Way:
    """CuSPARSELt's product. Of 8-bit numbers: the same sums as those of the dense one, or rounded to bf16 where it refuses them.

    `kind` is the tensor class, whose `from_dense` gives something with `packed`; with `tuned`, the library searches for its
    fastest algorithm first.
    """

    def way(weight: Any, x: Any) -> Product:
        packed = kind.from_dense(weight).packed
        wide, steps = ((torch.int32, torch.bfloat16), _STEPS) if x.dtype == torch.int8 else ((None,), (8, *_STEPS))
        reasons = []
        for dtype in wide:
            for turned in (True, False):  # the result row by row, as the next layer takes it; else column by column
                prepare = partial(_prepare_cusparselt, torch, packed, dtype, turned=turned, tuned=tuned)
                try:
                    output = _type_name(dtype or x.dtype) + ("" if turned else ", column by column")
                    return _pad_input(torch, x, steps, prepare, output)
                except Exception as e:  # of whatever kind torch says no with
                    reasons.append(describe_error(e))
        raise RuntimeError(reasons[0])

    return way


def _prepare_cusparselt(torch: Any, packed: Any, dtype: Any, sample: Any, *, turned: bool, tuned: bool) -> Callable[[Any], Any]:
    """What multiplies inputs of the sample's shape."""
    options = {"out_dtype": dtype, "transpose_result": turned}
    if tuned:
        algorithm = torch._C._cusparselt.mm_search(packed, sample.t(), None, None, dtype, turned)
        options |= dict(zip(("alg_id", "split_k", "split_k_mode"), algorithm[:3], strict=True))

    def multiply(given: Any) -> Any:
        result = torch._cslt_sparse_mm(packed, given.t(), **options)
        return result if turned else result.t()

    return multiply


def _pad_input(
    torch: Any, x: Any, steps: tuple[int, ...], prepare: Callable[[Any], Callable[[Any], Any]], output: str
) -> Product:
    """The product of x (M, K) with as little padding as the library takes: M up to a multiple of one of the steps.

    A `RuntimeError` with the message of the last where it takes none of them.
    """
    m = len(x)
    sizes = sorted({-(-m // step) * step for step in steps})
    for rows in sizes:
        try:
            run = _multiply_padded(torch, x, rows, prepare)
            run()
        except RuntimeError:
            if rows == sizes[-1]:
                raise
        else:
            return Product(run=run, rows=rows, output=output)
    raise AssertionError("no size was tried")


def _multiply_padded(torch: Any, x: Any, rows: int, prepare: Prepare) -> Callable[[], Any]:
    m = len(x)
    if rows == m:
        multiply = prepare(x)
        return lambda: multiply(x)
    pad = torch.nn.functional.pad
    multiply = prepare(pad(x, (0, 0, 0, rows - m)))
    return lambda: multiply(pad(x, (0, 0, 0, rows - m)))[:m]


def find_working_ways(torch: Any, device: str) -> tuple[dict[str, dict[str, Way]], dict[str, str]]:
    """What multiplies here, and why the rest does not.

    dtype -> arm -> way, each dtype with its dense arm first; and reasons by "backend" or "int8 backend".
    """
    ways: dict[str, dict[str, Way]] = {}
    refused: dict[str, str] = {}
    for dtype in DTYPES:
        for arm, way in _list_candidates(torch, dtype):
            label = arm if dtype != INT8 else f"{INT8} {arm}"
            if label in refused:
                continue
            if arm == TUNED and device != "cpu" and (reason := _explain_failing_search(dtype)):
                refused[label] = reason
                continue
            try:
                try_out(torch, way, dtype, device)
            except Exception as e:  # torch raises many kinds; the first line says enough
                refused[label] = describe_error(e)
            else:
                ways.setdefault(dtype, {})[arm] = way
    return ways, refused


def try_out(torch: Any, way: Way, dtype: str, device: str) -> None:
    """Run a way once on a small product; raises whatever it raises."""
    way(*draw_operands(torch, getattr(torch, dtype), (_PROBE, _PROBE, _PROBE), device)).run()
    if device != "cpu":
        torch.cuda.synchronize()


def _explain_failing_search(dtype: str) -> str:
    """Why cuSPARSELt's search does not work here, or "".

    It tries kernels that may end in an illegal instruction (seen with cuSPARSELt 0.8 and fp16 on an H100), after which a process
    can do nothing more on the GPU: so it is tried in one of its own.
    """
    done = subprocess.run([sys.executable, "-c", _SEARCH, dtype], capture_output=True, text=True, timeout=_SEARCH_S, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def search_once(torch: Any, dtype: str) -> None:
    """Let the library search for its fastest algorithm for a small product, on the GPU."""
    try:
        try_out(torch, dict(_list_candidates(torch, dtype))[TUNED], dtype, "cuda")
    except Exception as e:
        sys.exit(describe_error(e))


def _list_candidates(torch: Any, dtype: str) -> Iterator[tuple[str, Way]]:
    kinds = {name: getattr(torch.sparse, class_name, None) for name, class_name in BACKENDS.items()}
    yield DENSE, int8_dense(torch) if dtype == INT8 else linear(torch)
    if dtype == INT8:
        yield CUSPARSELT, cusparselt(torch, kinds[CUSPARSELT])
    else:
        yield from ((name, linear(torch, _store_as(kind))) for name, kind in kinds.items())
    yield TUNED, cusparselt(torch, kinds[CUSPARSELT], tuned=True)


def _store_as(kind: Any) -> Callable[[Any], Any]:
    return lambda weight: kind.from_dense(weight)  # looked up when it is called, where its absence is an answer


def draw_operands(torch: Any, dtype: Any, sizes: tuple[int, int, int], device: str) -> tuple[Any, Any]:
    """A random weight with the largest two of every four along K kept, and an input.  # (M, N, K) -> (N, K), (M, K)

    Integers are drawn from all that int8 has but -128. K is a multiple of 4.
    """
    m, n, k = sizes
    groups = _draw(torch, dtype, (n * k // 4, 4), device)
    largest = groups.float().abs().topk(2, dim=1).indices
    kept = torch.zeros_like(groups).scatter_(1, largest, 1)
    return (groups * kept).view(n, k), _draw(torch, dtype, (m, k), device)


def _draw(torch: Any, dtype: Any, shape: tuple[int, int], device: str) -> Any:
    if dtype == torch.int8:
        return torch.randint(-_RANGE, _RANGE + 1, shape, device=device, dtype=dtype)
    return torch.randn(shape, device=device, dtype=dtype)


def describe_error(error: Exception) -> str:
    """What torch said, in a line however long: what it lacks may stand at its end."""
    return first_line(error, most=sys.maxsize)


def _type_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

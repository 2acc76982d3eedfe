"""Rounding a weight so that its outputs change least, one row of integers after another. The mask is kept.

The error e = q * scale - w of a rounded projection costs, on its inputs x,

    e^T H e + 2 s^T e        H = sum of x x^T over the tokens seen, s = sum of x d

for every column, where d is what its output is off already, because its inputs are not those of the model before rounding; s is
0 where they are. H's diagonal is raised first (`damp`). Beginning with the scales that are best if nothing but that diagonal
counted, and with what is nearest on them, each row in turn takes the integers that are best given all others,

    e[i] <- round to the grid of (e[i] - g[i] / H[i, i])        g = H e + s

and each block the scale that is best given its integers. Neither step can raise the cost. Pruned weights are no variables: they
are 0 before and after, whatever their neighbours do. (GPTQ goes through the rows once and pushes each error on to the rows still
to come; with half of them pruned, half of what it pushes on is lost.)

Shapes: `K` inputs, `N` outputs, `G` blocks.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from maskpro_deploy.exporters.graph.quantization import Quantization
from maskpro_deploy.exporters.graph.weight_kinds import DType, Floats

_SWEEPS = 4
_ROWS = 64  # rows whose changes are carried to the others together
_DAMPING = 0.01  # of the mean of H's diagonal, added to it: inputs that were not seen matter a little too
# how much H's diagonal grows: some thousand tokens tell of two inputs together what is half chance, and rounding would fit it
_SHRINKAGE = 1.0


def damp(hessian: Floats) -> Floats:
    """H with more on its diagonal, in place: correlations of inputs shrink (Ledoit and Wolf 2004, towards the diagonal)."""
    diagonal = np.einsum("ii->i", hessian)  # a view
    diagonal *= 1 + _SHRINKAGE
    diagonal += _DAMPING * diagonal.mean() + np.finfo(np.float32).tiny
    return hessian


def descend(
    w: Floats, hessian: Floats, quantization: Quantization, scale_type: DType, slope: Floats | None = None
) -> tuple[npt.NDArray[np.int8], Floats]:
    """Integers and scales, to be stored in `scale_type`, of a weight.  # (K, N), (K, K) -> (K, N), (G, N) or (N,)

    `w` is 0 where it is pruned; `hessian` is H as `damp` leaves it; `slope` is s, (K, N), where the outputs are off already.
    """
    block = quantization.block_for(len(w))
    # an error in a row costs at least its own share of H: scales that are best by that are a better start than by w alone
    scales = quantization.scales(np.ascontiguousarray(w.T), scale_type, np.einsum("ii->i", hessian))
    integers = quantization.integers(w, scales, 0, block)
    grouped = scales.reshape(-1, w.shape[1])  # (G, N); a view
    rows = block or len(w)
    e = integers * np.repeat(grouped, rows, axis=0) - w
    for sweep in range(_SWEEPS):
        g = _compute_gradient(hessian, e, slope)
        for start in range(0, len(w), min(_ROWS, rows)):
            stop = min(start + min(_ROWS, rows), len(w))
            before = e[start:stop].copy()
            _round_rows(slice(start, stop), w, e, g, integers, grouped[start // rows], hessian, quantization)
            g[stop:] += hessian[stop:, start:stop] @ (e[start:stop] - before)
        if sweep + 1 < _SWEEPS:
            _fit_scales(_compute_gradient(hessian, e, slope), e, integers, grouped, hessian, scale_type)
    return integers, scales


def _round_rows(
    part: slice,
    w: Floats,
    e: Floats,
    g: Floats,
    integers: npt.NDArray[np.int8],
    scale: Floats,
    hessian: Floats,
    quantization: Quantization,
) -> None:
    """The best integers of some rows, one after the other; all arrays change in place, `g` within these rows only."""
    for i in range(part.start, part.stop):
        wanted = w[i] + e[i] - g[i] / hessian[i, i]
        q = np.clip(np.rint(wanted / scale), quantization.stored.smallest, quantization.stored.largest)
        q *= w[i] != 0
        error = q * scale - w[i]
        g[i : part.stop] += np.outer(hessian[i : part.stop, i], error - e[i])
        integers[i], e[i] = q, error


def _compute_gradient(hessian: Floats, e: Floats, slope: Floats | None) -> Floats:
    """Half of the cost's.  # (K, N)"""
    g = hessian @ e
    if slope is not None:
        g += slope
    return g


def _fit_scales(g: Floats, e: Floats, integers: npt.NDArray[np.int8], scales: Floats, hessian: Floats, scale_type: DType) -> None:
    """The best scale of each block, given its integers; `g`, `e` and `scales` change in place."""
    rows = len(e) // len(scales)
    for block in range(len(scales)):
        part = slice(block * rows, (block + 1) * rows)
        q = integers[part].astype(np.float32)
        curvature = np.einsum("kn,kn->n", q, hessian[part, part] @ q)
        slope = np.einsum("kn,kn->n", q, g[part])
        fitted = np.where(curvature > 0, scales[block] - slope / np.where(curvature > 0, curvature, 1), scales[block])
        fitted = np.asarray(fitted, scale_type).astype(np.float32)
        fitted = np.where(fitted > 0, fitted, scales[block])
        change = q * (fitted - scales[block])
        g += hessian[:, part] @ change
        e[part] += change
        scales[block] = fitted

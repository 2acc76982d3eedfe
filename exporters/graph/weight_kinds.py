"""The kinds of numbers that quantised weights are stored as: the one list of them. To add one: an entry here.

Command line, settings, help texts, graphs, data files and checks take what they need of a kind from its entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
DType = np.dtype[np.generic]

# name of a way to round in `--method` -> what it does; the first is the default
METHODS = {"nearest": "each on its own", "calibrated": "with the errors that matter on built-in text"}
DEFAULT_METHOD = next(iter(METHODS))


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightKind:
    """One kind of stored weights."""

    name: str  # in `--quantize`
    bits: int  # of a value; below 8, two values lie in one byte
    dtype: DType  # of the values
    smallest: int  # the ends of the range that is used
    largest: int
    floating: bool = False  # they are floats, and not integers
    default_block: int = 0  # rows that share a scale by default; 0 for a whole column
    blocks: bool = True  # whether blocks of rows can have scales of their own
    # kinds that the output head can have with it; the first is the default. It decides every token.
    heads: tuple[str, ...] = ("int8",)
    methods: tuple[str, ...] = tuple(METHODS)  # how weights can be rounded, of `METHODS`
    shares: tuple[float, ...] = ()  # parts of the largest value that are tried as the end of the range
    # mean KL divergence (nats) and ratio of perplexities that pass in the comparison with the checkpoint: they tell a wrong graph
    # from a coarse one, no more
    kl: float = 0.1
    perplexity: float = 1.1
    fused_on_cpu: bool = True  # onnxruntime has one kernel on a CPU for dequantising and multiplying


WEIGHT_KINDS = {
    kind.name: kind
    for kind in (
        # steps so fine that clipping never pays
        WeightKind(name="int8", bits=8, dtype=np.dtype(np.int8), smallest=-127, largest=127),
        WeightKind(
            name="int4",
            bits=4,
            dtype=np.dtype(ml_dtypes.int4),
            smallest=-8,  # one value more is worth having where there are few
            largest=7,
            default_block=32,
            heads=("int8", "int4"),
            shares=tuple(float(share) for share in np.linspace(1.0, 0.6, 17)),
            kl=1.5,
            perplexity=2.5,
        ),
        # E4M3
        WeightKind(
            name="fp8",
            bits=8,
            dtype=np.dtype(ml_dtypes.float8_e4m3fn),
            smallest=-448,
            largest=448,
            floating=True,
            blocks=False,
            heads=("fp8",),
            methods=("nearest",),
            fused_on_cpu=False,
        ),
    )
}


def describe_blocks() -> str:
    """The default blocks in words: "0 for int8, 32 for int4"."""
    return ", ".join(f"{kind.default_block} for {kind.name}" for kind in WEIGHT_KINDS.values() if kind.blocks)


def head_kinds() -> list[str]:
    """The kinds among which the output head can be chosen with some kind of weights."""
    return list(dict.fromkeys(head for kind in WEIGHT_KINDS.values() if kind.blocks for head in kind.heads))

"""N:M patterns: in every group of M consecutive weights along the reduction axis, N are kept.

A mask is transposable if its transpose holds the pattern too: N in every row and every column of each block of M x M weights.

Shapes: `R` rows, `C` the reduction dimension, `G = C / M` groups in a row.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import PatternError

_MAX_GROUP = 64
LARGEST_LISTED_BLOCK = 4  # M up to which all transposable masks of a block are listed: 90 for 2:4, 24 for 1:4
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
Counts = npt.NDArray[np.unsignedinteger]


@dataclass(frozen=True, slots=True, order=True)
class NMPattern:
    """N kept weights in every group of M.

    Raises:
        PatternError: unless 0 < N < M <= 64.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m <= _MAX_GROUP:
            raise PatternError(
                f"--sparsity {self.n}:{self.m} is not an N:M pattern: it takes 0 < N < M <= {_MAX_GROUP}, N kept of every M.\n"
                f"The one that sparse tensor cores run is 2:4."
            )

    @classmethod
    def parse(cls, text: str) -> NMPattern:
        """Read "2:4".

        >>> NMPattern.parse("2:4")
        NMPattern(n=2, m=4)

        Raises:
            PatternError: naming what was given.
        """
        match = re.fullmatch(r"\s*(\d{1,4}):(\d{1,4})\s*", text)
        if match is None:
            raise PatternError(f"--sparsity {text!r} is not an N:M pattern.\nGive two numbers and a colon, for example 2:4.")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def density(self) -> float:
        """Share of weights that are kept."""
        return self.n / self.m

    @property
    def num_masks(self) -> int:
        """How many masks a group has: C(M, N)."""
        return math.comb(self.m, self.n)

    def check_divides(self, dimension: int, where: str) -> None:
        """Refuse a reduction dimension that does not consist of whole groups.

        Raises:
            PatternError: naming the layer and the flag that omits it.
        """
        if dimension % self.m:
            raise PatternError(
                f"{self} does not fit {where}: its reduction dimension {dimension} is not a multiple of {self.m}.\n"
                f"Choose another --sparsity, or omit the layer with --exclude."
            )

    def all_masks(self) -> npt.NDArray[np.bool_]:
        """Every mask of one group, in lexicographic order of the kept positions.  # (C(M, N), M)"""
        masks = np.zeros((self.num_masks, self.m), dtype=np.bool_)
        for row, kept in enumerate(itertools.combinations(range(self.m), self.n)):
            masks[row, list(kept)] = True
        return masks

    def all_transposable_masks(self) -> npt.NDArray[np.bool_]:
        """Every M x M mask with N in each row and each column, for M up to `LARGEST_LISTED_BLOCK`.  # (S, M * M), row by row"""
        assert self.m <= LARGEST_LISTED_BLOCK  # beyond that there are far too many
        rows, blocks = self.all_masks(), np.zeros((1, 0, self.m), dtype=np.bool_)
        for left in range(self.m - 1, -1, -1):
            grown = np.concatenate([np.repeat(blocks, len(rows), axis=0), np.tile(rows, (len(blocks), 1))[:, None]], axis=1)
            counts = grown.sum(axis=1)  # in every column so far
            blocks = grown[((counts <= self.n) & (counts + left >= self.n)).all(axis=1)]
        return blocks.reshape(len(blocks), -1)

    def top(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """The mask that keeps the N highest scores of every group along the last axis; ties go to the lower index.

        Scores and mask are (..., C), with C a multiple of M.
        """
        grouped = scores.reshape(*scores.shape[:-1], -1, self.m)  # (..., G, M)
        order = np.argsort(-grouped, axis=-1, kind="stable")
        mask = np.zeros(grouped.shape, dtype=np.bool_)
        np.put_along_axis(mask, order[..., : self.n], True, axis=-1)
        return mask.reshape(scores.shape)

    def counts(self, kept: npt.NDArray[np.bool_]) -> Counts:
        """How many are kept in each group along the last axis.  # (..., C) -> (..., G)"""
        counts = count_in_groups(np.ascontiguousarray(kept).reshape(-1), [self.m], 1)[self.m]
        return counts.reshape(*kept.shape[:-1], kept.shape[-1] // self.m)

    def holds(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether every group along the last axis keeps exactly N."""
        return kept.shape[-1] % self.m == 0 and bool((self.counts(kept) == self.n).all())

    def holds_both_ways(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether a matrix and its transpose both hold it.  # (R, C)"""
        return self.holds(kept) and self.holds(kept.T)


@dataclass(frozen=True, slots=True)
class LayerPatterns:
    """One pattern for all layers, and others for those whose name matches a regular expression; the first match counts.

    Raises:
        PatternError: an expression is none.
    """

    main: NMPattern
    rules: tuple[tuple[str, NMPattern], ...] = ()

    def __post_init__(self) -> None:
        for expression, _ in self.rules:
            try:
                re.compile(expression)
            except re.error as e:
                raise PatternError(f"--sparsity: {expression!r} is not a regular expression: {e}.") from e

    @classmethod
    def parse(cls, text: str) -> LayerPatterns:
        """Read "2:4" or "2:4,down_proj=4:8": the pattern of all layers first, then others with the layers they are for.

        >>> str(LayerPatterns.parse("2:4, down_proj=4:8").of("model.layers.0.mlp.down_proj.weight"))
        '4:8'

        Raises:
            PatternError: naming what was given.
        """
        main, *others = text.split(",")
        rules = []
        for part in others:
            expression, equals, pattern = part.rpartition("=")
            if not equals or not expression.strip():
                raise PatternError(f"--sparsity {text!r}: {part.strip()!r} is not LAYERS=N:M, such as down_proj=4:8.")
            rules.append((expression.strip(), NMPattern.parse(pattern)))
        return cls(NMPattern.parse(main), tuple(rules))

    def of(self, name: str) -> NMPattern:
        """The pattern of a layer, by the name of its weight."""
        layer = name.removesuffix(".weight")
        return next((pattern for expression, pattern in self.rules if re.search(expression, layer)), self.main)

    def __str__(self) -> str:
        return ",".join([str(self.main), *(f"{expression}={pattern}" for expression, pattern in self.rules)])


# what to look for where nobody says, finest first: what holds 2:4 holds 4:8 as well, and 2:4 is the better answer
USUAL_PATTERNS = (NMPattern(1, 4), NMPattern(1, 2), NMPattern(2, 4), NMPattern(4, 8), NMPattern(8, 16))


def count_in_groups(flags: npt.NDArray[np.bool_], sizes: Iterable[int], inner: int) -> dict[int, Counts]:
    """Count the flags that are set in each group, for every group size M: (outer * M * inner,) to M -> (outer * inner,).

    Flags are in row-major order. `inner` are the elements between neighbours of a group; 1 where groups lie along the last axis.
    """
    counts: dict[int, Counts] = {}
    for m in sorted(set(sizes)):
        if inner == 1 and m in _WORDS:  # a group's flags are the bytes of one integer
            counts[m] = _sum_bytes(np.ascontiguousarray(flags).view(_WORDS[m]))
        else:  # add up groups that are counted already, or single flags
            part = max((k for k in counts if m % k == 0), default=1)
            parts = counts[part] if part > 1 else flags.view(np.uint8)
            counts[m] = _add_up(parts.reshape(-1, m // part, inner))
    return counts


def _sum_bytes(words: npt.NDArray[np.unsignedinteger]) -> Counts:
    """The sum of the bytes of each integer: each is 0 or 1, so the product's highest byte holds it."""
    if words.itemsize == 8:  # no fast product of this width
        bits: Counts = np.bitwise_count(words)
        return bits
    ones = np.array(sum(1 << 8 * i for i in range(words.itemsize)), dtype=words.dtype)
    sums: Counts = words * ones
    sums >>= 8 * (words.itemsize - 1)
    return sums


def _add_up(parts: Counts) -> Counts:
    """Sums along the middle axis: a few adds of whole rows are faster than one sum over a short axis.  # (G, R, I) -> (G * I,)"""
    total = parts[:, 0] + parts[:, 1] if parts.shape[1] > 1 else parts[:, 0].copy()
    for i in range(2, parts.shape[1]):
        total += parts[:, i]
    return total.reshape(-1)

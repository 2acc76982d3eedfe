"""N:M patterns: in every group of M consecutive weights along the reduction axis, N are kept.

Shapes: `R` rows, `C` the reduction dimension, `G = C / M` groups in a row.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import PatternError

_MAX_GROUP = 64


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
                f"--sparsity {self.n}:{self.m} is no N:M pattern: it takes 0 < N < M <= {_MAX_GROUP}, N kept of every M.\n"
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
            raise PatternError(f"--sparsity {text!r} is no N:M pattern.\nGive two numbers and a colon, for example 2:4.")
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
            PatternError: naming the layer and the flag that leaves it out.
        """
        if dimension % self.m:
            raise PatternError(
                f"{self} does not fit {where}: its reduction dimension {dimension} is no multiple of {self.m}.\n"
                f"Choose another --sparsity, or leave the layer out with --exclude."
            )

    def all_masks(self) -> npt.NDArray[np.bool_]:
        """Every mask of one group, in lexicographic order of the kept positions.  # (C(M, N), M)"""
        masks = np.zeros((self.num_masks, self.m), dtype=np.bool_)
        for row, kept in enumerate(itertools.combinations(range(self.m), self.n)):
            masks[row, list(kept)] = True
        return masks

    def top(self, scores: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """The mask that keeps the N highest scores of every group along the last axis; ties go to the lower index.

        Args:
            scores: (..., C) with C a multiple of M.

        Returns:
            (..., C) boolean.
        """
        grouped = scores.reshape(*scores.shape[:-1], -1, self.m)  # (..., G, M)
        order = np.argsort(-grouped, axis=-1, kind="stable")
        mask = np.zeros(grouped.shape, dtype=np.bool_)
        np.put_along_axis(mask, order[..., : self.n], True, axis=-1)
        return mask.reshape(scores.shape)

    def counts(self, kept: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """How many are kept in each group along the last axis.  # (..., C) -> (..., G)"""
        sums: npt.NDArray[np.intp] = kept.reshape(*kept.shape[:-1], -1, self.m).sum(axis=-1)
        return sums

    def holds(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether every group along the last axis keeps exactly N."""
        return kept.shape[-1] % self.m == 0 and bool((self.counts(kept) == self.n).all())

"""Weights that half precision cannot tell from zero, counted as they are written.

A number below the smallest of the type becomes 0; one below the smallest normal number keeps fewer bits (it is subnormal).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

_WORTH_A_WARNING = 0.01  # share of a weight's values that become zero


@dataclass(slots=True)
class Lost:
    """Of one weight: values that were not zero, those that became zero, those that became subnormal."""

    values: int = 0
    zero: int = 0
    subnormal: int = 0


@dataclass(slots=True)
class Underflow:
    """What the cast of all weights to a float type lost.

    Attributes:
        dtype: name of the float type.
        weights: name of each weight that lost something -> how much.
        values: values of all weights that were not zero before.
    """

    dtype: str
    weights: dict[str, Lost] = field(default_factory=dict)
    values: int = 0

    def count(self, name: str, before: npt.NDArray[Any], after: npt.NDArray[Any]) -> None:
        """Take in some values of a weight, before and after the cast."""
        if before.dtype == after.dtype or after.dtype.itemsize != 2:
            return
        magnitude = after.view(np.uint16) & np.uint16(0x7FFF)
        smallest = np.asarray(ml_dtypes.finfo(after.dtype).smallest_normal, after.dtype).view(np.uint16)
        values, kept, normal = (int(np.count_nonzero(x)) for x in (before != 0, magnitude, magnitude >= smallest))
        self.values += values
        if values == normal:
            if name in self.weights:
                self.weights[name].values += values
            return
        lost = self.weights.setdefault(name, Lost())
        lost.values += values
        lost.zero += values - kept
        lost.subnormal += kept - normal

    @property
    def worst(self) -> str:
        """The weight that lost the largest share of its values to zero, "" if none lost any."""
        shares = {name: lost.zero / lost.values for name, lost in self.weights.items() if lost.zero}
        return max(shares, key=lambda name: shares[name], default="")

    def warning(self) -> str:
        """In words, if it is worth a warning; else ""."""
        if not (name := self.worst):
            return ""
        lost = self.weights[name]
        if lost.zero < _WORTH_A_WARNING * lost.values:
            return ""
        others = sum(x.zero for x in self.weights.values()) - lost.zero
        more = f" ({others} more in other weights)" if others else ""
        return f"{lost.zero} of {lost.values} nonzero values of {name} become 0 in {self.dtype}{more}"

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        worst = self.worst
        return {
            "values": self.values,
            "zero": sum(lost.zero for lost in self.weights.values()),
            "subnormal": sum(lost.subnormal for lost in self.weights.values()),
            "worst": worst or None,
            "worst_zero": self.weights[worst].zero if worst else 0,
        }

"""What runs a graph on raw addresses, and which of an engine's profiles fits a call.

An engine is built for ranges of shapes, its *profiles*: many new tokens for prefill, one for decode. Each call takes the profile
that fits it most closely; a chunk of a prompt that fits none is read in smaller pieces.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `L` slots of a cache of fixed length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Shape = tuple[int, ...]
# input name -> (smallest, best, largest) shape
Profile = Mapping[str, tuple[Shape, Shape, Shape]]

FIRST_KEY = "past_key_values.0.key"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output.

    Attributes:
        dtype: its type: "int32", "int64", "float32", "float16" or "bfloat16".
        shape: -1 where it varies.
        is_input: input or output.
    """

    dtype: str
    shape: Shape
    is_input: bool


class Executor(Protocol):
    """Runs a graph.

    Attributes:
        name: what runs it, for messages and reports.
        tensors: inputs and outputs by name.
        profiles: ranges of shapes that it takes; empty if it takes all.
    """

    name: str
    tensors: Mapping[str, TensorSpec]
    profiles: Sequence[Profile]

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Enqueue one call.

        Args:
            profile: index into `profiles`; 0 where there are none.
            shapes: of all inputs and outputs.
            addresses: of the same; an input and an output may share one.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What one profile covers, in rows and tokens.

    Attributes:
        rows: fewest and most rows.
        new: fewest and most new tokens.
        past: fewest and most past tokens.
        total: most past and new tokens together.
    """

    rows: tuple[int, int]
    new: tuple[int, int]
    past: tuple[int, int]
    total: int

    @classmethod
    def of(cls, profile: Profile, slots: int | None) -> Reach:
        """The reach of a profile; `slots` is L where the cache has a fixed length."""
        least, _, most = profile["input_ids"]
        rows, new = (least[0], most[0]), (least[1], most[1])
        if slots is not None:
            return cls(rows=rows, new=new, past=(0, slots - 1), total=slots)
        shortest, _, longest = profile[FIRST_KEY]
        past = (shortest[2], longest[2])
        total = profile["attention_mask"][2][1] if "attention_mask" in profile else past[1] + new[1]
        return cls(rows=rows, new=new, past=past, total=total)

    def new_tokens(self, rows: int, past: int, wanted: int) -> int:
        """How many of the `wanted` new tokens one call can read; 0 if it fits none."""
        if not (self.rows[0] <= rows <= self.rows[1] and self.past[0] <= past <= self.past[1]):
            return 0
        count = min(wanted, self.new[1], self.total - past)
        return count if count >= self.new[0] else 0


def choose(reaches: Sequence[Reach], rows: int, past: int, wanted: int) -> tuple[int, int] | None:
    """The profile that reads most of the `wanted` tokens, and of those the closest; with the number it reads.

    Returns:
        (index, new tokens), or None if no profile takes such a call.
    """
    found = []
    for index, reach in enumerate(reaches):
        if count := reach.new_tokens(rows, past, wanted):
            found.append((-count, reach.rows[1] * reach.new[1], reach.past[1], index))
    if not found:
        return None
    count, _, _, index = min(found)
    return index, -count


def longest(reaches: Sequence[Reach]) -> tuple[int, int, int]:
    """What can be served: (rows, tokens of a row, rows with several new tokens); all 0 if not even one row can be decoded.

    Any number of rows up to the first can be decoded token by token, from the first token to the second figure.
    """
    rows = length = 0
    most = max((r.rows[1] for r in reaches), default=0)
    while rows < most and (decoded := _decoded(reaches, rows + 1)) > 1:
        rows += 1
        length = decoded if rows == 1 else min(length, decoded)
    several = 0
    while several < rows and any(r.rows[0] <= several + 1 <= r.rows[1] and r.new[1] > 1 and r.past[0] == 0 for r in reaches):
        several += 1
    return rows, length, max(several, min(rows, 1))


def _decoded(reaches: Sequence[Reach], rows: int) -> int:
    """How long so many rows can get, one token after the other."""
    steps = [r for r in reaches if r.rows[0] <= rows <= r.rows[1] and r.new[0] <= 1]
    length = 0
    while (further := max((min(r.past[1] + 1, r.total) for r in steps if r.past[0] <= length), default=0)) > length:
        length = further
    return length

"""Profiles: the ranges of shapes that an engine is built for, how the manifest describes them, and what they cover.

A profile gives every input its smallest, best and largest shape. An engine may have several: many new tokens for prefill, one for
decode. Each call takes the profile that fits it most closely; a chunk of a prompt that fits none is read in smaller pieces.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `T = P + S`, `L` slots of a cache of fixed length, `H` heads, `D` head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maskpro_deploy.cache_forms import CACHE_FORMS, ENGINE_FORMS
from maskpro_deploy.errors import ConfigError, FormatError
from maskpro_deploy.manifest import EngineFile, Graph, ModelShape

DEFAULT_BATCH, DEFAULT_LENGTH, DEFAULT_PREFILL = 8, 2048, 512
FIRST_KEY = "past_key_values.0.key"

Shape = tuple[int, ...]
# input name -> (smallest, best, largest) shape
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


def input_shapes(graph: Graph, model: ModelShape, batch: int, new: int, past: int) -> dict[str, Shape]:
    """Shapes of all inputs for a batch; ConfigError if engines are not built from the graph's form of the cache."""
    tokens = (batch, new)  # (B, S)
    form = CACHE_FORMS.get(graph.form)
    if form is None or not form.tensorrt or not (form.grows or graph.length):
        raise ConfigError(f"--form {graph.form}: engines are built from the forms {' and '.join(ENGINE_FORMS)}.")
    own = {"attention_mask": (batch, new + past), "position_ids": tokens, "write_indices": (batch,)}
    shapes: dict[str, Shape] = {"input_ids": tokens} | {name: own[name] for name in form.inputs}
    slots = graph.length or past
    cache = (batch, model.num_kv_heads, slots, model.head_dim)  # (B, H, P or L, D)
    for layer in range(model.num_layers):
        shapes |= {f"past_key_values.{layer}.key": cache, f"past_key_values.{layer}.value": cache}
    return shapes


def make_profile(graph: Graph, model: ModelShape, calls: Iterable[tuple[int, int, int]]) -> Profile:
    """The profile whose smallest, best and largest call are given as (batch, new tokens, past tokens)."""
    least, best, most = (input_shapes(graph, model, *call) for call in calls)
    return {name: (least[name], best[name], most[name]) for name in least}


def describe_profile(profile: Profile) -> dict[str, Any]:
    """A profile for the manifest: inputs of the first layer stand for all layers'."""
    return {name: at for name, at in profile.items() if not name.startswith("past_key_values.") or ".0.key" in name}


def read_profiles(engine: EngineFile) -> list[Profile]:
    """The profiles of an engine as `describe_profile` wrote them, in the engine's order; FormatError if they cannot be read."""
    described = engine.settings.get("profiles", [])
    try:
        shapes = [p.get("shapes", p) for p in (described.values() if isinstance(described, dict) else described)]
        return [{name: _read_range(at) for name, at in profile.items()} for profile in shapes]
    except (AttributeError, TypeError, ValueError) as e:
        raise FormatError(f"the manifest's profiles of {engine.file} cannot be read: {e}.\nBuild the engine again.") from e


def _read_range(shapes: Sequence[Sequence[int]]) -> tuple[Shape, Shape, Shape]:
    least, best, most = (tuple(int(n) for n in shape) for shape in shapes)
    return least, best, most


def engine_form(engine: EngineFile) -> str:
    """The form of the cache of the graph that an engine was built from."""
    profiles = read_profiles(engine)
    return "static" if profiles and "write_indices" in profiles[0] else "cat"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileCoverage:
    """What one profile covers, in rows and tokens."""

    rows: tuple[int, int]  # the fewest and the most of each
    new: tuple[int, int]
    past: tuple[int, int]
    total: int  # most past and new tokens together

    @classmethod
    def of(cls, profile: Profile, slots: int | None = None) -> ProfileCoverage:
        """What a profile covers; `slots` is L where the cache has a fixed length."""
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


def choose_profile(coverages: Sequence[ProfileCoverage], rows: int, past: int, wanted: int) -> tuple[int, int] | None:
    """(index, new tokens) of the profile that reads most of the `wanted` tokens, and of those the closest; None if none does."""
    fitting = []
    for index, coverage in enumerate(coverages):
        if count := coverage.new_tokens(rows, past, wanted):
            fitting.append((-count, coverage.rows[1] * coverage.new[1], coverage.past[1], index))
    if not fitting:
        return None
    count, _, _, index = min(fitting)
    return index, -count


class ServingBounds(NamedTuple):
    """What profiles can serve together: rows, tokens of a row, and rows that may have several new tokens."""

    rows: int
    length: int
    prefill_rows: int


def serving_bounds(coverages: Sequence[ProfileCoverage]) -> ServingBounds:
    """What can be served; all 0 if not even one row can be decoded.

    Any number of rows up to the first figure can be decoded token by token, from the first token to the second figure.
    """
    rows = length = 0
    most = max((c.rows[1] for c in coverages), default=0)
    while rows < most and (decoded := _decodable_length(coverages, rows + 1)) > 1:
        rows += 1
        length = decoded if rows == 1 else min(length, decoded)
    several = 0
    while several < rows and any(c.rows[0] <= several + 1 <= c.rows[1] and c.new[1] > 1 and c.past[0] == 0 for c in coverages):
        several += 1
    return ServingBounds(rows, length, max(several, min(rows, 1)))


def _decodable_length(coverages: Sequence[ProfileCoverage], rows: int) -> int:
    """How long so many rows can get, one token after the other."""
    steps = [c for c in coverages if c.rows[0] <= rows <= c.rows[1] and c.new[0] <= 1]
    length = 0
    while (further := max((min(c.past[1] + 1, c.total) for c in steps if c.past[0] <= length), default=0)) > length:
        length = further
    return length

"""Optimisation profiles: the ranges of shapes that an engine is built for, and the point of each range that it is tuned to.

A language model multiplies matrices when it reads a prompt and vectors when it answers, and the best kernels differ. So prefill
and decode have profiles of their own, and each may have several *buckets*: a small batch need not run kernels tuned to a large
one.

    prefill:1x128,1x512,4x512 decode:1,4,8

makes six. `prefill:BxS` takes up to B sequences of up to S new tokens, over an empty or a filled cache; `decode:B` takes up to B
sequences of one new token; `mixed:BxS` takes both in one profile, which builds in half the time and is tuned to prefill. A size
is the largest and the optimum at once; `MIN/OPT/MAX`, such as `decode:1/4/16`, sets the three apart.

Shapes: `B` batch, `S` new tokens, `P` past tokens, `L` longest sequence or slots of a fixed cache, `H` heads, `D` head size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from maskpro_deploy.backends.profiles import (
    DEFAULT_BATCH,
    DEFAULT_LENGTH,
    DEFAULT_PREFILL,
    Profile,
    describe_profile,
    make_profile,
)
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters.engines.config import EngineConfig
from maskpro_deploy.manifest import Graph, Manifest, ModelShape

PREFILL, DECODE, MIXED = "prefill", "decode", "mixed"
_EXAMPLE = "prefill:1x128,4x512 decode:1,8"
Size = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One profile in terms of the model: (batch, new tokens) at its minimum, optimum and maximum."""

    kind: str
    least: Size
    best: Size
    most: Size

    def __post_init__(self) -> None:
        sizes = (self.least, self.best, self.most)
        if any(value < 1 for size in sizes for value in size):
            raise ConfigError(f"--profiles {self.name}: sizes begin at 1.")
        if any(a > b for low, high in pairwise(sizes) for a, b in zip(low, high, strict=True)):
            raise ConfigError(f"--profiles {self.name} is out of order: give MIN/OPT/MAX, each no larger than the next.")

    @property
    def name(self) -> str:
        """As it is written on the command line."""
        sizes = (self.least, self.best, self.most)
        plain = self.least == (1, 1) and self.best == self.most
        return f"{self.kind}:{'/'.join(self._write(s) for s in (sizes[2:] if plain else sizes))}"

    def _write(self, size: Size) -> str:
        return str(size[0]) if self.kind == DECODE else f"{size[0]}x{size[1]}"

    def holds(self, other: Bucket) -> bool:
        """Whether every call that fits `other` fits this one."""
        inside = all(a <= b for a, b in zip(self.least, other.least, strict=True)) and all(
            a >= b for a, b in zip(self.most, other.most, strict=True)
        )
        return self.kind == other.kind and inside


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Read `prefill:1x128,4x512 decode:1,8`; ConfigError if it cannot be read, or an earlier bucket holds all of a later one."""
    buckets: list[Bucket] = []
    for group in text.replace(";", " ").split():
        kind, colon, sizes = group.partition(":")
        if not colon or kind not in (PREFILL, DECODE, MIXED):
            raise ConfigError(f"--profiles {text!r}: {group!r} is not a group of profiles.\nGive them as {_EXAMPLE!r}.")
        buckets += [_bucket(kind, size) for size in sizes.split(",")]
    if not buckets:
        raise ConfigError(f"--profiles {text!r} names no profile.\nGive them as {_EXAMPLE!r}.")
    for i, late in enumerate(buckets):
        for early in buckets[:i]:
            if early.holds(late):
                raise ConfigError(
                    f"--profiles: {late.name} would never be taken, {early.name} before it holds all its calls.\n"
                    f"Give the buckets from small to large."
                )
    return tuple(buckets)


def _bucket(kind: str, text: str) -> Bucket:
    one = r"(\d{1,6})" if kind == DECODE else r"(\d{1,6})x(\d{1,6})"
    sizes: list[Size] = []
    for part in text.split("/"):
        match = re.fullmatch(one, part)
        if match is None:
            wanted = "a batch such as 8" if kind == DECODE else "batch and new tokens such as 4x512"
            raise ConfigError(f"--profiles {kind}:{text}: {part!r} is not a size of {kind}; give {wanted}.")
        sizes.append((int(match[1]), 1 if kind == DECODE else int(match[2])))
    if len(sizes) == 1:
        return Bucket(kind=kind, least=(1, 1), best=sizes[0], most=sizes[0])
    if len(sizes) != 3:
        raise ConfigError(f"--profiles {kind}:{text}: give one size, or MIN/OPT/MAX.")
    return Bucket(kind=kind, least=sizes[0], best=sizes[1], most=sizes[2])


def buckets_for(graph: Graph, model: ModelShape, config: EngineConfig) -> tuple[tuple[Bucket, ...], int]:
    """The buckets to build for, and the longest sequence; ConfigError if a bound is beyond the model's or the cache's."""
    length = _length(graph, model, config)
    if config.profiles:
        buckets = parse_buckets(config.profiles)
        for bucket in buckets:
            if bucket.most[1] > length:
                raise ConfigError(f"--profiles {bucket.name}: {bucket.most[1]} new tokens are more than a sequence of {length}.")
        return buckets, length
    new = config.max_prefill if config.max_prefill is not None else min(length, DEFAULT_PREFILL)
    if new > length:
        raise ConfigError(f"--max-prefill {new} is more than the longest sequence, {length}.")
    batch = config.max_batch if config.max_batch is not None else DEFAULT_BATCH
    if config.via_onnxruntime:  # it uses one profile
        return (Bucket(kind=MIXED, least=(1, 1), best=(1, new), most=(batch, new)),), length
    return (
        Bucket(kind=PREFILL, least=(1, 1), best=(1, new), most=(batch, new)),
        Bucket(kind=DECODE, least=(1, 1), best=(batch, 1), most=(batch, 1)),
    ), length


def _length(graph: Graph, model: ModelShape, config: EngineConfig) -> int:
    """The longest sequence: the slots of a fixed cache, else what is asked for."""
    if graph.length is not None:
        if config.max_length not in (None, graph.length):
            raise ConfigError(
                f"--max-length {config.max_length}: the cache of the {graph.form} graph has {graph.length} slots, no more and no "
                f"fewer.\nExport the bundle with another --max-length, or leave it out."
            )
        return graph.length
    length = config.max_length if config.max_length is not None else min(model.max_length, DEFAULT_LENGTH)
    if length > model.max_length:
        raise ConfigError(f"--max-length {length} is more than the bundle can run: {model.max_length}.")
    return length


def past_range(bucket: Bucket, length: int) -> tuple[int, int, int]:
    """Past tokens at a profile's minimum, optimum and maximum."""
    if bucket.kind == DECODE:
        return 0, length // 2, length - 1
    # a mixed profile goes on to the last token: its bounds, taken together, are beyond the model, no call is
    return 0, 0, length - (1 if bucket.kind == MIXED else bucket.most[1])


def profile(graph: Graph, model: ModelShape, bucket: Bucket, length: int) -> Profile:
    """The bucket as shapes of all inputs."""
    sizes = (bucket.least, bucket.best, bucket.most)
    calls = [(batch, new, past) for (batch, new), past in zip(sizes, past_range(bucket, length), strict=True)]
    return make_profile(graph, model, calls)


def profiles(manifest: Manifest, config: EngineConfig, graph: Graph | None = None) -> list[Profile]:
    """The profiles of an engine for a graph of the bundle (its own by default), in the engine's order."""
    graph = graph if graph is not None else manifest.graph
    buckets, length = buckets_for(graph, manifest.model, config)
    return [profile(graph, manifest.model, bucket, length) for bucket in buckets]


def describe_profiles(buckets: Sequence[Bucket], shapes: Sequence[Profile]) -> list[Mapping[str, object]]:
    """The profiles for the manifest: name, and shapes of the inputs."""
    pairs = zip(buckets, shapes, strict=True)
    return [{"name": bucket.name, "shapes": describe_profile(shape)} for bucket, shape in pairs]

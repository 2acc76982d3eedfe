"""A session that runs a graph on raw addresses: inputs are staged, the cache stays on the device, logits come back.

The rest of the runtime pads prompts on the left. The `cat` form takes that as it is. In the `static` and `gqa` forms each row
begins at slot 0 and new tokens are written at the row's own length, so tokens are moved to the left before a call and their
logits back to the right after it.

Shapes: `B` rows, `S` new tokens, `P` past columns, `T = P + S`, `V` vocabulary, `H` key/value heads, `L` slots, `D` head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import FormatError
from maskpro_deploy.manifest import Graph, ModelShape
from maskpro_deploy.runtime.sessions.base import BaseSession
from maskpro_deploy.runtime.sessions.device import Block, Device, Memory
from maskpro_deploy.runtime.sessions.device_cache import Layout, PackedCache, SlotCache, slots_for
from maskpro_deploy.runtime.sessions.executor import Executor, Reach, Shape
from maskpro_deploy.runtime.sessions.kv_cache import Cache, Floats, Ints, positions

PACKED, STATIC, SHARED = "cat", "static", "gqa"
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_CACHE_SHARE = 0.4  # of the free memory: while rows are copied there are two caches, and contexts need memory too


class DeviceSession(BaseSession):
    """A graph or an engine on a device.

    Args:
        shape: the model's sizes and special tokens.
        graph: what the executor runs; its form of the cache counts.
        executor: runs it.
        device: holds the memory that the executor works on.

    Raises:
        FormatError: inputs or outputs are not those of a bundle's graph.
        InputError: no profile reads one token on top of others.
    """

    def __init__(self, shape: ModelShape, graph: Graph, executor: Executor, device: Device) -> None:
        self._form = graph.form
        self._executor = executor
        self._device = device
        self._memory = Memory(device)
        self._fixed = graph.length if graph.form == STATIC else None
        pairs = [(layer, side) for layer in range(shape.num_layers) for side in ("key", "value")]
        self._past = [f"past_key_values.{layer}.{side}" for layer, side in pairs]
        self._present = [f"present.{layer}.{side}" for layer, side in pairs]
        self._check_names(graph)
        self._layout = Layout(
            memory=self._memory,
            tensors=len(self._past),
            heads=shape.num_kv_heads,
            vector=shape.head_dim * _BYTES[executor.tensors[self._past[0]].dtype],
        )
        self._staged: dict[str, Block] = {}
        if self._fixed is not None:
            shape = dataclasses.replace(shape, max_length=min(shape.max_length, self._fixed))
        reaches = [Reach.of(profile, self._fixed) for profile in executor.profiles]
        super().__init__(shape, graph, (executor.name,), reaches, self._cache_tokens())
        self._limit_rows()

    def _check_names(self, graph: Graph) -> None:
        wanted = {"input_ids", *self._past, "logits", *self._present}
        if self._form == STATIC:
            wanted |= {"write_indices"}
        if absent := sorted(wanted - set(self._executor.tensors)):
            raise FormatError(
                f"{graph.file} is no {self._form!r} form of a bundle's graph: it has no {absent[0]}.\nMake the bundle again."
            )

    def _cache_tokens(self) -> int | None:
        """Tokens that the device has memory for."""
        free = self._device.free_bytes()
        return None if free is None else max(1, int(free * _CACHE_SHARE) // self._layout.token)

    def _limit_rows(self) -> None:
        """No more rows than the memory holds where each takes a fixed number of slots."""
        rows, tokens = self.limits.max_batch, self.limits.max_cache_tokens
        if self._fixed is not None and tokens is not None:
            held = max(1, tokens // self._fixed)
            rows = held if rows is None else min(rows, held)
            self.limits = dataclasses.replace(self.limits, max_batch=rows)
        self._layout = dataclasses.replace(self._layout, most_rows=rows)

    def _read(self, tokens: Ints, cache: Cache | None, mask: Ints) -> tuple[Floats, Cache]:
        past = 0 if cache is None else cache.length
        return (self._packed if self._form == PACKED else self._slots)(tokens, cache, mask, past)

    def _packed(self, tokens: Ints, cache: Cache | None, mask: Ints, past: int) -> tuple[Floats, Cache]:
        """Read columns where the cache is as long as what was read.  # tokens (B, S), mask (B, T)"""
        batch, wanted = tokens.shape
        profile, new = self._profile(batch, past, wanted)
        cache = cache or PackedCache.make(self._layout, batch, 0)
        assert isinstance(cache, PackedCache)
        made = PackedCache.make(self._layout, batch, past + new)
        mask = mask[:, : past + new]
        arrays = {"input_ids": tokens[:, :new], "attention_mask": mask, "position_ids": positions(mask, new)}
        shapes, addresses = self._stage(arrays)
        shapes |= dict.fromkeys(self._past, (batch, self._layout.heads, past, self.shape.head_dim))
        shapes |= dict.fromkeys(self._present, (batch, self._layout.heads, past + new, self.shape.head_dim))
        addresses |= dict(zip(self._past, cache.addresses(), strict=True))
        addresses |= dict(zip(self._present, made.addresses(), strict=True))
        return self._run(profile, shapes, addresses, batch, new), made

    def _slots(self, tokens: Ints, cache: Cache | None, mask: Ints, past: int) -> tuple[Floats, Cache]:
        """The same where each row writes at its own length."""
        batch, wanted = tokens.shape
        cache = cache or SlotCache.make(self._layout, batch, self._fixed or slots_for(wanted))
        assert isinstance(cache, SlotCache)
        before: Ints = mask[:, :past].sum(axis=1)  # (B,)
        profile, new = self._profile(batch, int(before.max(initial=0)), wanted)
        counts: Ints = mask[:, past : past + new].sum(axis=1)  # (B,)
        cache = cache.writable(int(before.max(initial=0)) + new, cache.buffer.rows, self._fixed)
        made = cache.grown(before + counts, past + new)
        logits: Floats | None = None
        for first, rows, width in self._calls(before, counts, new):
            inside = slice(first, first + rows)
            moved, kept = _to_left(tokens[inside, :new], counts[inside], width), np.minimum(counts[inside], width)
            arrays = self._slot_inputs(moved, before[inside], kept)
            shapes, addresses = self._stage(arrays)
            slots = (rows, self._layout.heads, cache.buffer.slots, self.shape.head_dim)
            shapes |= dict.fromkeys((*self._past, *self._present), slots)
            addresses |= dict(zip(self._past, cache.buffer.addresses(first), strict=True))
            addresses |= dict(zip(self._present, cache.buffer.addresses(first), strict=True))
            answer = self._run(profile, shapes, addresses, rows, width)
            if rows == batch and (kept == new).all():
                return answer, made
            if logits is None:
                logits = np.zeros((batch, new, self.shape.vocab_size), np.float32)
            for row, count in enumerate(kept.tolist()):
                logits[first + row, new - count :] = answer[row, :count]
        assert logits is not None  # some row has a token in every column
        return logits, made

    def _calls(self, before: Ints, counts: Ints, new: int) -> Iterator[tuple[int, int, int]]:
        """(first row, rows, columns) of the calls that read a chunk.

        GroupQueryAttention takes the position of new tokens from the end of the row, so padding cannot stand there, and several
        new tokens on top of others are for one row only: rows are read by themselves then, as far as they have tokens.
        """
        together = (counts == new).all() and (new == 1 or not before.any())
        if self._form == STATIC or together:
            yield 0, len(counts), new
            return
        for row, count in enumerate(counts.tolist()):
            if count:
                yield row, 1, count

    def _slot_inputs(self, tokens: Ints, before: Ints, counts: Ints) -> dict[str, Ints]:
        """Inputs besides the cache.  # tokens (B, S), before and counts (B,)"""
        arrays = {"input_ids": tokens, "position_ids": before[:, None] + np.arange(tokens.shape[1])}
        if self._form == STATIC:
            return arrays | {"write_indices": before}
        after = before + counts
        return arrays | {"attention_mask": (np.arange(after.max()) < after[:, None]).astype(np.int64)}

    def _stage(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, Shape], dict[str, int]]:
        """Copy inputs to the device, each always to the same place, so that equal steps are equal in every address."""
        shapes: dict[str, Shape] = {}
        addresses: dict[str, int] = {}
        for name, array in arrays.items():
            if (spec := self._executor.tensors.get(name)) is None:
                continue
            converted = np.ascontiguousarray(array, np.dtype(spec.dtype))
            addresses[name] = self._place(name, converted.nbytes)
            self._device.upload(addresses[name], converted)
            shapes[name] = converted.shape
        return shapes, addresses

    def _place(self, name: str, nbytes: int) -> int:
        """A place on the device that is kept for this tensor."""
        block = self._staged.get(name)
        if block is None or block.nbytes < nbytes:
            block = self._staged[name] = self._memory.take(nbytes)
        return block.address

    def _run(self, profile: int, shapes: dict[str, Shape], addresses: dict[str, int], rows: int, new: int) -> Floats:
        """One call; its logits.  # (B, S, V)"""
        logits = np.empty((rows, new, self.shape.vocab_size), np.float32)
        shapes["logits"] = logits.shape
        own = self._device.address_of(logits)
        addresses["logits"] = self._place("logits", logits.nbytes) if own is None else own
        self._executor.run(profile, shapes, addresses)
        if own is None:
            self._device.download(logits, addresses["logits"])
        return logits


def _to_left(tokens: Ints, counts: Ints, width: int) -> Ints:
    """Rows with their last `counts` tokens moved to the front, cut to `width`.  # (B, S) -> (B, width)"""
    new = tokens.shape[1]
    if (counts == new).all():
        return tokens
    columns = np.minimum(np.arange(width) + (new - counts)[:, None], new - 1)
    moved: Ints = np.take_along_axis(tokens, columns, axis=1)
    return moved

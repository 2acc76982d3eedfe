"""A model that reads tokens on top of a cache: the one way in which graphs and engines are run, for checks and for serving.

A session works on raw addresses: inputs are staged, the cache stays on the device, logits come back. Callers pad prompts on the
left. The `cat` form takes that as it is. In the `static` and `gqa` forms each row begins at slot 0 and new tokens are written at
the row's own length, so tokens are moved to the left before a call and their logits back to the right after it.

Shapes: `B` rows, `S` new tokens, `P` past columns, `T = P + S`, `V` vocabulary, `H` key/value heads, `L` slots, `D` head size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.caches import Cache, Ints, Layout, PackedCache, SlotCache, slots_for
from maskpro_deploy.backends.executor import Executor
from maskpro_deploy.backends.memory import Block, Device, Memory
from maskpro_deploy.backends.profiles import ProfileCoverage, Shape, choose_profile, serving_bounds
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import Graph, ModelShape

PACKED, STATIC = "cat", "static"
_HOST_BLOCK, _GPU_BLOCK = 16, 64  # tokens
_CACHE_SHARE = 0.4  # of the free memory: while rows are copied there are two caches, and contexts need memory too

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLimits:
    """What a session can take at once; None for no limit."""

    max_batch: int | None = None  # rows in one call
    max_prefill_rows: int | None = None  # rows in one call with more than one new token each
    max_cache_tokens: int | None = None  # tokens that its device has memory for, over all rows
    # tokens in one of the pieces in which a prefix is worth keeping, see `backends.cache_pieces`; 0 where it would not help
    prefix_block: int = _HOST_BLOCK


class Session(Protocol):
    """A model that reads tokens."""

    @property
    def shape(self) -> ModelShape:
        """Sizes and special tokens; `max_length` is what a session of it can run."""

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """Read tokens on top of a cache.

        Args:
            tokens: `# (B, S)`
            cache: what was read before; None for nothing.
            attention_mask: 1 where a token counts, 0 at padding on the left; None if all count. `# (B, T)`

        Returns:
            Logits after each token `# (B, S, V)`, and the longer cache. The old cache stays valid.
        """


class OpenSession(Session, Protocol):
    """A session of a bundle, and what runs it."""

    shape: ModelShape
    graph: Graph  # the graph that is run; of an engine, the one that it was built from
    providers: tuple[str, ...]  # what runs it, for messages and reports
    limits: SessionLimits  # what it takes at once

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each token of whole rows, `tokens (B, T)`, result `(B, T, V)`."""

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other; end-of-text does not end it."""


class WholeCalls:
    """What can be asked of every session, made from `forward`."""

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """See `Session.forward`."""
        raise NotImplementedError

    def logits(self, tokens: Ints) -> Floats:
        """Logits after each token of whole rows, `tokens (B, T)`, result `(B, T, V)`."""
        return self.forward(tokens)[0]

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` likeliest next tokens, one after the other; end-of-text does not end it."""
        out: list[int] = []
        cache: Cache | None = None
        tokens: Ints = np.array([list(prompt)], np.int64)
        while len(out) < count:
            logits, cache = self.forward(tokens, cache)
            out.append(int(np.argmax(logits[0, -1])))
            tokens = np.array([out[-1:]], np.int64)
        return out


class GraphSession(WholeCalls):
    """A graph or an engine on a device, in whose memory the executor works. Not to be called from two threads at once.

    `graph` is what the executor runs; of an engine, the one that it was built from. Its form of the cache counts.

    Raises:
        FormatError: inputs or outputs are not those of a bundle's graph.
        InputError: no profile reads one token on top of others.
    """

    def __init__(self, shape: ModelShape, graph: Graph, executor: Executor, device: Device) -> None:
        self.shape, self.graph, self.providers = shape, graph, tuple(executor.providers)
        self._executor, self._device = executor, device
        self._memory = Memory(device)
        self._staged: dict[str, Block] = {}
        self._fixed = graph.length if graph.form == STATIC else None
        pairs = [(layer, side) for layer in range(shape.num_layers) for side in ("key", "value")]
        self._past = [f"past_key_values.{layer}.{side}" for layer, side in pairs]
        self._present = [f"present.{layer}.{side}" for layer, side in pairs]
        self._check_names()
        self._dtypes = {name: np.dtype(spec.dtype) for name, spec in executor.tensors.items() if name not in self._past}
        self._layout = Layout(
            memory=self._memory,
            tensors=len(self._past),
            heads=shape.num_kv_heads,
            vector=shape.head_dim * executor.tensors[self._past[0]].item_bytes,
        )
        self._coverages = [ProfileCoverage.of(profile, self._fixed) for profile in executor.profiles]
        self.limits = self._find_limits()  # what it takes at once
        self._layout = dataclasses.replace(self._layout, most_rows=self.limits.max_batch, slots=self._fixed)

    def _check_names(self) -> None:
        wanted = {"input_ids", *self._past, "logits", *self._present}
        if self.graph.form == STATIC:
            wanted |= {"write_indices"}
        if absent := sorted(wanted - set(self._executor.tensors)):
            raise FormatError(
                f"{self.graph.file} is not the {self.graph.form!r} form of a bundle's graph: {absent[0]} is missing.\n"
                f"Export the bundle again."
            )

    def _find_limits(self) -> SessionLimits:
        """What profiles and memory allow; `shape.max_length` is set to it, too."""
        rows = prefill_rows = None
        length = self.shape.max_length if self._fixed is None else min(self.shape.max_length, self._fixed)
        if self._coverages:
            rows, longest, prefill_rows = serving_bounds(self._coverages)
            if not rows:
                raise InputError(
                    "no profile of the engine reads one token on top of others, so it cannot generate.\n"
                    "Build it again with a decode profile."
                )
            length = min(length, longest)
        self.shape = dataclasses.replace(self.shape, max_length=length)
        free = self._device.free_bytes()
        tokens = None if free is None else max(1, int(free * _CACHE_SHARE) // self._layout.token)
        if self._fixed is not None and tokens is not None:  # each row takes a fixed number of slots
            held = max(1, tokens // self._fixed)
            rows = held if rows is None else min(rows, held)
        return SessionLimits(
            max_batch=rows, max_prefill_rows=prefill_rows, max_cache_tokens=tokens, prefix_block=self._prefix_block()
        )

    def _prefix_block(self) -> int:
        """On a GPU a copy costs its launch, so pieces are larger. What is read token by token behind a prefix gains nothing."""
        if self._coverages and not any(c.new[1] > 1 and c.past[1] > 0 and c.rows[0] == 1 for c in self._coverages):
            return 0
        return _HOST_BLOCK if self._device.kind == "cpu" else _GPU_BLOCK

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """See `Session.forward`; InputError for more rows than the engine was built for."""
        batch, new = tokens.shape
        past = 0 if cache is None else cache.length
        mask: Ints = np.ones((batch, past + new), np.int64) if attention_mask is None else attention_mask
        if (cache is not None and cache.batch != batch) or mask.shape != (batch, past + new):
            raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} do not fit a cache of {past} columns")
        if self.limits.max_batch is not None and batch > self.limits.max_batch:
            raise InputError(
                f"{batch} rows at once, but the engine was built for {self.limits.max_batch}.\nBuild it with --max-batch {batch}."
            )
        read = self._read_packed if self.graph.form == PACKED else self._read_slots
        parts: list[Floats] = []
        done = 0
        while done < new:  # an engine may read a long prompt in several calls
            logits, cache = read(tokens[:, done:], cache, mask)
            parts.append(logits)
            done += logits.shape[1]
        assert cache is not None
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)), cache

    def _choose_profile(self, rows: int, past: int, wanted: int) -> tuple[int, int]:
        """The profile for a call, and how many new tokens it reads."""
        if not self._coverages:
            return 0, wanted
        chosen = choose_profile(self._coverages, rows, past, wanted)
        if chosen is None:
            raise InputError(
                f"no profile of the engine takes {rows} rows with {past} tokens before the new ones.\n"
                f"Build it with profiles that do, or give a smaller --max-num-seqs or --max-model-len."
            )
        return chosen

    def _read_packed(self, tokens: Ints, cache: Cache | None, mask: Ints) -> tuple[Floats, Cache]:
        """Read as many columns as one call can, where the cache is as long as what was read.  # tokens (B, S), mask (B, T)"""
        batch, wanted = tokens.shape
        cache = cache or PackedCache.make(self._layout, batch, 0)
        assert isinstance(cache, PackedCache)
        past = cache.length
        profile, new = self._choose_profile(batch, past, wanted)
        made = PackedCache.make(self._layout, batch, past + new)
        mask = mask[:, : past + new]
        inputs = {"input_ids": tokens[:, :new], "attention_mask": mask, "position_ids": positions(mask, new)}
        shapes, addresses, _kept = self._stage(inputs)
        shapes |= dict.fromkeys(self._past, (batch, self._layout.heads, past, self.shape.head_dim))
        shapes |= dict.fromkeys(self._present, (batch, self._layout.heads, past + new, self.shape.head_dim))
        addresses |= dict(zip(self._past, cache.addresses(), strict=True))
        addresses |= dict(zip(self._present, made.addresses(), strict=True))
        return self._run(profile, shapes, addresses, batch, new), made

    def _read_slots(self, tokens: Ints, cache: Cache | None, mask: Ints) -> tuple[Floats, Cache]:
        """The same where each row writes at its own length."""
        batch, wanted = tokens.shape
        cache = cache or SlotCache.make(self._layout, batch, self._fixed or slots_for(wanted))
        assert isinstance(cache, SlotCache)
        past = cache.length
        before: Ints = mask[:, :past].sum(axis=1)  # (B,)
        profile, new = self._choose_profile(batch, int(before.max(initial=0)), wanted)
        counts: Ints = mask[:, past : past + new].sum(axis=1)  # (B,)
        cache = cache.make_writable(int(before.max(initial=0)) + new, cache.buffer.rows, self._fixed)
        made = cache.grow(before + counts, past + new)
        logits: Floats | None = None
        for first, rows, width in self._plan_calls(before, counts, new):
            inside = slice(first, first + rows)
            moved, kept = _to_left(tokens[inside, :new], counts[inside], width), np.minimum(counts[inside], width)
            shapes, addresses, _kept = self._stage(self._slot_inputs(moved, before[inside], kept))
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

    def _plan_calls(self, before: Ints, counts: Ints, new: int) -> Iterator[tuple[int, int, int]]:
        """(first row, rows, columns) of the calls that read a chunk.

        GroupQueryAttention takes the position of new tokens from the end of the row, so padding can stand behind them only where
        nothing came before, and several new tokens on top of others are for one row only: rows are read one by one then.
        """
        fresh = not before.any() and bool(counts.all())
        if self.graph.form == STATIC or fresh or (new == 1 and (counts == 1).all()):
            yield 0, len(counts), new
            return
        for row, count in enumerate(counts.tolist()):
            if count:
                yield row, 1, count

    def _slot_inputs(self, tokens: Ints, before: Ints, counts: Ints) -> dict[str, Ints]:
        """Inputs besides the cache.  # tokens (B, S), before and counts (B,)"""
        arrays = {"input_ids": tokens, "position_ids": before[:, None] + np.arange(tokens.shape[1])}
        if self.graph.form == STATIC:
            return arrays | {"write_indices": before}
        after = before + counts
        return arrays | {"attention_mask": (np.arange(after.max()) < after[:, None]).astype(np.int64)}

    def _stage(self, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[dict[str, Shape], dict[str, int], list[npt.NDArray[Any]]]:
        """Inputs on the device: their shapes, their addresses, and the arrays that have to live until the call is done.

        What has to be copied goes to the same place each time, so that equal steps are equal in every address.
        """
        shapes: dict[str, Shape] = {}
        addresses: dict[str, int] = {}
        kept: list[npt.NDArray[Any]] = []
        for name, array in arrays.items():
            if (dtype := self._dtypes.get(name)) is None:
                continue
            converted = np.ascontiguousarray(array, dtype)
            shapes[name] = converted.shape
            if (own := self._device.address_of(converted)) is not None:  # the device reads it where it is
                addresses[name] = own
                kept.append(converted)
            else:
                addresses[name] = self._place(name, converted.nbytes)
                self._device.upload(addresses[name], converted)
        return shapes, addresses, kept

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


def positions(mask: Ints, new: int) -> Ints:
    """Position of each of the last `new` columns within its own sequence; 0 in the padding. `mask (B, T)`, result `(B, S)`."""
    counted: Ints = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, mask.shape[1] - new :]
    return counted


def _to_left(tokens: Ints, counts: Ints, width: int) -> Ints:
    """Rows with their last `counts` tokens moved to the front, cut to `width`.  # (B, S) -> (B, width)"""
    new = tokens.shape[1]
    if (counts == new).all():
        return tokens
    columns = np.minimum(np.arange(width) + (new - counts)[:, None], new - 1)
    moved: Ints = np.take_along_axis(tokens, columns, axis=1)
    return moved

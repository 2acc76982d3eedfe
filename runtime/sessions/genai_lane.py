"""A bundle in onnxruntime-genai: its engine keeps the cache and runs the graph, everything else stays with this package.

Each row of a batch has a generator of that library, because its batches cannot gain or lose rows. Rows are read one after the
other, so several at once are no faster than one. Batching, sampling, stopping and giving up work as with every session, since
logits are all that is taken from it. The bundle needs the layout "genai", whose `genai_config.json` names the graph.

A generator only grows. A cache is a generator and how much of it counts. One that is read on is the newest of its generator, or
is made so: by going back, where no other cache needs what comes later, else by reading its tokens again in a new generator.

Shapes: `B` rows, `S` new tokens, `T` columns so far, `V` vocabulary.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from maskpro_deploy.backends.caches import Cache, Ints
from maskpro_deploy.backends.onnxruntime_.sessions import COLUMN_ROWS
from maskpro_deploy.backends.session import Floats, SessionLimits, WholeCalls
from maskpro_deploy.errors import FormatError, InputError, first_line
from maskpro_deploy.manifest import Graph, Manifest
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.files import read_json
from maskpro_deploy.system.huge_pages import use_huge_pages

_CONFIG = "genai_config.json"
_LEAST_ROOM = 256  # tokens that a generator has room for at first


class Reader:
    """A generator with the tokens that it has read. Its room is doubled when it is full, by reading them again."""

    def __init__(self, library: Any, model: Any, longest: int) -> None:
        self._library, self._model, self._longest = library, model, longest
        self._room = 0
        self._generator: Any = None
        self.tokens: list[int] = []
        self.rows: weakref.WeakSet[Row] = weakref.WeakSet()  # the caches in it

    def read(self, tokens: Sequence[int]) -> Floats:
        """Read tokens; the logits after each of them.  # (S, V)"""
        if len(self.tokens) + len(tokens) > self._room:
            return self._start(len(self.tokens) + len(tokens), tokens)
        return self._append(tokens)

    def go_back(self, length: int) -> None:
        """Forget all tokens but the first `length`."""
        if length:
            self._generator.rewind_to(length)
        else:
            self._room = 0
        del self.tokens[length:]

    def _start(self, wanted: int, tokens: Sequence[int]) -> Floats:
        """A generator with room for more, which reads everything from the start; the logits of `tokens`."""
        self._room = min(self._longest, max(_LEAST_ROOM, 1 << (2 * wanted - 1).bit_length()))
        settings = self._library.GeneratorParams(self._model)
        settings.set_search_options(max_length=self._room, batch_size=1)
        self._generator = self._library.Generator(self._model, settings)
        before, self.tokens = self.tokens, []
        return self._append([*before, *tokens])[len(before) :]

    def _append(self, tokens: Sequence[int]) -> Floats:
        self._generator.append_tokens(np.array(tokens, np.int32))
        self.tokens.extend(tokens)
        logits: Floats = self._generator.get_output("logits")[0].astype(np.float32, copy=False)
        return logits


class Row:
    """The first `length` tokens of a reader."""

    __slots__ = ("__weakref__", "length", "reader")

    def __init__(self, reader: Reader, length: int) -> None:
        self.reader, self.length = reader, length
        reader.rows.add(self)


class RowsCache:
    """Rows, and how many columns the rest of the runtime counts. See `Cache`."""

    def __init__(self, rows: Sequence[Row], length: int) -> None:
        self.rows, self.length = tuple(rows), length

    @property
    def batch(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int], trim: int = 0) -> Self:
        return type(self)([self.rows[row] for row in rows], self.length - trim)

    def join(self, other: Self) -> Self:
        return type(self)([*self.rows, *other.rows], max(self.length, other.length))


class GenaiSession(WholeCalls):
    """A bundle in onnxruntime-genai, on the CPU. Not to be called from two threads at once.

    Raises:
        MissingExtraError: onnxruntime-genai is not installed.
        InputError: the bundle has no `genai_config.json`, or one for another graph than `graph`.
        FormatError: the library cannot load it.
    """

    def __init__(self, bundle: Path, manifest: Manifest, graph: Graph, *, threads: int | None, spin: bool) -> None:
        require("genai", "running a bundle in onnxruntime-genai")
        _check_layout(bundle, graph)
        self.shape, self.graph, self.limits = manifest.model, graph, SessionLimits(prefix_block=0)
        self._library = import_module("onnxruntime_genai")
        self.providers: tuple[str, ...] = (f"onnxruntime-genai {self._library.__version__}",)
        options: dict[str, Any] = {"session.intra_op.allow_spinning": str(int(spin)), **COLUMN_ROWS}
        if threads is not None:
            options |= {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        try:
            config = self._library.Config(str(bundle))
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = self._library.Model(config)
        except Exception as e:  # it raises what C++ threw
            raise FormatError(f"onnxruntime-genai cannot load {bundle}: {first_line(e)}\nExport the bundle again.") from e
        use_huge_pages()

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        """See `Session.forward`."""
        batch, new = tokens.shape
        before = cache or RowsCache([self._new_row() for _ in range(batch)], 0)
        assert isinstance(before, RowsCache)
        columns = before.length + new
        mask: Ints = np.ones((batch, columns), np.int64) if attention_mask is None else attention_mask
        if before.batch != batch or mask.shape != (batch, columns):
            raise ValueError(f"tokens {tokens.shape} and mask {mask.shape} do not fit a cache of {before.length} columns")
        logits = np.zeros((batch, new, self.shape.vocab_size), np.float32)
        rows = []
        for i, row in enumerate(before.rows):
            counted: npt.NDArray[np.bool_] = mask[i, before.length :] == 1
            rows.append(row)
            if counted.any():
                rows[-1] = self._open_end(row)
                logits[i, counted] = rows[-1].reader.read(tokens[i, counted].tolist())
                rows[-1] = Row(rows[-1].reader, len(rows[-1].reader.tokens))
        return logits, RowsCache(rows, columns)

    def _new_row(self) -> Row:
        return Row(Reader(self._library, self._model, self.shape.max_length), 0)

    def _open_end(self, row: Row) -> Row:
        """The same tokens at the end of a reader."""
        reader = row.reader
        if len(reader.tokens) == row.length:
            return row
        if all(other.length <= row.length for other in reader.rows):
            reader.go_back(row.length)
            return row
        made = self._new_row()
        if row.length:
            made.reader.read(reader.tokens[: row.length])
        return Row(made.reader, row.length)


def _check_layout(bundle: Path, graph: Graph) -> None:
    """Refuse (InputError) a bundle that the library has no description of."""
    path = bundle / _CONFIG
    if not path.is_file():
        raise InputError(f"--provider genai: {bundle} has no {_CONFIG}.\nExport the bundle with --layout genai.")
    try:
        described = read_json(path)["model"]["decoder"]["filename"]
    except (KeyError, TypeError) as e:
        raise FormatError(f"{path} does not name a decoder's file.\nExport the bundle again with --layout genai.") from e
    if described != graph.file:
        raise InputError(
            f"--provider genai --form {graph.form}: {path} is for {described}.\n"
            f"Leave --form out, or export the bundle with --layout genai --forms {graph.form}."
        )

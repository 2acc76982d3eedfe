"""Prompts that are read together, on top of what is kept of earlier ones.

Rows end at the same column, so what remains to be read of them stands in the same last columns: as many as the row of which least
is kept needs. A row of which more is kept reads some of it again. A prompt's last token is always read: its logits say what
comes next. Prompts whose own log-probabilities are asked for are read whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from maskpro_deploy.runtime.generate.sequence import GenerationSequence
from maskpro_deploy.runtime.sessions.batches import Prefill
from maskpro_deploy.runtime.sessions.prefixes import Keys, PrefixStore


@dataclass(slots=True)
class _Row:
    """A prompt, and the sequences that wait for it."""

    prompt: tuple[int, ...]
    keys: Keys  # of its blocks
    kept: int  # tokens of it that need not be read
    missing: bytes | None  # key of the first block that has to be read; None if there is no whole one
    queries: bool  # whether it may use what is kept
    members: list[GenerationSequence] = field(default_factory=list)

    @property
    def unread(self) -> int:
        return len(self.prompt) - self.kept


class Reading:
    """Prompts that are being read, and the sequences that wait for each of them."""

    def __init__(self, rows: list[_Row], store: PrefixStore) -> None:
        self._rows, self._store = rows, store
        self.members = [row.members for row in rows]
        lengths = np.array([len(row.prompt) for row in rows], np.int64)
        cached = np.maximum(lengths - max(row.unread for row in rows), 0)  # (B,)
        self.queried = sum(len(row.prompt) for row in rows if row.queries)  # tokens that were looked for
        self.found = int(cached.sum())  # and those that need not be read
        for row, count in zip(rows, cached.tolist(), strict=True):
            for sequence in row.members:
                if not sequence.tokens:  # else it gave up its place, and this is its own
                    sequence.cached_tokens = count
        cache = store.restore([row.keys for row in rows], cached, int(lengths.max())) if self.found else None
        self.prefill = Prefill([row.prompt for row in rows], cache)

    @property
    def sequences(self) -> list[GenerationSequence]:
        """All that wait."""
        return [s for row in self._rows for s in row.members]

    @property
    def cache_tokens(self) -> int:
        """Tokens in the cache once all is read, padding included."""
        return len(self._rows) * self.prefill.width

    def save(self) -> None:
        """Keep what has been read so far of prompts with usable logits."""
        prefill = self.prefill
        if prefill.cache is None:
            return
        for i, row in enumerate(self._rows):
            padding = prefill.width - len(row.prompt)
            blocks = max(0, prefill.done - padding) // self._store.block if self._store.block else 0
            if blocks and not all(s.broken for s in row.members):
                self._store.save(row.keys[:blocks], prefill.cache, i, padding)


class Gathering:
    """Chooses the prompts of the next reading.

    Equal prompts share a row. The rest of the rows fit a chunk together, but for the first. A prompt whose next block another one
    is going to read waits for it.
    """

    def __init__(self, store: PrefixStore, chunk_tokens: int, most_rows: int | None) -> None:
        self._store, self._chunk_tokens, self._most_rows = store, chunk_tokens, most_rows
        self._rows: dict[tuple[bool, tuple[int, ...]], _Row] = {}
        self._columns = 0

    def add(self, sequence: GenerationSequence) -> bool:
        """Take a sequence; False if it has to wait for the next reading."""
        scored = sequence.params.prompt_logprobs is not None and not sequence.tokens
        prompt = sequence.context
        row = self._rows.get((scored, prompt)) or self._describe(prompt, scored)
        if not row.members:
            columns = max(self._columns, row.unread)
            if self._rows and (self._too_many(columns) or self._comes(row)):
                return False
            self._columns = columns
            self._rows[scored, prompt] = row
        row.members.append(sequence)
        return True

    def reading(self) -> Reading | None:
        """The reading of those that were taken; None if there are none."""
        return Reading(list(self._rows.values()), self._store) if self._rows else None

    def _describe(self, prompt: tuple[int, ...], scored: bool) -> _Row:
        keys = self._store.keys(prompt)
        count = 0 if scored else self._store.count(keys)
        kept = min(count * self._store.block, len(prompt) - 1)
        missing = keys[count] if count < len(keys) else None
        return _Row(prompt, keys, kept, missing, queries=bool(self._store.block) and not scored)

    def _too_many(self, columns: int) -> bool:
        rows = len(self._rows) + 1
        return columns * rows > self._chunk_tokens or rows > (self._most_rows or rows)

    def _comes(self, row: _Row) -> bool:
        """Whether a row that was taken is going to leave the next block of this one."""
        if row.missing is None or not row.queries or row.kept + self._store.block > self._store.limit:
            return False
        return any(row.missing in other.keys for other in self._rows.values())

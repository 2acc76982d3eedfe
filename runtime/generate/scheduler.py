"""Which sequences run: iteration-level scheduling over one session.

Every step reads one chunk of waiting prompts, if there are any and there is room, and then takes one decode step for all
running sequences. So a long prompt delays the others by a chunk at most, and a finished sequence makes room at once. Prompts
that wait together are read together; equal prompts (several answers to one) are read once, and so is what prompts have in
common (`reading`). When the cache would grow over its limit, the youngest sequence gives up its place and is read again later:
its answer is the same, only late. What sequences leave of the limit is for prefixes: of prompts that have been read, and of
answers that have ended (`sessions.prefixes`).

The scheduler is plain and single-threaded: `generator.py` gives it its thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maskpro_deploy.backends.session import Floats, Session
from maskpro_deploy.errors import MaskProError, check_range
from maskpro_deploy.runtime.generate.grammar_compiler import StuckError
from maskpro_deploy.runtime.generate.prompt_scores import OPTION, score_prompt
from maskpro_deploy.runtime.generate.reading import Gathering, Reading
from maskpro_deploy.runtime.generate.sampling import NumericError
from maskpro_deploy.runtime.generate.sequence import ABORT, LENGTH, Event, FailureEvent, GenerationSequence, PromptEvent
from maskpro_deploy.runtime.sessions.batches import Batch
from maskpro_deploy.runtime.sessions.prefixes import PrefixStore
from maskpro_deploy.runtime.sessions.session import SessionConfig

Emit = Callable[[GenerationSequence, Event], None]

_HEADROOM = 64  # tokens that a sequence may count on when it is given a place


@dataclass(frozen=True, kw_only=True)  # without slots: a class with two bases takes slots from one only
class SchedulerConfig:
    """How much runs at once."""

    max_num_seqs: int = 16  # sequences in the batch
    # tokens of prompts read in one step, padding included: bounds the delay of running sequences, and the memory of the logits
    chunk_tokens: int = 256
    # tokens that the cache may hold, padding included; None for no limit. A sequence that needs more runs alone
    max_cache_tokens: int | None = None
    max_prefill_rows: int | None = None  # prompts that are read together; None for no limit but the others
    prefix_caching: bool = True  # keep what was read, within `max_cache_tokens`, and use it for prompts that begin alike
    prefix_block: int = 16  # tokens that are kept or evicted together

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "chunk_tokens", "max_cache_tokens", "max_prefill_rows", "prefix_block"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig(SessionConfig, SchedulerConfig):
    """How a bundle is run: the settings of its session and of its scheduler, and the generator's own.

    Where `max_cache_tokens` is None, `load` takes as many as fit an eighth of this machine's memory; it takes `max_prefill_rows`
    and `prefix_block` from the session.
    """

    spin: bool = False  # see `SessionConfig`; off here, because a server shares its machine at least with its own network thread
    max_num_queued_reqs: int = 64  # further sequences that may wait
    queue_timeout_s: float | None = 60.0  # how long an answer may wait for its start; None for ever
    request_timeout_s: float | None = None  # how long it may take, waiting included; None for ever
    max_model_len: int | None = None  # longest prompt and answer together, in tokens; None takes the model's own
    max_prompt_logprobs_tokens: int | None = 4096  # tokens of prompts with log-probabilities in a request; None for no bound
    chat_template: str | None = None  # source of a template in place of the bundle's own
    check_hashes: bool = False  # read every file of the bundle and compare its SHA-256 before use

    def __post_init__(self) -> None:
        SessionConfig.__post_init__(self)
        SchedulerConfig.__post_init__(self)
        check_range("--max-num-queued-reqs", self.max_num_queued_reqs, least=0)
        check_range("--queue-timeout", self.queue_timeout_s, above=0)
        check_range("--request-timeout", self.request_timeout_s, above=0)
        check_range("--max-model-len", self.max_model_len, least=2)
        check_range(OPTION, self.max_prompt_logprobs_tokens, least=1)


@dataclass(slots=True)
class StepCount:
    """What one step did, in tokens without padding, and how many sequences gave up their places."""

    prompt_tokens: int = 0  # read
    generated_tokens: int = 0
    preempted: int = 0  # sequences
    prefix_queries: int = 0  # of prompts whose reading began, where kept ones may be used
    prefix_hits: int = 0  # those of them that were kept


class Scheduler:
    """Sequences from waiting to finished; `emit` takes every event, in order."""

    def __init__(self, session: Session, config: SchedulerConfig, emit: Emit) -> None:
        self.session = session
        self.config = config
        self.emit = emit
        self.waiting: deque[GenerationSequence] = deque()
        self.running: list[GenerationSequence] = []  # row i of the batch
        self._reading: Reading | None = None
        self._batch: Batch | None = None
        # tokens that sequences and prefixes may take together
        self._capacity = config.max_cache_tokens or config.max_num_seqs * session.shape.max_length
        self._prefixes = PrefixStore(config.prefix_block if config.prefix_caching else 0, self._capacity)

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self.waiting or self.running or self._reading)

    @property
    def num_running(self) -> int:
        """Sequences that hold a place in the batch, or will after reading; those that have just ended do not count."""
        reading = self._reading  # another thread may ask
        return sum(not s.finished for s in (*self.running, *(reading.sequences if reading else ())))

    @property
    def cached_tokens(self) -> int:
        """Tokens of running sequences in the cache, padding not counted."""
        running, batch = self.running, self._batch  # another thread may ask
        lengths = batch.lengths.tolist() if batch is not None else []
        return sum(length for s, length in zip(running, lengths, strict=False) if not s.finished)

    @property
    def prefix_tokens(self) -> int:
        """Tokens that are kept for later prompts."""
        return self._prefixes.tokens

    def abort(self, sequences: Iterable[GenerationSequence]) -> None:
        """End sequences, wherever they are; finished ones stay as they are."""
        for sequence in sequences:
            if not sequence.finished:
                self.emit(sequence, sequence.finish(ABORT))
        self.waiting = deque(s for s in self.waiting if not s.finished)
        if self._reading and all(s.finished for s in self._reading.sequences):
            self._reading.save()
            self._reading = None
        self._compact()

    def refuse(self, unwanted: Callable[[GenerationSequence], bool], error: MaskProError) -> None:
        """End those sequences with an error, wherever they are; finished ones stay as they are."""
        reading = self._reading.sequences if self._reading else []
        chosen = [s for s in (*self.waiting, *reading, *self.running) if not s.finished and unwanted(s)]
        for sequence in chosen:
            self.fail(sequence, error)
        if chosen:
            self.abort(())

    def step(self) -> StepCount:
        """Read a chunk of prompts, then decode one token of each running sequence."""
        count = StepCount()
        if self._reading is None and (reading := self._next_reading()) is not None:
            self._reading = reading
            count.prefix_queries, count.prefix_hits = reading.queried, reading.found
            self._share_cache(range(len(self.running)))
        if self._reading is not None:
            count.prompt_tokens = self._read(self._reading)
        count.preempted = self._make_room()
        if self.running:
            count.generated_tokens = len(self.running)
            self._decode()
        return count

    def _next_reading(self) -> Reading | None:
        """The prompts to read next: in order of arrival, as many as have room and fit a chunk (but at least one)."""
        gathering = Gathering(self._prefixes, self.config.chunk_tokens, self.config.max_prefill_rows)
        taken = list(self.running)
        while self.waiting and len(taken) < self.config.max_num_seqs and self._fits([*taken, self.waiting[0]]):
            if not gathering.add(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            sequence.times.started = sequence.times.started or time.perf_counter()
            taken.append(sequence)
        return gathering.reading()

    def _fits(self, sequences: list[GenerationSequence]) -> bool:
        """Whether the cache can hold these for a while; one alone always may run."""
        limit = self.config.max_cache_tokens
        if limit is None or len(sequences) == 1:
            return True
        width = max(s.length + min(_HEADROOM, s.params.max_tokens - len(s.tokens)) for s in sequences)
        return len(sequences) * width <= limit

    def _make_room(self) -> int:
        """Send the youngest sequences back to the queue until the next step fits the cache. Returns how many."""
        limit = self.config.max_cache_tokens
        preempted = 0
        while limit is not None and self._batch is not None and len(self.running) > 1:
            if len(self.running) * (self._batch.cache.length + 1) <= limit:
                break
            self.waiting.appendleft(self.running[-1])
            self._keep(range(len(self.running) - 1))
            preempted += 1
        self._share_cache(range(len(self.running)))
        return preempted

    def _share_cache(self, rows: Sequence[int]) -> None:
        """Leave to prefixes what these rows and the reading do not need of the cache in the next step."""
        used = self._reading.cache_tokens if self._reading is not None else 0
        if self._batch is not None and rows:
            used += len(rows) * (int(self._batch.lengths[list(rows)].max()) + 1)
        self._prefixes.resize(max(0, self._capacity - used))

    def _keep(self, rows: Sequence[int]) -> None:
        """Give up all rows but these, and keep what was read of them as prefixes."""
        self._share_cache(rows)
        for row in sorted(set(range(len(self.running))) - set(rows)):
            self._save(row)
        self.running = [self.running[row] for row in rows]
        self._batch = self._batch.keep(rows) if rows and self._batch is not None else None

    def _save(self, row: int) -> None:
        """Keep what a running sequence has in the cache, if its logits were usable."""
        assert self._batch is not None
        length = int(self._batch.lengths[row])
        keys = self._prefixes.keys(self.running[row].context[:length])
        if keys and not self.running[row].broken:
            self._prefixes.save(keys, self._batch.cache, row, self._batch.cache.length - length)

    def _read(self, reading: Reading) -> int:
        """Read a chunk; after the last one choose first tokens and join the batch. Returns the tokens read."""
        prefill = reading.prefill
        start = prefill.done
        logits = prefill.advance(self.session, max(1, self.config.chunk_tokens // len(reading.members)))  # (B, S, V)
        padding = prefill.width - prefill.lengths  # (B,)
        for members, row, pad in zip(reading.members, logits, padding.tolist(), strict=True):
            score_prompt(members, row[max(0, pad - start) :], max(0, start - pad))
        if prefill.finished:
            self._reading = None
            self._start(reading, logits[:, -1])
        return int(np.maximum(prefill.done - np.maximum(padding, start), 0).sum())

    def _start(self, reading: Reading, logits: Floats) -> None:
        """Next tokens of sequences whose prompts have been read. `logits (B, V)`."""
        rows: list[int] = []
        started: list[GenerationSequence] = []
        for row, members in enumerate(reading.members):
            for sequence in members:
                if sequence.finished:
                    continue
                if sequence.params.prompt_logprobs is not None and not sequence.tokens:
                    self.emit(sequence, PromptEvent(choice=sequence.choice, scores=tuple(sequence.prompt_scores)))
                if sequence.params.max_tokens == 0:
                    self.emit(sequence, sequence.finish(LENGTH))
                elif self._extend(sequence, logits[row]):
                    rows.append(row)
                    started.append(sequence)
        reading.save()
        if not started:
            return
        batch = reading.prefill.batch()
        if rows != list(range(len(reading.members))):
            batch = batch.keep(rows)
        self._batch = batch if self._batch is None else self._batch.join(batch)
        self.running += started

    def _decode(self) -> None:
        assert self._batch is not None
        tokens = np.array([s.tokens[-1] for s in self.running], np.int64)
        logits, self._batch = self._batch.step(self.session, tokens)
        # all are chosen before the first is told: whoever is told wakes up and wants the interpreter
        events = [self._choose(sequence, row) for sequence, row in zip(self.running, logits, strict=True)]
        for sequence, event in zip(self.running, events, strict=True):
            self.emit(sequence, event)
        self._compact()

    def _extend(self, sequence: GenerationSequence, logits: Floats) -> bool:
        """Choose a token and emit it; whether the sequence continues."""
        self.emit(sequence, self._choose(sequence, logits))
        return not sequence.finished

    def _choose(self, sequence: GenerationSequence, logits: Floats) -> Event:
        """The next token of a sequence. Unusable logits, or a grammar that is too complex, end this sequence alone."""
        try:
            return sequence.extend(logits)
        except (NumericError, StuckError) as e:
            sequence.broken = isinstance(e, NumericError)
            sequence.finish(ABORT)
            return FailureEvent(choice=sequence.choice, error=e)

    def fail(self, sequence: GenerationSequence, error: MaskProError) -> None:
        """End one sequence with an error."""
        sequence.finish(ABORT)
        self.emit(sequence, FailureEvent(choice=sequence.choice, error=error))

    def _compact(self) -> None:
        """Give up the rows of finished sequences."""
        keep = [i for i, s in enumerate(self.running) if not s.finished]
        if len(keep) != len(self.running):
            self._keep(keep)

"""Which sequences run: iteration-level scheduling over one session.

Every step reads one chunk of waiting prompts, if there are any and there is room, and then takes one decode step for all
running sequences. So a long prompt delays the others by a chunk at most, and a finished sequence makes room at once. Prompts
that wait together are read together; equal prompts (several answers to one) are read once. When the cache would grow over its
limit, the youngest sequence gives up its place and is read again later: its answer is the same, only late.

The scheduler is plain and single-threaded: `generator.py` gives it its thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from maskpro_deploy.backends.session import Floats, Session
from maskpro_deploy.errors import MaskProError, check_range
from maskpro_deploy.runtime.generate.grammar_compiler import StuckError
from maskpro_deploy.runtime.generate.prompt_scores import OPTION, score_prompt
from maskpro_deploy.runtime.generate.sampling import NumericError
from maskpro_deploy.runtime.generate.sequence import ABORT, LENGTH, Event, FailureEvent, GenerationSequence, PromptEvent
from maskpro_deploy.runtime.sessions.batches import Batch, Prefill
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

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "chunk_tokens", "max_cache_tokens", "max_prefill_rows"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig(SessionConfig, SchedulerConfig):
    """How a bundle is run: the settings of its session and of its scheduler, and the generator's own.

    Where `max_cache_tokens` is None, `load` takes as many as fit an eighth of this machine's memory; it takes `max_prefill_rows`
    from the session.
    """

    spin: bool = False  # see `SessionConfig`; off here, because a server shares its machine at least with its own network thread
    max_num_queued_reqs: int = 64  # further sequences that may wait
    queue_timeout_s: float | None = 60.0  # how long an answer may wait for its start; None for ever
    request_timeout_s: float | None = None  # how long it may take, waiting included; None for ever
    max_model_len: int | None = None  # longest prompt and answer together, in tokens; None takes the model's own
    max_prompt_logprobs_tokens: int | None = 4096  # tokens of prompts with log-probabilities in a request; None for no bound
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
class _Reading:
    """Prompts that are being read, and the sequences that wait for each of them."""

    prefill: Prefill
    members: list[list[GenerationSequence]]  # one list for each row

    @property
    def sequences(self) -> list[GenerationSequence]:
        return [s for row in self.members for s in row]


@dataclass(slots=True)
class StepCount:
    """What one step did: tokens read (without padding), tokens generated, sequences that gave up their places."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    preempted: int = 0


class Scheduler:
    """Sequences from waiting to finished; `emit` takes every event, in order."""

    def __init__(self, session: Session, config: SchedulerConfig, emit: Emit) -> None:
        self.session = session
        self.config = config
        self.emit = emit
        self.waiting: deque[GenerationSequence] = deque()
        self.running: list[GenerationSequence] = []  # row i of the batch
        self._reading: _Reading | None = None
        self._batch: Batch | None = None

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not (self.waiting or self.running or self._reading)

    @property
    def num_running(self) -> int:
        """Sequences that hold a place in the batch, or will after reading."""
        reading = self._reading  # another thread may ask
        return len(self.running) + (len(reading.sequences) if reading else 0)

    @property
    def cached_tokens(self) -> int:
        """Tokens in the cache, padding not counted."""
        batch = self._batch  # another thread may ask
        return int(batch.lengths.sum()) if batch is not None else 0

    def abort(self, sequences: Iterable[GenerationSequence]) -> None:
        """End sequences, wherever they are; finished ones stay as they are."""
        for sequence in sequences:
            if not sequence.finished:
                self.emit(sequence, sequence.finish(ABORT))
        self.waiting = deque(s for s in self.waiting if not s.finished)
        if self._reading and all(s.finished for s in self._reading.sequences):
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
        if self._reading is None:
            self._reading = self._next_reading()
        if self._reading is not None:
            count.prompt_tokens = self._read(self._reading)
        count.preempted = self._make_room()
        if self.running:
            count.generated_tokens = len(self.running)
            self._decode()
        return count

    def _next_reading(self) -> _Reading | None:
        """The prompts to read next: in order of arrival, as many as have room and fit a chunk (but at least one)."""
        room = self.config.max_num_seqs - len(self.running)
        rows: dict[tuple[int, ...], list[GenerationSequence]] = {}
        width = 0
        taken = list(self.running)
        while self.waiting and room and self._fits([*taken, self.waiting[0]]):
            prompt = self.waiting[0].context
            wider, more = max(width, len(prompt)), len(rows) + (prompt not in rows)
            too_many = wider * more > self.config.chunk_tokens or more > (self.config.max_prefill_rows or more)
            if rows and too_many and more > len(rows):
                break
            sequence = self.waiting.popleft()
            sequence.times.started = sequence.times.started or time.perf_counter()
            rows.setdefault(prompt, []).append(sequence)
            taken.append(sequence)
            width, room = wider, room - 1
        return _Reading(Prefill(list(rows)), list(rows.values())) if rows else None

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
            self.waiting.appendleft(self.running.pop())
            self._batch = self._batch.keep(range(len(self.running)))
            preempted += 1
        return preempted

    def _read(self, reading: _Reading) -> int:
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

    def _start(self, reading: _Reading, logits: Floats) -> None:
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
            sequence.finish(ABORT)
            return FailureEvent(choice=sequence.choice, error=e)

    def fail(self, sequence: GenerationSequence, error: MaskProError) -> None:
        """End one sequence with an error."""
        sequence.finish(ABORT)
        self.emit(sequence, FailureEvent(choice=sequence.choice, error=error))

    def _compact(self) -> None:
        """Give up the rows of finished sequences."""
        keep = [i for i, s in enumerate(self.running) if not s.finished]
        if len(keep) == len(self.running):
            return
        self.running = [self.running[i] for i in keep]
        self._batch = self._batch.keep(keep) if keep and self._batch is not None else None

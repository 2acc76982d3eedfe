"""The text generator: one thread that owns the session, and the ways to ask it for text.

onnxruntime gives up the interpreter lock while it computes, so the threads of the model and of the network do not hinder each
other. Requests come in through a queue of commands; answers go out as events through a callback, on the generator's thread.
Admission is decided before anything is queued: a full generator says so at once instead of letting everybody wait.

    with load(bundle) as generator:
        print(generator.generate(["Once upon a time"], SamplingParams(max_tokens=32))[0].text)
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from maskpro_deploy.backends.session import Session
from maskpro_deploy.errors import ConfigError, InputError, MachineError, MaskProError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.grammar_compiler import CompiledGrammar, GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar
from maskpro_deploy.runtime.generate.prompt_scores import ScoreBudget, count_scored
from maskpro_deploy.runtime.generate.sampling_params import SamplingError, SamplingParams
from maskpro_deploy.runtime.generate.scheduler import RuntimeConfig, Scheduler, StepCount
from maskpro_deploy.runtime.generate.sequence import Completion, Event, FailureEvent, GenerationSequence, Sink, build_completion
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.system.throttle import Throttle

log = logging.getLogger(__name__)
log.addFilter(Throttle())  # clients that go away must not be able to fill a log

_PACE_OF, _LONGEST_WAIT_S = 16, 120
READY, DRAINING, STOPPED, DEAD = "ready", "draining", "stopped", "dead"


class OverloadedError(MachineError):
    """No room for another request now.

    `reason` is "queue_full", "prompt_logprobs_full", "queue_timeout", "loading" or "shutting_down".
    `retry_after_s` is when there may be room.
    """

    def __init__(self, message: str, reason: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.reason, self.retry_after_s = reason, retry_after_s


class TookTooLongError(MachineError):
    """An answer was not finished within the time that the operator allows."""


class GeneratorDeadError(MaskProError):
    """Text generation broke down; it does not recover."""


class ContextLengthError(InputError):
    """Prompt and answer together are longer than the model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the generator is: sequences running and waiting, tokens in the cache, and how many the cache may hold.

    `prefix_tokens` are kept in the rest of the cache for later prompts, and give way to sequences.
    """

    running: int = 0
    waiting: int = 0
    cached_tokens: int = 0
    capacity_tokens: int = 1
    prefix_tokens: int = 0


class Pace:
    """How fast answers end, from the last few of them."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=_PACE_OF)

    def count(self) -> None:
        """One more has ended now."""
        self._ends.append(time.perf_counter())

    def estimate_wait_s(self, answers: int) -> int:
        """Whole seconds until so many places will have come free: 1 at least, as nothing is known at the start."""
        ends = tuple(self._ends)
        if len(ends) < 2:
            return 1
        each = (ends[-1] - ends[0]) / (len(ends) - 1)
        return min(_LONGEST_WAIT_S, max(1, math.ceil(answers * each)))


class Observer(Protocol):
    """Counts what happens, on the generator's thread (metrics)."""

    def count_event(self, sequence: GenerationSequence, event: Event) -> None:
        """One event of one sequence."""

    def count_step(self, count: StepCount) -> None:
        """One finished step of the scheduler."""


class TextGenerator:
    """Generates text with one session, from now on used by its thread only. All methods may be called from any thread."""

    def __init__(
        self,
        session: Session,
        tokenizer: TextTokenizer,
        config: RuntimeConfig | None = None,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.config = config or RuntimeConfig()
        self.shape: ModelShape = session.shape
        self.tokenizer = tokenizer
        self.max_model_len = context_length(self.shape, self.config.max_model_len)
        self.grammars = grammars or GrammarCompiler(tokenizer, self.shape)
        self.observer: Observer | None = None
        self._scheduler = Scheduler(session, self.config, self._emit)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._live: set[GenerationSequence] = set()
        self._scores = ScoreBudget(self.config.max_prompt_logprobs_tokens)
        self._pace = Pace()
        self._changed = threading.Condition()  # guards _live and status
        self.status = READY  # or DRAINING, STOPPED, DEAD
        self._thread = threading.Thread(target=self._run, name="maskpro-generator", daemon=True)
        self._thread.start()

    @property
    def load(self) -> Load:
        """How busy it is now, whatever the thread is doing."""
        capacity = self.config.max_cache_tokens or self.config.max_num_seqs * self.max_model_len
        if self.status in (STOPPED, DEAD):
            return Load(capacity_tokens=capacity)
        scheduler = self._scheduler
        return Load(
            running=scheduler.num_running,
            waiting=len(scheduler.waiting),
            cached_tokens=scheduler.cached_tokens,
            capacity_tokens=capacity,
            prefix_tokens=scheduler.prefix_tokens,
        )

    @property
    def capacity(self) -> int:
        """Sequences that may run and wait."""
        return self.config.max_num_seqs + self.config.max_num_queued_reqs

    def submit(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        sink: Sink,
        *,
        n: int = 1,
        limited: bool = True,
        grammar: CompiledGrammar | None = None,
    ) -> list[GenerationSequence]:
        """Queue `n` answers to each prompt; all of them or none.

        Args:
            prompts: tokens of each prompt.
            params: settings of all answers.
            sink: takes the events of all answers, on the generator's thread; choice i of prompt p has number p * n + i.
            n: answers to each prompt.
            limited: refuse when the queue is full.
            grammar: what all answers may be, from `grammars`; None for anything.

        Raises:
            OverloadedError: no room now.
            GeneratorDeadError: the generator broke down.
            ContextLengthError: a prompt is too long.
            InputError: a prompt is empty or holds unknown tokens, a setting does not fit the model, or log-probabilities of too
                many prompt tokens are asked for.
        """
        for prompt in prompts:
            self._check(prompt, params)
        if limited and len(prompts) * n > self.capacity:
            raise InputError(f"{len(prompts)} prompts with n={n} are more than this server takes at once ({self.capacity}).")
        sequences = [
            GenerationSequence(prompt, params, self.shape, self.tokenizer, sink, choice=p * n + i, draw=i, grammar=grammar)
            for p, prompt in enumerate(prompts)
            for i in range(n)
        ]
        scored = count_scored(sequences) if limited else 0
        self._scores.check(scored)
        with self._changed:
            self._admit(len(sequences) if limited else 0, scored)
            self._live.update(sequences)
            self._commands.put(lambda: self._scheduler.waiting.extend(sequences))
        return sequences

    def abort(self, sequences: Iterable[GenerationSequence]) -> None:
        """End these answers; those that are finished stay as they are."""
        wanted = list(sequences)
        self._commands.put(lambda: self._scheduler.abort(wanted))

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams | None = None, grammar: Grammar | None = None
    ) -> list[Completion]:
        """Answer prompts (texts or tokens), together, as `grammar` allows; wait for one answer to each, in order.

        Raises:
            MaskProError: as `submit` and `GrammarCompiler.compile`, or what broke the generation.
        """
        compiled = self.grammars.compile(grammar) if grammar is not None else None
        tokens = [self.tokenizer.encode(p) if isinstance(p, str) else list(p) for p in prompts]
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        sequences = self.submit(tokens, params or SamplingParams(), events.put, limited=False, grammar=compiled)
        events_of: list[list[Event]] = [[] for _ in sequences]
        try:
            open_choices = len(sequences)
            while open_choices:
                event = events.get()
                if isinstance(event, FailureEvent):
                    raise event.error
                events_of[event.choice].append(event)
                open_choices -= event.last
        finally:
            self.abort(sequences)  # after an error or an interrupt the others are of no use
        return [build_completion(len(s.prompt), own) for s, own in zip(sequences, events_of, strict=True)]

    def drain(self, timeout_s: float | None = None) -> bool:
        """Take no new requests, refuse those that wait, finish the running ones; whether all were finished in time."""
        with self._changed:
            if self.status == READY:
                self.status = DRAINING
                refused = OverloadedError("the server is shutting down.", "shutting_down")
                self._commands.put(lambda: self._scheduler.refuse(lambda s: not s.times.started, refused))
            return self._changed.wait_for(lambda: not self._live, timeout_s)

    def close(self) -> None:
        """End what runs (its owners see an "abort") and stop the thread."""
        with self._changed:
            if self.status not in (STOPPED, DEAD):
                self.status = STOPPED
        self._commands.put(lambda: self._scheduler.abort(list(self._live)))
        self._thread.join()

    def __enter__(self) -> TextGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _admit(self, wanted: int, scored: int) -> None:
        if self.status == DEAD:
            raise GeneratorDeadError("text generation broke down; see the server's log. It has to be restarted.")
        if self.status != READY:
            raise OverloadedError("the server is shutting down.", "shutting_down")
        if len(self._live) + wanted > self.capacity and wanted:
            message = f"the server is full: {len(self._live)} requests run or wait. Try again later."
            raise OverloadedError(message, "queue_full", self._pace.estimate_wait_s(wanted))
        if not self._scores.has_room(self._live, scored):
            message = "the server is full: other requests for log-probabilities of prompts run or wait. Try again later."
            raise OverloadedError(message, "prompt_logprobs_full", self._pace.estimate_wait_s(wanted))

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        vocab = self.shape.vocab_size
        if not prompt:
            raise InputError("the prompt is empty: it has no tokens.")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise InputError(f"the prompt holds tokens outside the vocabulary (0 to {vocab - 1}).")
        if any(t >= vocab for t in params.logit_bias):
            raise SamplingError("logit_bias", dict(params.logit_bias), f"token ids from 0 to {vocab - 1}")
        if not all(0 <= t < vocab for t in params.stop_token_ids):
            raise SamplingError("stop_token_ids", list(params.stop_token_ids), f"token ids from 0 to {vocab - 1}")
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and the answer may have {params.max_tokens}: together "
                f"{len(prompt) + params.max_tokens}, but the context holds {self.max_model_len}."
            )

    def _run(self) -> None:
        try:
            while self._take_commands() or self.status not in (STOPPED, DEAD):
                self._refuse_late()
                if not self._scheduler.idle:
                    count = self._scheduler.step()
                    if self.observer is not None:
                        self.observer.count_step(count)
        except BaseException as e:
            log.exception("text generation broke down")
            self._fail_all(e)

    def _refuse_late(self) -> None:
        """End what has waited or run for too long."""
        now, waiting_s, whole_s = time.perf_counter(), self.config.queue_timeout_s, self.config.request_timeout_s
        if waiting_s is not None and self._scheduler.waiting:
            late = OverloadedError(f"no place came free within {waiting_s:g} s.", "queue_timeout", self._pace.estimate_wait_s(1))
            self._scheduler.refuse(lambda s: not s.times.started and now - s.times.arrived > waiting_s, late)
        if whole_s is not None:
            slow = TookTooLongError(f"the answer was not finished within {whole_s:g} s.")
            self._scheduler.refuse(lambda s: now - s.times.arrived > whole_s, slow)

    def _take_commands(self) -> bool:
        """Carry out what was asked for; wait for it if there is nothing else to do. Whether work is left."""
        try:
            while True:
                self._commands.get(block=self._scheduler.idle and self.status not in (STOPPED, DEAD))()
        except queue.Empty:
            pass
        return not self._scheduler.idle

    def _emit(self, sequence: GenerationSequence, event: Event) -> None:
        if self.observer is not None:
            self.observer.count_event(sequence, event)
        if sequence.finished:
            self._pace.count()
            with self._changed:
                self._live.discard(sequence)
                self._changed.notify_all()
        try:
            sequence.sink(event)
        except Exception:  # its owner is gone (a closed event loop): nobody else should suffer
            log.warning("an answer has lost its reader", exc_info=True)
            self.abort([sequence])

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self.status = DEAD
            orphans = list(self._live)
        reason = GeneratorDeadError(f"text generation broke down: {error}")
        for sequence in orphans:
            self._scheduler.fail(sequence, reason)


def context_length(shape: ModelShape, wanted: int | None) -> int:
    """The longest prompt and answer together, in tokens: `wanted` (a ConfigError if the model's is shorter), or the model's."""
    if wanted is not None and wanted > shape.max_length:
        raise ConfigError(f"--max-model-len is {wanted}, but the model's context holds {shape.max_length} tokens.")
    return wanted or shape.max_length

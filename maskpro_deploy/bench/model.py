"""A language model as the benchmarks see it, and the units of work they time on it.

Shapes: `B` rows, `S` new tokens, `V` vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench.arms import Clock, Task, Work
from maskpro_deploy.errors import ConfigError, InputError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
C = TypeVar("C")

PREFILL, DECODE, GENERATE = "prefill", "decode", "generate"


class Forward(Protocol[C]):
    """Reads tokens on top of a cache; the cache it was given stays valid.  # (B, S) -> (B, S, V)"""

    def __call__(self, tokens: Ints, cache: C | None, /) -> tuple[Floats, C]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArm(Generic[C]):
    """One model to measure.

    Attributes:
        name: how the report calls it.
        open: loads it: a context in which the call it yields runs it. Entered anew for each session of a measurement.
        vocab_size: tokens are drawn below this.
        max_length: longest sequence it takes.
        weight_bytes: bytes of weights that one step reads, as stored; None if not known.
        kv_bytes_per_token: bytes of key/value cache per token and row; None if not known.
        facts: what else the report should say of it: model, provider, threads, hashes.
    """

    name: str
    open: Callable[[], AbstractContextManager[Forward[C]]]
    vocab_size: int
    max_length: int
    weight_bytes: int | None = None
    kv_bytes_per_token: int | None = None
    facts: Mapping[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of a sweep.

    Attributes:
        phase: PREFILL (read a prompt, choose one token), DECODE (choose tokens on top of a context) or GENERATE (both).
        batch_size: rows.
        input_len: tokens per row that are given: the prompt, or the context before the first timed step.
        output_len: tokens per row that are chosen in the timed part.
    """

    phase: str
    batch_size: int
    input_len: int
    output_len: int

    @property
    def label(self) -> str:
        """Such as "decode, batch 1, context 128"."""
        given = "context" if self.phase == DECODE else "prompt"
        output = f", output {self.output_len}" if self.phase == GENERATE else ""
        return f"{self.phase}, batch {self.batch_size}, {given} {self.input_len}{output}"


def check_arms(arms: Sequence[ModelArm[Any]], cases: Sequence[Case]) -> None:
    """Refuse arms that cannot be compared, and cases that do not fit in them.

    Raises:
        InputError: two arms share a name or differ in vocabulary.
        ConfigError: a case is longer than an arm's longest sequence.
    """
    if not arms or not cases:
        raise ConfigError("nothing to measure: give at least one model and one prompt or context length.")
    if len({arm.name for arm in arms}) != len(arms):
        raise InputError(f"two of the models have the same name: {', '.join(arm.name for arm in arms)}.")
    if len({arm.vocab_size for arm in arms}) != 1:
        sizes = ", ".join(f"{arm.name} {arm.vocab_size}" for arm in arms)
        raise InputError(f"the models have different vocabularies ({sizes}): their work cannot be compared.")
    for case in cases:
        for arm in arms:
            if (needed := case.input_len + case.output_len) > arm.max_length:
                raise ConfigError(
                    f"{case.label} needs {needed} tokens; {arm.name} takes {arm.max_length} at most.\n"
                    f"Give a shorter --prompt, --context or --output."
                )


def draw_tokens(case: Case, vocab_size: int, seed: int) -> Ints:
    """Seeded random tokens for a case; time does not depend on which they are.  # (B, input_len)"""
    rng = np.random.default_rng([seed, case.batch_size, case.input_len])
    return rng.integers(0, vocab_size, size=(case.batch_size, case.input_len), dtype=np.int64)


def greedy_choice(logits: Floats) -> Ints:
    """The likeliest next token of each row.  # (B, S, V) -> (B, 1)"""
    chosen: Ints = np.argmax(logits[:, -1:], axis=-1).astype(np.int64)
    return chosen


def make_task(forward: Forward[C], case: Case, vocab_size: int, seed: int, clock: Clock = time.perf_counter) -> Task:
    """The unit of work of `case` on an open model. For DECODE the context is read here, outside the timed part."""
    tokens = draw_tokens(case, vocab_size, seed)
    if case.phase == PREFILL:
        return lambda: Work(tokens=greedy_choice(forward(tokens, None)[0]))
    if case.phase == GENERATE:
        return lambda: _generate(forward, tokens, case.output_len, clock)
    if case.phase != DECODE:
        raise ConfigError(f"{case.phase!r} is no phase: {PREFILL}, {DECODE} or {GENERATE}.")
    logits, context = forward(tokens, None)
    first = greedy_choice(logits)
    return lambda: Work(tokens=_decode(forward, first, context, case.output_len))


def _decode(forward: Forward[C], token: Ints, cache: C, steps: int) -> Ints:
    """Greedy steps on top of a cache.  # (B, 1) -> (B, steps)"""
    chosen = []
    for _ in range(steps):
        logits, cache = forward(token, cache)
        token = greedy_choice(logits)
        chosen.append(token)
    return np.concatenate(chosen, axis=1)


def _generate(forward: Forward[C], prompt: Ints, count: int, clock: Clock) -> Work:
    start = clock()
    logits, cache = forward(prompt, None)
    first = greedy_choice(logits)
    first_token_s = clock() - start
    if count == 1:
        return Work(tokens=first, first_token_s=first_token_s)
    rest = _decode(forward, first, cache, count - 1)
    return Work(tokens=np.concatenate([first, rest], axis=1), first_token_s=first_token_s)

"""A language model as the benchmarks see it, and the units of work they time on it.

Shapes: `B` rows, `S` new tokens, `V` vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench.arms import Clock, Task, Work
from maskpro_deploy.bench.roofline import Load
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
    """One model to measure."""

    name: str  # how the report calls it
    # loads it: a context in which the call it yields runs it. Entered again for each session of a measurement.
    open: Callable[[], AbstractContextManager[Forward[C]]]
    vocab_size: int  # tokens are drawn below this
    max_length: int  # longest sequence it takes
    weight_bytes: int | None = None  # bytes of weights that one step reads, as stored; None if not known
    kv_bytes_per_token: int | None = None  # bytes of key/value cache per token and row; None if not known
    # of the matrix products that a token goes through; None if not known, or not done in fp32
    operations_per_token: int | None = None
    attention_operations: int | None = None  # of one token with one earlier one, over all layers; None likewise
    on_cpu: bool = True  # whether it runs where the ceilings are measured
    # what else the report should say of it: model, provider, threads, hashes
    facts: Mapping[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One point of a sweep."""

    phase: str  # PREFILL (read a prompt, choose one token), DECODE (choose tokens on top of a context) or GENERATE (both)
    batch_size: int  # rows
    input_len: int  # tokens per row that are given: the prompt, or the context before the first timed step
    output_len: int  # tokens per row that are chosen in the timed part

    @property
    def label(self) -> str:
        """Such as "decode, batch 1, context 128"."""
        given = "context" if self.phase == DECODE else "prompt"
        output = f", output {self.output_len}" if self.phase == GENERATE else ""
        return f"{self.phase}, batch {self.batch_size}, {given} {self.input_len}{output}"


def same_kernels(a: ModelArm[Any], b: ModelArm[Any]) -> bool:
    """Whether two arms are known to run the same kernels: their graphs differ at most in the values of weights.

    Only on a CPU: onnxruntime has no sparse kernels there, and chooses by types and shapes. TensorRT may choose by the values.
    """
    graph, provider = (a.facts.get(key) for key in ("graph_sha256", "provider"))
    alike = graph == b.facts.get("graph_sha256") and provider == b.facts.get("provider") == "CPUExecutionProvider"
    return a.on_cpu and b.on_cpu and graph is not None and alike


def list_loads(arm: ModelArm[Any], case: Case) -> list[Load]:
    """What each of the calls in one unit of work has to do at least; for DECODE of one step, as its time is told by step."""
    if case.phase == PREFILL:
        return [_load(arm, case.batch_size, case.input_len, 0)]
    if case.phase == DECODE:
        return [_load(arm, case.batch_size, 1, case.input_len)]
    steps = [_load(arm, case.batch_size, 1, case.input_len + i) for i in range(case.output_len - 1)]
    return [_load(arm, case.batch_size, case.input_len, 0), *steps]


def _load(arm: ModelArm[Any], rows: int, new: int, past: int) -> Load:
    """One call over `new` tokens of each row on top of `past`; attention of a token to those after it is not counted."""
    size = operations = None
    bound_by_bytes = new == 1 or arm.operations_per_token is not None  # else the bytes alone say nothing
    if arm.on_cpu and arm.weight_bytes is not None and bound_by_bytes:
        size = arm.weight_bytes + rows * past * (arm.kv_bytes_per_token or 0)
    if arm.on_cpu and arm.operations_per_token is not None:
        pairs = new * past + new * (new + 1) / 2
        operations = rows * (new * arm.operations_per_token + pairs * (arm.attention_operations or 0))
    return Load(bytes=size, operations=operations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How near the logits of one model are to those of another over the same tokens."""

    max_logit_difference: float  # the largest absolute difference of a logit; infinite where one of them is NaN
    same_top_token: float  # part of the positions at which both have the same likeliest token
    positions: int  # that were compared


def check_arms(arms: Sequence[ModelArm[Any]], cases: Sequence[Case]) -> None:
    """Refuse arms that cannot be compared (`InputError`), and cases that do not fit in them (`ConfigError`)."""
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
                needs = f"{case.label} needs {needed} tokens; {arm.name} takes {arm.max_length} at most"
                raise ConfigError(f"{needs}.\nGive a shorter --prompt, --context or --output.")


def draw_tokens(case: Case, vocab_size: int, seed: int) -> Ints:
    """Seeded random tokens for a case; time does not depend on which they are.  # (B, input_len)"""
    rng = np.random.default_rng([seed, case.batch_size, case.input_len])
    return rng.integers(0, vocab_size, size=(case.batch_size, case.input_len), dtype=np.int64)


def compare_logits(first: Forward[Any], second: Forward[Any], case: Case, vocab_size: int, seed: int) -> Agreement:
    """Run both models over the tokens of `case`, and over those that the first one then chooses, and compare the logits."""
    given = draw_tokens(case, vocab_size, seed)
    steps = 0 if case.phase == PREFILL else case.output_len - (case.phase == GENERATE)
    worst, same, positions = 0.0, 0, 0
    caches: tuple[Any, Any] = (None, None)
    for step in range(1 + steps):
        (a, left), (b, right) = first(given, caches[0]), second(given, caches[1])
        caches, given = (left, right), greedy_choice(a)
        if step == 0 and case.phase == DECODE:  # reading the context is no part of this case
            continue
        for row_a, row_b in zip(a, b, strict=True):  # row by row: logits of a long prompt are large
            difference = float(np.abs(row_a - row_b).max())
            worst = max(worst, difference if math.isfinite(difference) else math.inf)
            same += int((row_a.argmax(-1) == row_b.argmax(-1)).sum())
            positions += len(row_a)
    return Agreement(max_logit_difference=worst, same_top_token=same / positions, positions=positions)


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
        raise ConfigError(f"{case.phase!r} is not a phase: {PREFILL}, {DECODE} or {GENERATE}.")
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

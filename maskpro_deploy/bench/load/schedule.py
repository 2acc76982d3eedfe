"""When requests are sent, and what they ask.

*Open loop*: arrivals follow a timetable that is drawn before the first request and never waits for the server, as users do
not. Gaps are exponential (a Poisson process), or gamma-distributed with another burstiness, or all equal. *Closed loop*: a fixed
number of requests is under way; each answer triggers the next request, so the load slows down with the server, and its tail
latencies look better than users would find them (coordinated omission). It answers how much a server can do, not how it feels.

Prompts are random token ids of a fixed length, or text. Every request of a run has its own, so that a server's prefix cache does
not answer in the model's place. The same seed gives the same prompts.

Shapes: `N` requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench.load.client import Request
from maskpro_deploy.errors import ConfigError, check_range

Seed = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenLoop:
    """Arrivals at a rate."""

    rate: float  # requests a second, on average; inf sends all at once
    burstiness: float = 1.0  # shape of the gamma distribution of gaps: 1 is Poisson, less comes in bursts, inf is a constant rate

    def __post_init__(self) -> None:
        check_range("--request-rate", self.rate, above=0)
        check_range("--burstiness", self.burstiness, above=0, note="1 is Poisson, inf a constant rate")

    @property
    def label(self) -> str:
        if math.isinf(self.rate):
            return "all at once"
        kind = {1.0: "Poisson", math.inf: "constant"}.get(self.burstiness, f"gamma {self.burstiness:g}")
        return f"{self.rate:g} requests/s, {kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoop:
    """A fixed number of requests under way."""

    concurrency: int

    def __post_init__(self) -> None:
        check_range("--concurrency", self.concurrency, least=1)

    @property
    def label(self) -> str:
        return f"concurrency {self.concurrency}"


Load = OpenLoop | ClosedLoop


def draw_arrivals(load: OpenLoop, count: int, seed: Seed) -> npt.NDArray[np.float64]:
    """Send times in seconds after the start, ascending.  # (N,)

    The gaps are scaled so that the last request is sent after exactly `count / rate`, as vLLM's benchmark does: otherwise the
    offered rate of a short run would itself be off by some per cent.
    """
    if math.isinf(load.rate):
        return np.zeros(count)
    rng = np.random.default_rng(seed)
    gaps = np.ones(count) if math.isinf(load.burstiness) else rng.standard_gamma(load.burstiness, count)
    times = np.cumsum(gaps)
    scaled: npt.NDArray[np.float64] = times * (count / load.rate / times[-1])
    return scaled


RequestSource = Callable[[Seed], Request]


def draw_random_tokens(vocabulary: Sequence[int], input_len: int, output_len: int) -> RequestSource:
    """Prompts of exactly `input_len` ids, drawn evenly from `vocabulary`, which has to have two at least."""
    check_lengths(input_len, output_len)
    if len(vocabulary) < 2:
        raise ConfigError(f"random prompts need at least two token ids, not {len(vocabulary)}.")
    ids = np.asarray(vocabulary, dtype=np.int64)

    def make(seed: Seed) -> Request:
        drawn = np.random.default_rng(seed).integers(len(ids), size=input_len)
        return Request(prompt=tuple(ids[drawn].tolist()), output_len=output_len, input_len=input_len)

    return make


def cut_text_windows(documents: Sequence[str], words: int, output_len: int) -> RequestSource:
    """Prompts of `words` words of running text, each from a place drawn at random; all text has to be as long as one."""
    check_lengths(words, output_len)
    every = [word for document in documents for word in document.split()]
    if len(every) < words:
        raise ConfigError(
            f"the text has {len(every)} words, fewer than a prompt of {words}.\nGive more text, or a shorter --input-len."
        )

    def make(seed: Seed) -> Request:
        start = int(np.random.default_rng(seed).integers(len(every) - words + 1))
        return Request(prompt=" ".join(every[start : start + words]), output_len=output_len)

    return make


def take_prompts(prompts: Sequence[str], output_len: int) -> RequestSource:
    """Prompts as they are, in a drawn order; they repeat where there are fewer than requests."""
    check_lengths(1, output_len)
    if not prompts:
        raise ConfigError("there are no prompts.")

    def make(seed: Seed) -> Request:
        *run, index = seed  # the whole list is gone through before one comes again
        order = np.random.default_rng((*run, index // len(prompts))).permutation(len(prompts))
        return Request(prompt=prompts[order[index % len(prompts)]], output_len=output_len)

    return make


def check_lengths(input_len: int, output_len: int) -> None:
    """Refuse lengths below 1 with a `ConfigError` that names the flag."""
    for flag, value in (("--input-len", input_len), ("--output-len", output_len)):
        check_range(flag, value, least=1)

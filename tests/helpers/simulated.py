"""A clock that only moves when told, and models that tell it how long they take."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench.arms import Work
from maskpro_deploy.bench.model import ModelArm
from maskpro_deploy.bench.roofline import Arithmetic, Bandwidth
from maskpro_deploy.bench.sessions import SelfTest
from maskpro_deploy.bench.stats import FASTER, Ratio
from maskpro_deploy.bench.sweeps.sweep import SweepOptions

Ints = npt.NDArray[np.int64]
VOCAB = 50
BANDWIDTH = Bandwidth(
    bytes_per_s=1e10, read_bytes_per_s=1e10, copy_bytes_per_s=8e9, threads=1, buffer_bytes=1 << 26, method="simulated"
)
CEILINGS = SweepOptions(bandwidth=BANDWIDTH, arithmetic=Arithmetic(operations_per_s=1e11, method="simulated"))
LIKE = Ratio(
    speedup=1.2,
    speedup_of_medians=1.2,
    low=1.1,
    high=1.3,
    confidence=0.95,
    error=0.04,
    degrees=17.0,
    blocks=20,
    verdict=FASTER,
)  # what a broken harness finds between an arm and itself
BROKEN_SELF_TEST = SelfTest(attempts=(LIKE, LIKE), passed=False)


class ManualClock:
    """Seconds that pass only by `advance`."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class TimedTask:
    """A task that takes the times it is told, in turn and over again."""

    def __init__(
        self, clock: ManualClock, *seconds: float, tokens: Ints | None = None, log: list[str] | None = None, name: str = ""
    ) -> None:
        self._clock, self._seconds, self._log, self._name = clock, seconds, log, name
        self._tokens = np.array([[1, 2]], np.int64) if tokens is None else tokens
        self.calls = 0

    def __call__(self) -> Work:
        self._clock.advance(self._seconds[min(self.calls, len(self._seconds) - 1)])
        self.calls += 1
        if self._log is not None:
            self._log.append(self._name)
        return Work(tokens=self._tokens)


def simulated_arm(
    name: str,
    clock: ManualClock,
    *,
    call_s: float = 1e-3,
    token_s: float = 1e-4,
    jitter: Callable[[], float] = lambda: 1.0,
    vocab_size: int = VOCAB,
    max_length: int = 1024,
    seed: int = 0,
) -> ModelArm[int]:
    """A model whose calls cost `call_s` and `token_s` for each token of each row; its cache is the number of tokens read."""
    table = np.random.default_rng(seed).standard_normal((vocab_size, vocab_size)).astype(np.float32)

    def forward(tokens: Ints, cache: int | None) -> tuple[npt.NDArray[np.float32], int]:
        clock.advance((call_s + token_s * tokens.size) * jitter())
        return table[tokens], (cache or 0) + tokens.shape[1]

    return ModelArm(
        name=name,
        open=lambda: nullcontext(forward),
        vocab_size=vocab_size,
        max_length=max_length,
        weight_bytes=1_000_000,
        kv_bytes_per_token=100,
        operations_per_token=500_000,
        attention_operations=50,
        facts={"model_id": "simulated", "provider": "none", "threads": 1},
    )

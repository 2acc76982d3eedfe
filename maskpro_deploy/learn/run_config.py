"""Settings that every run of the trainer has: how long, on how much text at a time, how often measured, in which dtype."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Self

from maskpro_deploy.errors import ConfigError, check_known, check_range
from maskpro_deploy.learn import choices
from maskpro_deploy.learn.choices import AUTO, BATCH_TOKENS, ObjectiveChoice

DEFAULT_BUDGET_S = 300.0
_POSITIVE = ("checkpoint_every_s", "evaluations", "patience")
_NOT_NEGATIVE = ("budget_s", "steps", "tokens")  # a limit of 0 leaves everything as it starts
_AT_LEAST_A_WINDOW = ("batch_tokens", "calibration_tokens", "heldout_tokens")
# what may change when a run is extended: the limits, and what does not touch the result
_FREE = {"budget_s", "steps", "tokens", "checkpoint_every_s", "evaluations", "patience", "other_weights"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """What every run has.

    Raises:
        ConfigError: a value is out of range.
    """

    # seconds of learning, everything before the first step included; exactly one of the three limits is set
    budget_s: float | None = None
    steps: int | None = None  # optimiser steps instead
    tokens: int | None = None  # tokens to see instead
    objective: str = AUTO  # a name of `choices.OBJECTIVES`; "auto": see `minimised`
    window: int = 256  # tokens in a sequence
    batch_tokens: int | None = None  # tokens in a step; None: those of `choices.BATCH_TOKENS`, at least one window
    calibration_tokens: int = 8192  # tokens that a prior or a reconstruction by blocks sees
    heldout_tokens: int = 4096  # tokens on which the model is measured during a run
    evaluations: int = 5  # how often it is measured during a run
    patience: int | None = None  # stop early after so many measurements in a row without a better one; None never does
    checkpoint_every_s: float = 60.0  # seconds between saved states; what an interruption can cost
    dtype: str = AUTO  # of the weights while learning; "auto" takes the faster of fp32 and bf16 on this machine
    seed: int = 0  # of data order and samples

    def _check_run(self) -> None:
        """Check the fields that all runs have."""
        limits = [x for x in (self.budget_s, self.steps, self.tokens) if x is not None]
        if len(limits) > 1:
            raise ConfigError("give only one of --budget, --steps and --tokens.")
        if not limits:
            object.__setattr__(self, "budget_s", DEFAULT_BUDGET_S)
        self._check_numbers(_POSITIVE, _NOT_NEGATIVE)
        check_range("--window", self.window, least=2)
        for field in _AT_LEAST_A_WINDOW:
            check_range(name_flag(field), getattr(self, field), least=self.window, note="one --window")
        for field, known in self.known_values().items():
            check_known(name_flag(field), getattr(self, field), known)

    def _check_numbers(self, positive: tuple[str, ...], not_negative: tuple[str, ...]) -> None:
        for field in positive:
            check_range(name_flag(field), getattr(self, field), above=0)
        for field in not_negative:
            check_range(name_flag(field), getattr(self, field), least=0)

    def _check_patterns(self, *fields: str) -> None:
        for field in fields:
            try:
                re.compile(getattr(self, field) or "")
            except re.error as e:
                raise ConfigError(f"{name_flag(field)} {getattr(self, field)!r} is not a regular expression: {e}.") from e

    @classmethod
    def known_values(cls) -> dict[str, tuple[str, ...]]:
        """The values that a field can have, of those fields that have few."""
        return {"objective": (AUTO, *choices.names_of(choices.OBJECTIVES)), "dtype": choices.DTYPES}

    @property
    def sequences(self) -> int:
        """Windows in a step."""
        return max(1, (self.batch_tokens or BATCH_TOKENS["cpu"]) // self.window)

    @property
    def minimised(self) -> str:
        """The objective, where it is "auto" the one that measured best."""
        return choices.DEFAULT_OBJECTIVE if self.objective == AUTO else self.objective

    @property
    def objective_choice(self) -> ObjectiveChoice:
        return choices.find(choices.OBJECTIVES, self.minimised)

    def among(self, ranks: int) -> Self:
        """The same settings for so many processes that share a batch: by default at least a window of each step for each of them.

        Raises:
            ConfigError: the windows of a step cannot be shared out equally.
        """
        if ranks == 1:
            return self
        tokens = self.batch_tokens or max(BATCH_TOKENS["cpu"], ranks * self.window)
        if (windows := max(1, tokens // self.window)) % ranks:
            raise ConfigError(
                f"--batch-tokens {tokens} are {windows} windows of {self.window}, which {ranks} processes cannot share equally."
            )
        return dataclasses.replace(self, batch_tokens=tokens)

    def on(self, device: str) -> Self:
        """The same settings with nothing left open: what suits the run, and a device ("cpu" or "cuda")."""
        tokens = self.batch_tokens or max(self.window, BATCH_TOKENS[device])
        return dataclasses.replace(self, batch_tokens=tokens, objective=self.minimised)

    def to_json(self) -> dict[str, Any]:
        """Every setting."""
        return dataclasses.asdict(self)

    def fingerprint(self) -> str:
        """Hash of all settings that change the result; the limits are left out, so that a run can be extended."""
        fixed = {k: v for k, v in self.to_json().items() if k not in _FREE}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def name_flag(field: str) -> str:
    """The option that sets a field."""
    return f"--{field.removesuffix('_s').replace('_', '-')}"

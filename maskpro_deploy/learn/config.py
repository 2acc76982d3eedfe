"""Settings of a learning run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import ConfigError, check_known, check_range
from maskpro_deploy.learn import choices
from maskpro_deploy.learn.choices import AUTO, BATCH_TOKENS, DistributionChoice, EstimatorChoice, ObjectiveChoice, PriorChoice
from maskpro_deploy.pattern import NMPattern

DEFAULT_BUDGET_S = 300.0
_POSITIVE = ("prior_strength", "learning_rate", "checkpoint_every_s", "evaluations", "patience")
_NOT_NEGATIVE = ("budget_s", "steps", "tokens", "temperature")  # a limit of 0 gives the prior itself
_AT_LEAST_A_WINDOW = ("batch_tokens", "calibration_tokens", "heldout_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How to learn a mask.

    Raises:
        ConfigError: a value is out of range.
    """

    pattern: NMPattern  # the N:M pattern
    # seconds of learning, calibration of the prior included; exactly one of the three limits is set
    budget_s: float | None = None
    steps: int | None = None  # optimiser steps instead
    tokens: int | None = None  # tokens to see instead
    # the one-shot mask to start from: a name of `choices.PRIORS`; "file:PATH" is a mask file or a sparse checkpoint
    prior: str = "wanda"
    other_weights: bool = False  # take the masks of "file:PATH" though they were made for other weights of the same shapes
    prior_update: bool = False  # keep SparseGPT's weight update too; the base weights change then, and the result says so
    # of a layer while its prior is computed: "dense", those of the dense model; "pruned", those behind the blocks that are pruned
    # already; "auto", pruned for SparseGPT (as published) and dense for the others
    prior_inputs: str = AUTO
    refine: bool = False  # improve the prior by swaps on the Gram matrix (see `refine`)
    objective: str = AUTO  # a name of `choices.OBJECTIVES`. "auto": the estimator's own with the dense weights, else "ce".
    # inverse temperature of the first samples: the logits are this times log(score / mean score of the group)
    prior_strength: float = 6.0
    estimator: str = "pathwise"  # how the gradient of the logits is computed: a name of `choices.ESTIMATORS`
    reward: str = "layer"  # with "maskpro": "layer", each output's distance from the dense layer's, or "loss", the model's
    distribution: str = AUTO  # of the masks: a name of `choices.DISTRIBUTIONS`; "auto" is the estimator's own
    samples: int = 4  # masks tried in a step of "maskpro" with the reward "loss", in antithetic pairs
    # share of the groups that leave the argmax mask in such a sample, at the start; it decays linearly to 0
    flip_rate: float = 0.02
    # into how many parts the layers are divided there; a step samples one part and leaves the others at the argmax
    parts: int = 1
    # step of the logits relative to their spread; it decays linearly to 0. None: the estimator's own.
    learning_rate: float | None = None
    # of the samples at the start, decaying linearly to 0; 0 runs every step with the argmax mask, which measured best for short
    # budgets (samples stray into masks that are worse, and their gradients say less about the best one)
    temperature: float = 0.0
    window: int = 256  # tokens in a sequence
    batch_tokens: int | None = None  # tokens in a step; None: those of `choices.BATCH_TOKENS`, at least one window
    calibration_tokens: int = 8192  # tokens that the prior sees
    heldout_tokens: int = 4096  # tokens on which the argmax mask is measured during learning
    evaluations: int = 5  # how often it is measured during learning
    patience: int | None = None  # stop early after so many measurements in a row without a better one; None never does
    checkpoint_every_s: float = 60.0  # seconds between saved states; what an interruption can cost
    include: str | None = None  # regular expression of layers to prune (all linear layers but the output embedding by default)
    exclude: str | None = None  # regular expression of layers to leave dense
    dtype: str = AUTO  # of the weights while learning; "auto" takes the faster of fp32 and bf16 on this machine
    seed: int = 0  # of data order and samples

    def __post_init__(self) -> None:
        self._check_limits()
        self._check_ranges()
        for field, known in list_known_values().items():
            check_known(_flag(field), getattr(self, field), known)
        self._check_estimator()
        self._check_prior()
        for field in ("include", "exclude"):
            try:
                re.compile(getattr(self, field) or "")
            except re.error as e:
                raise ConfigError(f"{_flag(field)} {getattr(self, field)!r} is not a regular expression: {e}.") from e

    def _check_limits(self) -> None:
        limits = [x for x in (self.budget_s, self.steps, self.tokens) if x is not None]
        if len(limits) > 1:
            raise ConfigError("give only one of --budget, --steps and --tokens.")
        if not limits:
            object.__setattr__(self, "budget_s", DEFAULT_BUDGET_S)

    def _check_ranges(self) -> None:
        """Each number on its own, and against the window."""
        for field in _POSITIVE:
            check_range(_flag(field), getattr(self, field), above=0)
        for field in _NOT_NEGATIVE:
            check_range(_flag(field), getattr(self, field), least=0)
        check_range("--window", self.window, least=2)
        check_range("--parts", self.parts, least=1)
        check_range("--flip-rate", self.flip_rate, above=0, below=1)
        check_range("--samples", self.samples, least=2)
        if self.samples % 2:
            raise ConfigError(f"--samples {self.samples} has to be an even number: samples come in antithetic pairs.")
        for field in _AT_LEAST_A_WINDOW:
            check_range(_flag(field), getattr(self, field), least=self.window, note="one --window")

    def _check_estimator(self) -> None:
        estimator = self.estimator_choice  # refuses an objective that it does not learn by
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", estimator.learning_rate)
        if not (estimator.score_only or self.distribution_choice.pathwise):
            able = " or ".join(f"--estimator {choice.usage}" for choice in choices.ESTIMATORS if choice.score_only)
            raise ConfigError(f"--distribution {self.distribution} has a score but no pathwise derivative.\nUse it with {able}.")

    def _check_prior(self) -> None:
        prior = self.prior_choice
        if self.prior_update and not prior.updates_weights:
            able = ", ".join(choice.value for choice in choices.PRIORS if choice.updates_weights)
            raise ConfigError(f"--prior-update belongs to --prior {able}; --prior {self.prior} changes no weights.")
        if self.prior_update and self.objective_choice.needs_dense:
            raise ConfigError(
                f"--objective {self.minimised} compares with the dense model, whose weights --prior-update changes.\n"
                f"Use --objective ce, or omit --prior-update."
            )
        if self.other_weights and not prior.takes:
            raise ConfigError(f"--other-weights belongs to --prior file:PATH; --prior {self.prior} reads no masks.")
        if self.refine and not prior.refinable:
            raise ConfigError(f"--refine needs a mask to refine; --prior {self.prior} has none worth it.")

    @property
    def estimator_choice(self) -> EstimatorChoice:
        by_block = self.objective != AUTO and choices.find(choices.OBJECTIVES, self.objective).by_block
        return choices.find_estimator(self.estimator, self.reward, by_block=by_block)

    @property
    def prior_choice(self) -> PriorChoice:
        return choices.find_prior(self.prior)[0]

    @property
    def objective_choice(self) -> ObjectiveChoice:
        return choices.find(choices.OBJECTIVES, self.minimised)

    @property
    def distribution_choice(self) -> DistributionChoice:
        chosen = self.estimator_choice.distribution if self.distribution == AUTO else self.distribution
        return choices.find(choices.DISTRIBUTIONS, chosen)

    @property
    def pruned_inputs(self) -> bool:
        """Whether the prior sees the inputs behind pruned blocks."""
        return (self.prior_choice.inputs if self.prior_inputs == AUTO else self.prior_inputs) == "pruned"

    @property
    def needs_grams(self) -> bool:
        """Whether the prior needs Gram matrices, block by block."""
        prior = self.prior_choice
        return prior.needs_grams or self.refine or (self.pruned_inputs and bool(prior.inputs))

    @property
    def prior_sees_text(self) -> bool:
        """Whether calibration text is run through the model."""
        return bool(self.prior_choice.inputs) or self.needs_grams

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        assert self.learning_rate is not None  # it was filled in when the settings were made
        return self.learning_rate

    @property
    def prior_file(self) -> str | None:
        """The path behind `file:`."""
        return choices.find_prior(self.prior)[1] or None

    @property
    def sequences(self) -> int:
        """Windows in a step."""
        return max(1, (self.batch_tokens or BATCH_TOKENS["cpu"]) // self.window)

    @property
    def minimised(self) -> str:
        """The objective, where it is "auto" the one that measured best."""
        if self.objective != AUTO:
            return self.objective
        return "ce" if self.prior_update else self.estimator_choice.objective

    def on(self, device: str) -> LearnConfig:
        """The same settings with nothing left open: what suits the estimator, and a device ("cpu" or "cuda")."""
        tokens = self.batch_tokens or max(self.window, BATCH_TOKENS[device])
        return dataclasses.replace(self, batch_tokens=tokens, objective=self.minimised)

    def to_json(self) -> dict[str, Any]:
        """Every setting, with the pattern as text."""
        return {**dataclasses.asdict(self), "pattern": str(self.pattern)}

    def fingerprint(self) -> str:
        """Hash of all settings that change the result; the limits are left out, so that a run can be extended."""
        free = {"budget_s", "steps", "tokens", "checkpoint_every_s", "evaluations", "patience", "other_weights"}
        fixed = {k: v for k, v in self.to_json().items() if k not in free}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def list_known_values() -> dict[str, tuple[str, ...]]:
    """The values that a field can have, of those fields that have few; `prior` can have more, see `choices.find_prior`."""
    return {
        "prior_inputs": choices.PRIOR_INPUTS,
        "objective": (AUTO, *choices.names_of(choices.OBJECTIVES)),
        "dtype": choices.DTYPES,
        "estimator": choices.names_of(choices.ESTIMATORS),
        "reward": choices.rewards(),
        "distribution": (AUTO, *choices.names_of(choices.DISTRIBUTIONS)),
    }


def _flag(field: str) -> str:
    """The option that sets a field."""
    return f"--{field.removesuffix('_s').replace('_', '-')}"

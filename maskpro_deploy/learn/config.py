"""Settings of a learning run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.pattern import NMPattern

PRIORS = ("wanda", "magnitude", "sparsegpt", "ria", "none")
FROM_FILE = "file:"
OBJECTIVES = ("auto", "ce", "kl", "ce+kl", "block")
PRIOR_INPUTS = ("auto", "dense", "pruned")
DTYPES = ("auto", "float32", "bfloat16")
ESTIMATORS = ("pathwise", "maskpro", "maskpro-paper", "maskllm")
REWARDS = ("layer", "loss")
DISTRIBUTIONS = ("auto", "conditional-bernoulli", "plackett-luce")
DEFAULT_BUDGET_S = 300.0
_CHOICES = {
    "prior": PRIORS,
    "prior_inputs": PRIOR_INPUTS,
    "objective": OBJECTIVES,
    "dtype": DTYPES,
    "estimator": ESTIMATORS,
    "reward": REWARDS,
    "distribution": DISTRIBUTIONS,
}
# tokens in a step: many small steps learn more in the same time, but a GPU is not filled by few tokens
BATCH_TOKENS = {"cpu": 512, "cuda": 2048}
# steps of the logits; 50 is MaskPro's own, and MaskLLM's candidates are scaled by 100 and more before the softmax
LEARNING_RATES = {"pathwise": 0.04, "maskpro": 0.01, "maskpro-paper": 50.0, "maskllm": 0.001}
_RATE_OF_LOSS = 0.1  # of "maskpro" with the reward "loss", whose steps are not divided by a second moment


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """How to learn a mask.

    Attributes:
        pattern: the N:M pattern.
        budget_s: seconds of learning, calibration of the prior included; exactly one of the three limits is set.
        steps: optimiser steps instead.
        tokens: tokens to see instead.
        prior: the one-shot mask to start from: a name of `PRIORS`, or `file:PATH` with a mask file or a sparse checkpoint.
        prior_update: keep SparseGPT's weight update too; the base weights change then, and the result says so.
        prior_inputs: of a layer while its prior is computed: "dense", those of the dense model; "pruned", those behind the blocks
            that are pruned already; "auto", pruned for SparseGPT (as published) and dense for the others.
        refine: improve the prior by swaps on the Gram matrix (see `refine`).
        objective: "ce", cross-entropy; "kl", the divergence from the dense model's predictions; "ce+kl", their mean; "block", the
            squared difference of each block's outputs from the dense one's, one block after the other (see `blockwise`). "auto":
            "ce+kl" for the pathwise estimator with the dense weights, else "ce".
        prior_strength: inverse temperature of the first samples: the logits are this times log(score / mean score of the group).
        estimator: how a gradient of the logits is come by: "pathwise", "maskpro" (forward passes only), "maskpro-paper" (as
            published), "maskllm" (a baseline); see `estimator`.
        reward: of "maskpro": "layer", each output's distance from the dense layer's, or "loss", the model's.
        distribution: of the masks; "auto" is conditional Bernoulli, and Plackett-Luce for "maskpro-paper".
        samples: masks tried in a step of "maskpro" with the reward "loss", in antithetic pairs.
        flip_rate: share of the groups that leave the argmax mask in such a sample, at the start; it decays linearly to 0.
        parts: into how many parts the layers are divided there; a step samples one part and leaves the others at the argmax.
        learning_rate: step of the logits relative to their spread; it decays linearly to 0. None: the estimator's own.
        temperature: of the samples at the start, decaying linearly to 0; 0 runs every step with the argmax mask, which measured
            best for short budgets (samples stray into masks that are worse, and their gradients say less about the best one).
        window: tokens in a sequence.
        batch_tokens: tokens in a step; None: those of `BATCH_TOKENS`, at least one window.
        calibration_tokens: tokens that the prior sees.
        heldout_tokens: tokens on which the argmax mask is measured during learning.
        evaluations: how often it is measured on the way.
        patience: stop early after so many measurements in a row without a better one; None never does.
        checkpoint_every_s: seconds between saved states; what an interruption can cost.
        include: regular expression of layers to prune (all linear layers but the output embedding by default).
        exclude: regular expression of layers to leave dense.
        dtype: of the weights while learning; "auto" takes the faster of fp32 and bf16 on this machine.
        seed: of data order and samples.

    Raises:
        ConfigError: a value is out of range.
    """

    pattern: NMPattern
    budget_s: float | None = None
    steps: int | None = None
    tokens: int | None = None
    prior: str = "wanda"
    prior_update: bool = False
    prior_inputs: str = "auto"
    refine: bool = False
    objective: str = "auto"
    prior_strength: float = 6.0
    estimator: str = "pathwise"
    reward: str = "layer"
    distribution: str = "auto"
    samples: int = 4
    flip_rate: float = 0.02
    parts: int = 1
    learning_rate: float | None = None
    temperature: float = 0.0
    window: int = 256
    batch_tokens: int | None = None
    calibration_tokens: int = 8192
    heldout_tokens: int = 4096
    evaluations: int = 5
    patience: int | None = None
    checkpoint_every_s: float = 60.0
    include: str | None = None
    exclude: str | None = None
    dtype: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        limits = [x for x in (self.budget_s, self.steps, self.tokens) if x is not None]
        if len(limits) > 1:
            raise ConfigError("give only one of --budget, --steps and --tokens.")
        if not limits:
            object.__setattr__(self, "budget_s", DEFAULT_BUDGET_S)
        for name in ("prior_strength", "learning_rate", "checkpoint_every_s", "evaluations", "patience"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"--{name.removesuffix('_s').replace('_', '-')} {value} has to be above 0.")
        for name in ("budget_s", "steps", "tokens", "temperature"):  # a limit of 0 gives the prior itself
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"--{name.removesuffix('_s').replace('_', '-')} {value} has to be 0 or more.")
        self._check_estimator()
        if self.window < 2:
            raise ConfigError(f"--window {self.window} has to be at least 2 tokens.")
        for name in ("batch_tokens", "calibration_tokens", "heldout_tokens"):
            if (value := getattr(self, name)) is not None and value < self.window:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} {value} has to be at least one --window ({self.window}).")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices and not (name == "prior" and value.startswith(FROM_FILE)):
                known = [*choices, *([f"{FROM_FILE}PATH"] if name == "prior" else [])]
                raise ConfigError(f"--{name.replace('_', '-')} {value!r} is unknown; choose one of {', '.join(known)}.")
        self._check_prior()
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as e:
                raise ConfigError(f"--{name} {getattr(self, name)!r} is no regular expression: {e}.") from e

    def _check_estimator(self) -> None:
        if self.estimator in LEARNING_RATES and self.learning_rate is None:
            own = _RATE_OF_LOSS if (self.estimator, self.reward) == ("maskpro", "loss") else LEARNING_RATES[self.estimator]
            object.__setattr__(self, "learning_rate", own)
        if self.samples < 2 or self.samples % 2:
            raise ConfigError(f"--samples {self.samples} has to be an even number: samples come in antithetic pairs.")
        if not 0 < self.flip_rate < 1:
            raise ConfigError(f"--flip-rate {self.flip_rate} has to be between 0 and 1.")
        if self.parts < 1:
            raise ConfigError(f"--parts {self.parts} has to be at least 1.")
        explores = self.estimator == "maskpro" and self.reward == "loss"
        if self.distribution == "plackett-luce" and not (explores or self.estimator == "maskpro-paper"):
            raise ConfigError(
                "--distribution plackett-luce has a score but no pathwise derivative.\n"
                "It goes with --estimator maskpro --reward loss, and with --estimator maskpro-paper."
            )
        if self.objective == "block" and self.estimator != "pathwise":
            raise ConfigError(f"--objective block is learned by --estimator pathwise, not by {self.estimator}.")

    def _check_prior(self) -> None:
        if self.prior_update and self.prior != "sparsegpt":
            raise ConfigError(f"--prior-update belongs to --prior sparsegpt; --prior {self.prior} changes no weights.")
        if self.prior_update and self.minimised != "ce":
            raise ConfigError(
                f"--objective {self.minimised} compares with the dense model, whose weights --prior-update changes.\n"
                f"Use --objective ce, or leave --prior-update out."
            )
        if self.refine and self.prior == "none":
            raise ConfigError("--refine needs a mask to refine; --prior none has none worth it.")

    @property
    def pruned_inputs(self) -> bool:
        """Whether the prior sees the inputs behind pruned blocks."""
        return self.prior_inputs == "pruned" or (self.prior_inputs == "auto" and self.prior == "sparsegpt")

    @property
    def needs_grams(self) -> bool:
        """Whether the prior needs Gram matrices, block by block."""
        return self.prior == "sparsegpt" or self.refine or (self.pruned_inputs and self.prior not in ("none", "magnitude"))

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        assert self.learning_rate is not None  # it was filled in when the settings were made
        return self.learning_rate

    @property
    def draws_without_replacement(self) -> bool:
        """Whether the masks are Plackett-Luce distributed."""
        return self.distribution == "plackett-luce" or (self.distribution == "auto" and self.estimator == "maskpro-paper")

    @property
    def prior_file(self) -> str | None:
        """The path behind `file:`."""
        return self.prior.removeprefix(FROM_FILE) if self.prior.startswith(FROM_FILE) else None

    @property
    def sequences(self) -> int:
        """Windows in a step."""
        return max(1, (self.batch_tokens or BATCH_TOKENS["cpu"]) // self.window)

    @property
    def minimised(self) -> str:
        """The objective, where it is "auto" the one that measured best."""
        if self.objective != "auto":
            return self.objective
        return "ce+kl" if self.estimator == "pathwise" and not self.prior_update else "ce"

    def on(self, device: str) -> LearnConfig:
        """The same settings with nothing left open: what suits the estimator, and a device ("cpu" or "cuda")."""
        tokens = self.batch_tokens or max(self.window, BATCH_TOKENS[device])
        return dataclasses.replace(self, batch_tokens=tokens, objective=self.minimised)

    def to_json(self) -> dict[str, Any]:
        """Every setting, with the pattern as text."""
        return {**dataclasses.asdict(self), "pattern": str(self.pattern)}

    def fingerprint(self) -> str:
        """Hash of all settings that change the result; the limits are left out, so that a run can be extended."""
        free = {"budget_s", "steps", "tokens", "checkpoint_every_s", "evaluations", "patience"}
        fixed = {k: v for k, v in self.to_json().items() if k not in free}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()

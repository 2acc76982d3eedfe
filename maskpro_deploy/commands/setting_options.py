"""Options that set a field of a run's settings; their choices, defaults and hints come from the settings and `learn.choices`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from maskpro_deploy.commands.options import ShareType
from maskpro_deploy.learn.choices import (
    BATCH_TOKENS,
    DISTRIBUTIONS,
    ESTIMATORS,
    METHODS,
    OBJECTIVES,
    PRIORS,
    TRANSFORMS,
    WEIGHTS,
    describe,
)
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.run_config import RunConfig

F = TypeVar("F", bound=Callable[..., Any])

_BATCH = " or ".join(f"{tokens} on a {kind}" for kind, tokens in zip(("CPU", "GPU"), BATCH_TOKENS.values(), strict=True))
_RATES = ", ".join(f"{choice.learning_rate:g} for {choice.name}" for choice in WEIGHTS if choice.learning_rate is not None)
_FIRST = ESTIMATORS[0].prior
_STARTS = ", ".join([_FIRST, *(f"{choice.prior} for {choice.name}" for choice in ESTIMATORS if choice.prior != _FIRST)])
_HELP = {
    "steps": "Optimiser steps instead of a time; 0 writes the prior itself.",
    "tokens": "Tokens to see instead of a time.",
    "prior": f"One-shot mask to start from: {describe(PRIORS)}; auto: the estimator's own ({_STARTS}).",
    "other_weights": "Take the masks of --prior file:PATH though they were made for other weights.",
    "prior_update": "Keep SparseGPT's weight update too: the weights saved are not the dense ones.",
    "prior_inputs": "Inputs a prior sees: of the dense or of the pruned model.",
    "refine": "Improve the prior by swaps that lower each layer's reconstruction error.",
    "transform": "Channels that change places before masks are made, so that they keep more and the dense model stays the same: "
    f"{describe(TRANSFORMS)}, several with commas, or none; auto: all that the model allows.",
    "objective": f"What to minimise: {describe(OBJECTIVES)}; auto: the estimator's own.",
    "calibration_tokens": "Tokens that the prior sees.",
    "heldout_tokens": "Tokens to measure on while learning.",
    "transposable": "Masks whose transpose holds N:M too: N in each row and column of each M x M block.",
    "include": "Prune only layers whose name matches.",
    "exclude": "Keep layers dense whose name matches.",
    "dense_share": "Share of the multiply-adds that stays dense, such as 10%: the layers that masks hurt most for it.",
    "dense_layers": "Layers that stay dense, by name; auto: chosen by --dense-share.",
    "window": "Tokens in a sequence.",
    "batch_tokens": f"Tokens in a step.  [default: {_BATCH}]",
    "estimator": f"How to compute the gradient of the logits: {describe(ESTIMATORS)}.",
    "reward": "With --estimator maskpro: what is rewarded, each layer's outputs or the loss.",
    "distribution": f"Distribution of the masks: {describe(DISTRIBUTIONS)}; auto: the estimator's own.",
    "samples": "Masks tried in a step of --reward loss.",
    "flip_rate": "Share of groups such a sample changes at first.",
    "parts": "Parts of the layers that such steps try in turn.",
    "renew_initial": "With --estimator maskpro-paper: a new initial mask whenever its loss was halved.",
    "prox_strength": "With --estimator proxsparse: weight of its regulariser.",
    "prox_anchor": "With --estimator proxsparse: weight of the pull back to the original weights.",
    "learning_rate": "Step of the logits.  [default: the estimator's own]",
    "weights": f"Whether the kept weights are trained together with the masks: {describe(WEIGHTS)}; auto: lora where it can.",
    "weight_rate": f"Step of what is trained of them.  [default: {_RATES}]",
    "weight_decay": "Share of itself by which a trained weight shrinks a step, relative to the rate.",
    "rank": "With --weights lora: rank of the deltas.",
    "alpha": "With --weights lora: deltas are scaled by alpha / rank.",
    "temperature": "Of the sampled masks at the start; 0: no sampling.",
    "evaluations": "Measurements on held-out text during learning.",
    "patience": "Stop after so many measurements without a better one.",
    "dtype": "Of the weights while learning.",
}
_RECOVER_HELP = {
    **_HELP,
    "steps": "Optimiser steps instead of a time; 0 trains nothing.",
    "evaluations": "Measurements on held-out text during the run.",
    "heldout_tokens": "Tokens to measure on during the run.",
    "dtype": "Of the weights during the run.",
    "method": f"What is trained, and by what: {describe(METHODS)}.",
    "train": "Kept weights, the norms' scales and biases, or both.",
    "learning_rate": "Step of what is trained.  [default: the method's own]",
    "objective": "What to minimise: cross-entropy, the divergence from the dense model, or the mean of both (auto).",
    "calibration_tokens": "Tokens that a reconstruction by blocks sees.",
    "other_weights": "Take a --teacher although the masks were made for other weights.",
    "refit": "With --method block: first least squares for every layer; for masks that were not learned.",
    "rank": "With --method lora: rank of the deltas.",
    "alpha": "With --method lora: deltas are scaled by alpha / rank.",
    "rslora": "With --method lora: scale deltas by alpha / sqrt(rank).",
    "target_modules": "With --method lora: layers that get a delta; all masked ones by default.",
    "adapter": "With --method lora: PEFT adapter to start from; its own rank, alpha and layers hold.",
}
_METAVARS = {"include": "REGEX", "exclude": "REGEX", "target_modules": "REGEX", "adapter": "FOLDER", "dense_layers": "auto|REGEX"}
_TYPES = {  # of those without a default; others are whole numbers
    **dict.fromkeys(("learning_rate", "weight_rate"), float),
    **dict.fromkeys(("include", "exclude", "target_modules", "adapter", "dense_layers"), str),
    "dense_share": ShareType(),
}


def setting_options(*names: str, of: type[RunConfig] = LearnConfig) -> Callable[[F], F]:
    """Options for some fields of the settings of a run, in this order."""

    def add(function: F) -> F:
        for name in reversed(names):
            function = _option(name, of)(function)
        return function

    return add


def _option(name: str, of: type[RunConfig]) -> Callable[[F], F]:
    flag, text = f"--{name.replace('_', '-')}", (_RECOVER_HELP if of is RecoverConfig else _HELP)[name]
    default = next(field.default for field in dataclasses.fields(of) if field.name == name)
    if default is False:
        return click.option(flag, is_flag=True, help=text)
    known = of.known_values().get(name)
    kind = click.Choice(known) if known else _TYPES.get(name, int) if default is None else type(default)
    shown = default is not None
    return click.option(flag, type=kind, default=default, show_default=shown, metavar=_METAVARS.get(name), help=text)

"""Options for the settings of a learning run: defaults come from `LearnConfig`, choices and their hints from `learn.choices`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click

from maskpro_deploy.commands.options import PATTERN
from maskpro_deploy.learn.choices import BATCH_TOKENS, DEVICES, DISTRIBUTIONS, ESTIMATORS, OBJECTIVES, PRIORS, describe
from maskpro_deploy.learn.config import LearnConfig, list_known_values

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(LearnConfig)}
_BATCH = " or ".join(f"{tokens} on a {kind}" for kind, tokens in zip(("CPU", "GPU"), BATCH_TOKENS.values(), strict=True))
_HELP = {
    "steps": "Optimiser steps instead of a time; 0 writes the prior itself.",
    "tokens": "Tokens to see instead of a time.",
    "prior": f"One-shot mask to start from: {describe(PRIORS)}.",
    "prior_update": "Keep SparseGPT's weight update too: the weights saved are not the dense ones.",
    "prior_inputs": "Inputs a prior sees: of the dense or of the pruned model.",
    "refine": "Improve the prior by swaps that lower each layer's reconstruction error.",
    "objective": f"What to minimise: {describe(OBJECTIVES)}; auto: the estimator's own.",
    "calibration_tokens": "Tokens that the prior sees.",
    "heldout_tokens": "Tokens to measure on while learning.",
    "include": "Prune only layers whose name matches.",
    "exclude": "Keep layers dense whose name matches.",
    "window": "Tokens in a sequence.",
    "batch_tokens": f"Tokens in a step.  [default: {_BATCH}]",
    "estimator": f"How to compute the gradient of the logits: {describe(ESTIMATORS)}.",
    "reward": "With --estimator maskpro: what is rewarded, each layer's outputs or the loss.",
    "distribution": f"Distribution of the masks: {describe(DISTRIBUTIONS)}; auto: the estimator's own.",
    "samples": "Masks tried in a step of --reward loss.",
    "flip_rate": "Share of groups such a sample changes at first.",
    "parts": "Parts of the layers that such steps try in turn.",
    "learning_rate": "Step of the logits.  [default: the estimator's own]",
    "temperature": "Of the sampled masks at the start; 0: no sampling.",
    "evaluations": "Measurements on held-out text during learning.",
    "patience": "Stop after so many measurements without a better one.",
    "dtype": "Of the weights while learning.",
}
_TYPES = {"learning_rate": float, "include": str, "exclude": str}  # of those without a default; others are whole numbers

model_option = click.option("--model", required=True, help="Checkpoint folder, .gguf file, Hub id, or `demo`.")
sparsity_option = click.option(
    "--sparsity", "pattern", type=PATTERN, default="2:4", show_default=True, help="N kept of every M weights."
)
device_option = click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True)


def setting_options(*names: str) -> Callable[[F], F]:
    """Options for some fields of `LearnConfig`, in this order."""

    def add(function: F) -> F:
        for name in reversed(names):
            function = _option(name)(function)
        return function

    return add


def _option(name: str) -> Callable[[F], F]:
    flag, default = f"--{name.replace('_', '-')}", _DEFAULTS[name]
    if default is False:
        return click.option(flag, is_flag=True, help=_HELP[name])
    known = list_known_values().get(name)
    kind = click.Choice(known) if known else _TYPES.get(name, int) if default is None else type(default)
    metavar = "REGEX" if name in ("include", "exclude") else None
    return click.option(flag, type=kind, default=default, show_default=default is not None, metavar=metavar, help=_HELP[name])

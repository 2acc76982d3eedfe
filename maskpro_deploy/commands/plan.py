"""`maskpro-deploy plan`: what learning is going to take."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from maskpro_deploy.commands.options import device_option, json_option, model_option, sparsity_option
from maskpro_deploy.commands.setting_options import setting_options
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.choices import METHODS, names_of
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.learn.run_config import RunConfig
from maskpro_deploy.pattern import LayerPatterns
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.output import emit, table

if TYPE_CHECKING:
    from maskpro_deploy.learn.planning.plan import Plan

_PARTS = {
    "program": "program (Python, torch)",
    "weights": "weights",
    "replaced": "weights that masked ones replace (pages of a file)",
    "teacher": "dense weights, kept apart",
    "state": "logits, optimiser, what is remembered",
    "copied": "a better state, next to the one it replaces",
    "activations": "activations, kept for the backward pass",
    "head": "output head, a block of tokens",
    "gradients": "gradients and masked weights, one layer at a time",
    "streams": "hidden states of the text, of both models",
    "prior": "prior (Gram matrices, calibration)",
    "kernels": "scratch memory of matrix products",
    "writing": "writing the result (after the last step)",
    "loading": "loading (weights and files, before the first step)",
}
_OF_MASKS = ("patterns", "include", "exclude", "dense_layers")  # what a sparse checkpoint says itself
_OF_BOTH = ("model", "device", "no_time", "as_json", "window", "batch_tokens", "calibration_tokens", "objective", "dtype")


@click.command()
@model_option
@sparsity_option
@click.option(
    "--recover", type=click.Choice(names_of(METHODS)),
    help="Plan `recover` by this method instead: on the masks of a sparse --model, or on those that a dense one would get.",
)  # fmt: skip
@setting_options("train", of=RecoverConfig)
@setting_options("window", "batch_tokens", "calibration_tokens", "prior", "prior_update", "refine", "objective")
@setting_options("estimator", "reward", "distribution", "samples", "weights", "rank", "transposable", "include", "exclude")
@setting_options("dense_share", "dense_layers")
@device_option
@setting_options("dtype")
@click.option("--no-time", is_flag=True, help="Predict memory alone: nothing is measured on this machine.")
@json_option
def command(
    model: str, patterns: LayerPatterns, recover: str | None, train: str, device: str, no_time: bool, as_json: bool,
    **settings: Any,
) -> None:  # fmt: skip
    r"""Predict the memory and time that learning needs, from the configuration and the files' headers.

    \b
    Example:
      maskpro-deploy plan --model demo --sparsity 2:4
      maskpro-deploy plan --model ./my-model --weights train --batch-tokens 8192 --device cuda
      maskpro-deploy plan --model ./my-sparse-model --recover full
    """
    require("learn", "planning")
    from maskpro_deploy.checkpoint import Checkpoint
    from maskpro_deploy.learn import LearnConfig
    from maskpro_deploy.learn.loading import learning_device, learning_dtype
    from maskpro_deploy.learn.planning.plan import plan
    from maskpro_deploy.models import resolve

    checkpoint = Checkpoint.open(resolve(model))
    _check_belongs(click.get_current_context(), recovers=recover is not None, has_masks=checkpoint.masks is not None)
    place = learning_device(device)
    config = LearnConfig(pattern=patterns.main, layer_patterns=patterns.rules, **settings).on(place)
    after = None
    if recover is not None:
        shared = {f.name: settings[f.name] for f in fields(RecoverConfig) if f.name in settings}
        after = RecoverConfig(method=recover, train=train, **shared).on(place)
    dtype = learning_dtype(config, place)
    prediction = plan(checkpoint, config, place, dtype, recover=after, timed=not no_time)
    facts = {"model": model, "sparsity": prediction.pattern, "device": place, "dtype": str(dtype).removeprefix("torch.")}
    emit(as_json, {**facts, "recover": recover, **prediction.to_json()}, _text(prediction, after or config, facts))


def _check_belongs(context: click.Context, *, recovers: bool, has_masks: bool) -> None:
    """Refuse options that were given and that the run which is planned does not have (ConfigError)."""
    for parameter in context.command.params:
        name, flag = str(parameter.name), parameter.opts[0]
        if context.get_parameter_source(name) is ParameterSource.DEFAULT or name in (*_OF_BOTH, "recover"):
            continue
        if name == "train" and not recovers:
            raise ConfigError(f"{flag} belongs to --recover.\nUse --weights train to plan a run of learn that trains weights.")
        if name in _OF_MASKS and recovers and has_masks:
            raise ConfigError(f"{flag} is what the masks of the checkpoint say already: with --recover they stay.\nOmit it.")
        if name != "train" and name not in _OF_MASKS and recovers:
            raise ConfigError(f"{flag} says how masks are learned; with --recover they stay.\nOmit one of the two.")


def _text(prediction: Plan, config: RunConfig, facts: dict[str, str]) -> str:
    from maskpro_deploy.learn.planning.plan import ERROR

    figures = prediction.to_json()
    rows = [(_PARTS[name], _size(value)) for name, value in figures["memory"].items()]
    ours, theirs = prediction.state_bytes_per_weight, prediction.maskllm_bytes_per_weight
    tokens = config.sequences * config.window
    weights = f"{prediction.prunable:,} of {prediction.parameters:,} weights under {prediction.pattern} masks"
    lines = [
        f"{facts['model']}: {prediction.layers} layers, {weights}",
        f"{facts['device']}, {facts['dtype']}, {tokens:,} tokens a step",
        "",
        table(rows, ("memory for", "bytes")),
        "",
        f"peak: {_size(prediction.memory.peak)}, within {100 * ERROR:.0f} % (loading, the steps and writing take turns)",
        f"state beyond the weights: {ours:.2f} bytes a weight under a mask, {_size(prediction.memory.state)}",
    ]
    if prediction.left_dense:
        names = ", ".join(prediction.left_dense)
        lines.append(f"left dense by {next(iter(prediction.left_dense.values()))}: {names}")
    if prediction.dense_share is not None:
        share = f"{100 * prediction.dense_share:.4g} % of the multiply-adds"
        lines.append(f"left dense: {share}, in layers that the run chooses by measuring each; they are counted as masked here")
    if prediction.transforms:
        lines.append(f"channels that change places first: {', '.join(prediction.transforms)}")
    if theirs is not None:
        lines.append(
            f"as in MaskLLM: {theirs:.0f} bytes a weight, {_size(figures['maskllm_state_bytes'])} ({theirs / ours:.1f} x)"
        )
    if prediction.step_s is not None:
        lines += [
            f"time: at least {prediction.step_s:.2f} s a step, at most {tokens / prediction.step_s:,.0f} tokens/s",
            f"  measured here: {prediction.products_s:.2f} s of matrix products, {prediction.masks_s:.2f} s of work on masks and "
            f"weights; attention and norms come on top",
        ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

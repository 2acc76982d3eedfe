"""`maskpro-deploy plan`: what learning is going to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands.options import device_option, json_option, model_option, sparsity_option
from maskpro_deploy.commands.setting_options import setting_options
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.output import emit, table

if TYPE_CHECKING:
    from maskpro_deploy.learn import LearnConfig
    from maskpro_deploy.learn.plan import Plan

_PARTS = {
    "program": "program (Python, torch)",
    "weights": "weights",
    "state": "logits, optimiser, masks",
    "activations": "activations, kept for the backward pass",
    "head": "output head, a block of tokens",
    "gradients": "gradients and masked weights, one layer at a time",
    "prior": "prior (Gram matrices, calibration)",
    "kernels": "scratch memory of matrix products",
    "loading": "loading (weights and files, before learning)",
}


@click.command()
@model_option
@sparsity_option
@setting_options("window", "batch_tokens", "calibration_tokens", "prior", "refine", "objective")
@setting_options("estimator", "reward", "distribution", "samples", "include", "exclude")
@device_option
@setting_options("dtype")
@click.option("--no-time", is_flag=True, help="Predict memory alone: nothing is measured on this machine.")
@json_option
def command(model: str, device: str, no_time: bool, as_json: bool, **settings: Any) -> None:
    r"""Predict the memory and time that learning needs, from the configuration and the files' headers.

    \b
    Example:
      maskpro-deploy plan --model demo --sparsity 2:4
      maskpro-deploy plan --model ./my-model --batch-tokens 8192 --device cuda
    """
    require("learn", "planning")
    from maskpro_deploy.checkpoint import Checkpoint
    from maskpro_deploy.learn import LearnConfig
    from maskpro_deploy.learn.loading import learning_device, learning_dtype
    from maskpro_deploy.learn.plan import plan
    from maskpro_deploy.models import resolve

    place = learning_device(device)
    config = LearnConfig(**settings).on(place)
    dtype = learning_dtype(config, place)
    prediction = plan(Checkpoint.open(resolve(model)), config, place, dtype, timed=not no_time)
    facts = {"model": model, "sparsity": str(config.pattern), "device": place, "dtype": str(dtype).removeprefix("torch.")}
    emit(as_json, {**facts, **prediction.to_json()}, _text(prediction, config, facts))


def _text(prediction: Plan, config: LearnConfig, facts: dict[str, str]) -> str:
    from maskpro_deploy.learn.plan import ERROR

    figures = prediction.to_json()
    rows = [(_PARTS[name], _size(value)) for name, value in figures["memory"].items()]
    ours, theirs = prediction.state_bytes_per_weight, prediction.maskllm_bytes_per_weight
    tokens = config.sequences * config.window
    weights = f"{prediction.prunable:,} of {prediction.parameters:,} weights get {config.pattern}"
    lines = [
        f"{facts['model']}: {prediction.layers} layers, {weights}",
        f"{facts['device']}, {facts['dtype']}, {tokens:,} tokens a step",
        "",
        table(rows, ("memory for", "bytes")),
        "",
        f"peak: {_size(prediction.memory.peak)}, within {100 * ERROR:.0f} % (loading and learning take turns)",
        f"state beyond the weights: {ours:.2f} bytes a weight, {_size(prediction.memory.state)}",
        f"as in MaskLLM: {theirs:.0f} bytes a weight, {_size(figures['maskllm_state_bytes'])} ({theirs / ours:.1f} x)",
    ]
    if prediction.step_s is not None:
        lines += [
            f"time: at least {prediction.step_s:.2f} s a step, at most {tokens / prediction.step_s:,.0f} tokens/s",
            f"  measured here: {prediction.products_s:.2f} s of matrix products, {prediction.masks_s:.2f} s of mask work; "
            f"attention and norms come on top",
        ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

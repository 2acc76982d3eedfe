"""`maskpro-deploy plan`: what learning is going to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from maskpro_deploy.commands.options import PATTERN, json_option
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
@click.option("--model", required=True, help="Checkpoint folder, .gguf file, Hub id, or `demo`.")
@click.option("--sparsity", "pattern", type=PATTERN, default="2:4", show_default=True, help="N kept of every M weights.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens in a sequence.")
@click.option("--batch-tokens", type=int, help="Tokens in a step.  [default: 512 on a CPU, 2048 on a GPU]")
@click.option("--calibration-tokens", type=int, default=8192, show_default=True, help="Tokens that the prior sees.")
@click.option("--prior", default="wanda", show_default=True, help="As in learn.")
@click.option("--refine", is_flag=True, help="As in learn.")
@click.option("--objective", default="auto", show_default=True, help="As in learn.")
@click.option("--include", metavar="REGEX", help="Prune only layers whose name matches.")
@click.option("--exclude", metavar="REGEX", help="Leave layers dense whose name matches.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="Of the weights while learning: float32, bfloat16, auto.")
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
    from maskpro_deploy.learn.api import learning_device, learning_dtype
    from maskpro_deploy.learn.plan import plan
    from maskpro_deploy.models import resolve

    place = learning_device(device)
    config = LearnConfig(**settings).on(place)
    dtype = learning_dtype(config, place)
    found = plan(Checkpoint.open(resolve(model)), config, place, dtype, timed=not no_time)
    facts = {"model": model, "sparsity": str(config.pattern), "device": place, "dtype": str(dtype).removeprefix("torch.")}
    emit(as_json, {**facts, **found.to_json()}, _text(found, config, facts))


def _text(found: Plan, config: LearnConfig, facts: dict[str, str]) -> str:
    from maskpro_deploy.learn.plan import ERROR

    figures = found.to_json()
    rows = [(_PARTS[name], _size(value)) for name, value in figures["memory"].items()]
    ours, theirs = found.state_bytes_per_weight, found.maskllm_bytes_per_weight
    tokens = config.sequences * config.window
    lines = [
        f"{facts['model']}: {found.layers} layers, {found.prunable:,} of {found.parameters:,} weights get {config.pattern}",
        f"{facts['device']}, {facts['dtype']}, {tokens:,} tokens a step",
        "",
        table(rows, ("memory for", "bytes")),
        "",
        f"peak: {_size(found.memory.peak)}, within {100 * ERROR:.0f} % (loading and learning take turns)",
        f"state beyond the weights: {ours:.2f} bytes a weight, {_size(found.memory.state)}",
        f"as in MaskLLM: {theirs:.0f} bytes a weight, {_size(figures['maskllm_state_bytes'])} ({theirs / ours:.1f} x)",
    ]
    if found.step_s is not None and found.products_s is not None and found.masks_s is not None:
        lines += [
            f"time: at least {found.step_s:.2f} s a step, at most {tokens / found.step_s:,.0f} tokens/s",
            f"  measured here: {found.products_s:.2f} s of matrix products, {found.masks_s:.2f} s of mask work; "
            f"attention and norms come on top",
        ]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

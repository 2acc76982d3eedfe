"""`maskpro-deploy learn`: a strict N:M mask for a language model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import PATH, PATTERN, DurationType, force_option, json_option, seed_option
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.output import emit, table


@click.command()
@click.option("--model", required=True, help="Checkpoint folder, .gguf file, Hub id, or `demo`.")
@click.option("--sparsity", "pattern", type=PATTERN, default="2:4", show_default=True, help="N kept of every M weights.")
@click.option("--out", type=PATH, required=True, help="Folder to write the sparse checkpoint to.")
@click.option("--budget", "budget_s", type=DurationType(zero=True), help="Time to learn: 90s, 5m, 2h.  [default: 5m]")
@click.option("--steps", type=int, help="Optimiser steps instead of a time; 0 writes the prior itself.")
@click.option("--tokens", type=int, help="Tokens to see instead of a time.")
@click.option("--data", default="builtin", show_default=True, help="Text: builtin, a .txt, .jsonl or .parquet file, hub:NAME.")
@click.option(
    "--heldout",
    default="builtin:heldout",
    show_default=True,
    help="Text to measure on while learning; split:0.1 holds out a part of --data.",
)
@click.option(
    "--prior",
    default="wanda",
    show_default=True,
    help="One-shot mask to start from: wanda, magnitude, sparsegpt, ria, file:PATH (masks or a sparse folder), none (random).",
)
@click.option(
    "--prior-update", is_flag=True, help="Keep SparseGPT's weight update too: the weights saved are not the dense ones."
)
@click.option(
    "--prior-inputs", default="auto", show_default=True, help="Inputs a prior sees: of the dense or of the pruned model."
)
@click.option("--refine", is_flag=True, help="Improve the prior by swaps that lower each layer's reconstruction error.")
@click.option(
    "--objective",
    default="auto",
    show_default=True,
    help="What to minimise: ce, kl (to the dense model), ce+kl, block (by blocks), auto (kl for pathwise, else ce).",
)
@click.option("--calibration-tokens", type=int, default=8192, show_default=True, help="Tokens that the prior sees.")
@click.option("--heldout-tokens", type=int, default=4096, show_default=True, help="Tokens to measure on while learning.")
@click.option("--include", metavar="REGEX", help="Prune only layers whose name matches.")
@click.option("--exclude", metavar="REGEX", help="Leave layers dense whose name matches.")
@click.option("--window", type=int, default=256, show_default=True, help="Tokens in a sequence.")
@click.option("--batch-tokens", type=int, help="Tokens in a step.  [default: 512 on a CPU, 2048 on a GPU]")
@click.option(
    "--estimator",
    default="pathwise",
    show_default=True,
    help="How to learn: pathwise, maskpro (forward passes only), maskpro-paper (as published), maskllm (a baseline).",
)
@click.option("--reward", default="layer", show_default=True, help="Of maskpro: each layer's outputs (layer), or the loss.")
@click.option(
    "--distribution", default="auto", show_default=True, help="Of the masks: conditional-bernoulli, plackett-luce, auto."
)
@click.option("--samples", type=int, default=4, show_default=True, help="Masks tried in a step of --reward loss.")
@click.option("--flip-rate", type=float, default=0.02, show_default=True, help="Share of groups such a sample changes at first.")
@click.option("--parts", type=int, default=1, show_default=True, help="Parts of the layers that such steps try in turn.")
@click.option("--learning-rate", type=float, help="Step of the logits.  [default: the estimator's own]")
@click.option(
    "--temperature", type=float, default=0.0, show_default=True, help="Of the sampled masks at the start; 0: no sampling."
)
@click.option("--evaluations", type=int, default=5, show_default=True, help="Measurements on held-out text on the way.")
@click.option("--patience", type=int, help="Stop after so many measurements without a better one.")
@click.option("--log", "log_file", type=PATH, help="Write a log of JSON lines: every step, every measurement.")
@click.option("--tensorboard", "tensorboard", type=PATH, help="Write TensorBoard events into a folder.")
@click.option("--report", "report_file", type=PATH, help="Write a page with curves: FILE.html.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--dtype", default="auto", show_default=True, help="Of the weights while learning: float32, bfloat16, auto.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run (repeat its options).")
@seed_option
@force_option
@json_option
def command(
    model: str,
    out: Path,
    data: str,
    heldout: str,
    device: str,
    resume: bool,
    force: bool,
    as_json: bool,
    log_file: Path | None,
    tensorboard: Path | None,
    report_file: Path | None,
    **settings: Any,
) -> None:
    r"""Learn a strict N:M mask and write a sparse checkpoint.

    \b
    Example:
      maskpro-deploy learn --model demo --sparsity 2:4 --out sparse --budget 5m
    Real work wants text like your own:
      maskpro-deploy learn --model ./my-model --data my-texts.jsonl --out sparse --budget 2h
    """
    require("learn", "learning a mask")
    from maskpro_deploy.data import load_texts
    from maskpro_deploy.learn import LearnConfig, learn_checkpoint
    from maskpro_deploy.learn.monitor import JsonLog, Observer, TensorBoardLog
    from maskpro_deploy.models import resolve
    from maskpro_deploy.system.files import check_free
    from maskpro_deploy.system.progress import Meter

    config = LearnConfig(**settings)
    check_free(out, force=force)
    if report_file is not None:
        require("report", "a learning report")
    observers: list[Observer] = [
        *([JsonLog(log_file)] if log_file else []),
        *([TensorBoardLog(tensorboard)] if tensorboard else []),
    ]
    text, held = load_texts(data, heldout)
    unit = "s" if config.budget_s is not None else "tokens"
    result = learn_checkpoint(
        resolve(model), out, text, held, config,
        device=device, resume=resume, force=force, progress=Meter("learning", unit), observers=observers,
        prior_progress=Meter(f"prior {config.prior.split(':')[0]}", "blocks"),
    )  # fmt: skip
    figures = result.summary()
    rows = _rows(config.pattern, figures)
    if report_file is not None:
        from maskpro_deploy.bench.environment import command_line
        from maskpro_deploy.reports import learning as _learn_page
        from maskpro_deploy.reports.blocks import write

        write(_learn_page.build_page(result, config, rows, command_line(sys.argv)), report_file)
    emit(as_json, {"out": str(out), "sparsity": str(config.pattern), **figures}, f"{table(rows)}\nwritten to {out}")


def _rows(pattern: NMPattern, figures: dict[str, Any]) -> list[tuple[str, str]]:
    perplexity = figures["heldout_perplexity"]
    return [
        ("layers with a strict " + str(pattern) + " mask", figures["layers"]),
        ("weights covered", f"{figures['weights']:,}"),
        ("tokens seen", f"{figures['tokens']:,}"),
        ("time", f"{figures['seconds']:.0f} s"),
        ("groups changed against the prior", f"{100 * figures['groups_changed']:.1f} %"),
        ("held-out perplexity, dense", f"{perplexity['dense']:.2f}"),
        ("held-out perplexity, one-shot prior", f"{perplexity['prior']:.2f}"),
        ("held-out perplexity, learned", f"{perplexity['learned']:.2f}"),
    ]

"""`maskpro-deploy learn`: a strict N:M mask for a language model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import (
    PATH,
    DurationType,
    device_option,
    force_option,
    json_option,
    model_option,
    seed_option,
    sparsity_option,
)
from maskpro_deploy.commands.run_options import (
    Watching,
    join_ranks,
    meters_of,
    nproc_option,
    read_texts,
    text_options,
    watch_options,
)
from maskpro_deploy.commands.setting_options import setting_options
from maskpro_deploy.pattern import LayerPatterns
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.output import emit, table


@click.command()
@model_option
@sparsity_option
@click.option("--out", type=PATH, required=True, help="Folder to write the sparse checkpoint to.")
@click.option("--budget", "budget_s", type=DurationType(zero=True), help="Time to learn: 90s, 5m, 2h.  [default: 5m]")
@setting_options("steps", "tokens", "transposable")
@text_options
@setting_options("prior", "other_weights", "prior_update", "prior_inputs", "refine", "transform")
@setting_options("objective", "calibration_tokens")
@setting_options("heldout_tokens", "include", "exclude", "dense_share", "dense_layers", "window", "batch_tokens")
@setting_options("estimator", "reward", "distribution")
@setting_options("samples", "flip_rate", "parts", "renew_initial", "prox_strength", "prox_anchor", "learning_rate")
@setting_options("temperature", "weights", "weight_rate", "weight_decay", "rank", "alpha", "evaluations", "patience")
@watch_options
@device_option
@nproc_option
@setting_options("dtype")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run (repeat its options).")
@seed_option
@force_option
@json_option
def command(
    model: str, out: Path, data: tuple[str, ...], heldout: str, device: str, nproc: int, resume: bool, force: bool, as_json: bool,
    log_file: Path | None, tensorboard: Path | None, report_file: Path | None, patterns: LayerPatterns, **settings: Any,
) -> None:  # fmt: skip
    r"""Learn a strict N:M mask and write a sparse checkpoint.

    \b
    Example:
      maskpro-deploy learn --model demo --sparsity 2:4 --out sparse --budget 5m
    Real work wants text like your own:
      maskpro-deploy learn --model ./my-model --data my-texts.jsonl --data self --out sparse --budget 2h
    """
    require("learn", "learning a mask")
    from maskpro_deploy.learn import LearnConfig, learn_checkpoint
    from maskpro_deploy.learn.ranks.launch import goes_on, leads
    from maskpro_deploy.learn.ranks.sharing import in_turn
    from maskpro_deploy.models import resolve
    from maskpro_deploy.reports.learning import build_page
    from maskpro_deploy.system.files import check_free

    config = LearnConfig(pattern=patterns.main, layer_patterns=patterns.rules, **settings)
    check_free(out, force=force or not leads())
    with join_ranks(nproc, device, out) as ranks:
        resume = bool(ranks.tell(resume or goes_on(out)))
        dense = in_turn(ranks, lambda: resolve(model))
        watching = Watching(log_file, tensorboard, report_file)
        observers = watching.open() if ranks.leads else ()
        show = meters_of(ranks)
        text, held = in_turn(ranks, lambda: read_texts(data, heldout, lambda: dense, seed=config.seed, device=device))
        unit = "s" if config.budget_s is not None else "tokens"
        result = learn_checkpoint(
            dense, out, text, held, config,
            device=device, resume=resume, force=force, progress=show("learning", unit), observers=observers,
            prior_progress=show(f"prior {config.prior_choice.name}", "blocks"), choice_progress=show("sensitivity", "layers"),
            transform_progress=show("reordering", "axes"), ranks=ranks,
        )  # fmt: skip
        if not ranks.leads:
            return
    rows = result.rows()
    watching.write_report(partial(build_page, result, config, rows))
    emit(as_json, {"out": str(out), "sparsity": str(config.patterns), **result.summary()}, f"{table(rows)}\nwritten to {out}")

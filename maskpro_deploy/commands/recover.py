"""`maskpro-deploy recover`: train the weights that a mask keeps."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from maskpro_deploy.commands.options import PATH, DurationType, device_option, force_option, json_option, seed_option
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
from maskpro_deploy.learn.recovery.config import RecoverConfig
from maskpro_deploy.system.extras import require
from maskpro_deploy.system.output import emit, table


@click.command()
@click.argument("sparse")
@click.option("--out", type=PATH, required=True, help="Folder to write the recovered checkpoint to.")
@click.option("--teacher", metavar="MODEL", help="The dense model.  [default: found by the hash in the mask file]")
@setting_options("method", of=RecoverConfig)
@click.option("--budget", "budget_s", type=DurationType(zero=True), help="Time to train: 90s, 5m, 2h.  [default: 5m]")
@setting_options("steps", "tokens", of=RecoverConfig)
@text_options
@setting_options("objective", "train", "learning_rate", "weight_decay", "refit", "other_weights", of=RecoverConfig)
@setting_options("rank", "alpha", "rslora", "target_modules", "adapter", of=RecoverConfig)
@setting_options("window", "batch_tokens", "calibration_tokens", "heldout_tokens", "evaluations", "patience", of=RecoverConfig)
@watch_options
@device_option
@nproc_option
@setting_options("dtype", of=RecoverConfig)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run (repeat its options).")
@seed_option
@force_option
@json_option
def command(
    sparse: str, out: Path, teacher: str | None, data: tuple[str, ...], heldout: str, device: str, nproc: int, resume: bool,
    force: bool, as_json: bool, log_file: Path | None, tensorboard: Path | None, report_file: Path | None, **settings: Any,
) -> None:  # fmt: skip
    r"""Train the weights that the masks of SPARSE keep, against the dense model; the masks stay.

    SPARSE is a sparse checkpoint: one that `learn` wrote, or a folder whose weights hold an N:M pattern.

    \b
    Example:
      maskpro-deploy recover sparse --out recovered --budget 5m
    Real work wants text like your own:
      maskpro-deploy recover sparse --teacher ./my-model --data my-texts.jsonl --out recovered --budget 2h
    """
    require("learn", "training weights")
    from maskpro_deploy.learn.ranks.launch import goes_on, leads
    from maskpro_deploy.learn.ranks.sharing import in_turn
    from maskpro_deploy.learn.recovery.api import recover_checkpoint
    from maskpro_deploy.learn.recovery.dense_model import find_dense_folder
    from maskpro_deploy.models import resolve
    from maskpro_deploy.reports.recovery import build_page
    from maskpro_deploy.system.files import check_free

    config = RecoverConfig(**settings)
    check_free(out, force=force or not leads())
    with join_ranks(nproc, device, out) as ranks:
        resume = bool(ranks.tell(resume or goes_on(out)))
        folder = in_turn(ranks, lambda: resolve(sparse))
        watching = Watching(log_file, tensorboard, report_file)
        observers = watching.open() if ranks.leads else ()
        find = partial(find_dense_folder, folder, teacher, other_weights=config.other_weights)
        text, held = in_turn(ranks, lambda: read_texts(data, heldout, find, seed=config.seed, device=device))
        unit = "s" if config.budget_s is not None else "tokens"
        result = recover_checkpoint(
            folder, out, text, held, config, teacher=teacher, device=device, resume=resume, force=force,
            progress=meters_of(ranks)("recovering", unit), observers=observers, ranks=ranks,
        )  # fmt: skip
        if not ranks.leads:
            return
    rows = result.rows()
    watching.write_report(partial(build_page, result, config, rows))
    figures = {"out": str(out), "sparsity": str(result.masks.pattern), **result.summary()}
    emit(as_json, figures, f"{table(rows)}\nwritten to {out}")

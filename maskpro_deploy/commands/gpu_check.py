"""The GPU check: run what a machine with an NVIDIA GPU can run, and report what it lacks. `scripts/gpu_check` starts it.

It needs no network: models are made in code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from maskpro_deploy.commands.options import DURATION, PATH, json_option
from maskpro_deploy.errors import CheckFailed, MachineError
from maskpro_deploy.gpu_check.items import FAILED, NOT_RUN, Outcome
from maskpro_deploy.gpu_check.processes import check_json, check_out, choose_items, gpu_is_here, run_check
from maskpro_deploy.gpu_check.registry import ITEMS
from maskpro_deploy.system.files import write_json
from maskpro_deploy.system.output import emit, table


@click.command("gpu_check")
@click.option("--out", type=PATH, default="gpu-check.json", show_default=True, help="File for all figures.")
@click.option("--budget", type=DURATION, default="40s", show_default=True, help="Time for the measurements of one item.")
@click.option("--only", metavar="ITEM,...", default="", help=f"Run these items only: {', '.join(ITEMS)}.")
@click.option("--scratch", type=PATH, help="Folder for temporary models (10 GB); the system's by default.")
@click.option("--rehearse", is_flag=True, help="Try the check itself: tiny shapes, on the CPU.")
@json_option
def command(out: Path, budget: float, only: str, scratch: Path | None, rehearse: bool, as_json: bool) -> None:
    r"""Measure what this machine's NVIDIA GPU does for sparse models, and report what cannot be measured and why.

    An item is ended after three times its budget, or the minutes that loading and building need; what it measured until then
    is kept. Exit code: 0, 1 if an item failed, 3 without a GPU.

    \b
    Example:
      scripts/gpu_check
      scripts/gpu_check --budget 2m --only environment,products --out h100.json
    """
    names = choose_items(only)
    check_out(out)
    if not rehearse and not gpu_is_here():
        click.echo(_show([Outcome(name=n, status=NOT_RUN, detail="no NVIDIA GPU") for n in names]), err=True)
        raise MachineError(
            "there is no NVIDIA GPU here, or no driver for it (nvidia-smi and libcuda find none); nothing was written.\n"
            "Try the check itself on the CPU with --rehearse; `maskpro-deploy doctor` says what else is missing."
        )
    outcomes = run_check(names, budget_s=budget, scratch=scratch, rehearse=rehearse, announce=partial(click.echo, err=True))
    value = check_json(outcomes, budget_s=budget, rehearse=rehearse)
    write_json(out, value)
    emit(as_json, value, f"{_show(outcomes)}\nwritten to {out}")
    if failed := [o.name for o in outcomes if o.status == FAILED]:
        raise CheckFailed(f"failed: {', '.join(failed)}. Messages and tracebacks are in {out}.")


def _show(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table."""
    return table([(o.name, o.status, o.detail) for o in outcomes], ("item", "status", "result or reason"))

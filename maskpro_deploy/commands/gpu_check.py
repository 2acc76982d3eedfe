"""The GPU check: run what a machine with an NVIDIA GPU can run, and tell what it lacks. `scripts/gpu_check` starts it.

It needs no network: models are made in code. Each item runs in a process of its own (`gpu_check.worker`), with a limit of time.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from maskpro_deploy.commands.options import DURATION, PATH, json_option
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, MachineError
from maskpro_deploy.gpu_check.items import END_FACTOR, FAILED, NOT_RUN, Outcome, Settings
from maskpro_deploy.gpu_check.worker import FIGURES, ITEMS, LEAST_S, OUTCOME, SETTINGS
from maskpro_deploy.system.files import disk_errors, read_json, write_json
from maskpro_deploy.system.output import emit, table

FORMAT, VERSION = "maskpro-deploy/gpu-check", 1
_GRACE_S = 10.0
_LAST_WORDS = 300


@click.command("gpu_check")
@click.option("--out", type=PATH, default="gpu-check.json", show_default=True, help="File for all figures.")
@click.option("--budget", type=DURATION, default="40s", show_default=True, help="Time for the measurements of one item.")
@click.option("--only", metavar="ITEM,...", default="", help=f"Run these items only: {', '.join(ITEMS)}.")
@click.option("--scratch", type=PATH, help="Folder for temporary models (10 GB); the system's by default.")
@click.option("--rehearse", is_flag=True, help="Try the check itself: tiny shapes, on the CPU.")
@json_option
def command(out: Path, budget: float, only: str, scratch: Path | None, rehearse: bool, as_json: bool) -> None:
    r"""Measure what this machine's NVIDIA GPU does for sparse models, and tell what cannot be measured and why.

    An item is ended after three times its budget, or the minutes that loading and building need; what it measured until then
    is kept. Exit code: 0, 1 if an item failed, 3 without a GPU.

    \b
    Example:
      scripts/gpu_check
      scripts/gpu_check --budget 2m --only environment,products --out h100.json
    """
    names = _chosen(only)
    _check_out(out)
    if not rehearse and not gpu_is_here():
        click.echo(render([Outcome(name=n, status=NOT_RUN, detail="no NVIDIA GPU") for n in names]), err=True)
        raise MachineError(
            "there is no NVIDIA GPU here, or no driver for it (nvidia-smi and libcuda find none); nothing was written.\n"
            "Try the check itself on the CPU with --rehearse; `maskpro-deploy doctor` tells what else is missing."
        )
    if scratch is not None and not scratch.is_dir():
        raise InputError(f"--scratch {scratch} is no folder.\nGive one that exists.")
    with (
        disk_errors(scratch or Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="gpu-check-", dir=scratch) as own,
    ):
        settings = Settings(budget_s=budget, scratch=Path(own), rehearse=rehearse)
        outcomes = run_all(names, settings)
    value = {
        "format": FORMAT,
        "version": VERSION,
        "rehearsal": rehearse,
        "budget_s": budget,
        "items": [dataclasses.asdict(o) for o in outcomes],
    }
    write_json(out, value)
    emit(as_json, value, f"{render(outcomes)}\nwritten to {out}")
    if failed := [o.name for o in outcomes if o.status == FAILED]:
        raise CheckFailed(f"failed: {', '.join(failed)}. Messages and tracebacks are in {out}.")


def _chosen(only: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()] or list(ITEMS)
    for name in names:
        if name not in ITEMS:
            raise ConfigError(f"--only {name}: there is no such item. There are: {', '.join(ITEMS)}.")
    return list(dict.fromkeys(names))


def _check_out(out: Path) -> None:
    """Refuse early what would fail after minutes.

    Raises:
        InputError: no file can be written there.
    """
    if out.is_dir():
        raise InputError(f"--out {out} is a folder.\nGive the name of a file.")
    try:
        tempfile.TemporaryFile(dir=out.resolve().parent).close()
    except OSError as e:
        raise InputError(f"--out {out} cannot be written: {e.strerror}.\nChoose another place.") from e


def gpu_is_here() -> bool:
    """Whether the driver knows an NVIDIA GPU."""
    from maskpro_deploy.backends.cuda.driver import compute_capability
    from maskpro_deploy.doctor.hardware import find_gpus

    return bool(find_gpus()) or compute_capability() is not None


def run_all(names: Sequence[str], settings: Settings) -> list[Outcome]:
    """Run the items one after another, each announced on stderr."""
    outcomes = []
    for number, name in enumerate(names, start=1):
        limit = max(LEAST_S[name], END_FACTOR * settings.budget_s)
        click.echo(f"[{number}/{len(names)}] {name} (at most {limit:.0f} s)", err=True)
        outcomes.append(run_item(name, settings, limit))
    return outcomes


def run_item(name: str, settings: Settings, limit: float) -> Outcome:
    """Run one item in a process of its own, and end it after `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="item-", dir=settings.scratch) as own:
        folder = Path(own)
        write_json(folder / SETTINGS, settings.to_json())
        command_line = [sys.executable, "-m", "maskpro_deploy.gpu_check.worker", name, str(folder)]
        with (folder / "output").open("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(command_line, stdout=output, stderr=output, start_new_session=True)
            try:
                code: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
            output.seek(0)
            said = output.read().strip().splitlines()
        if (folder / OUTCOME).is_file():
            return Outcome(**read_json(folder / OUTCOME))
        figures = read_json(folder / FIGURES) if (folder / FIGURES).is_file() else {}
    if code is None:
        return Outcome(name=name, status=FAILED, detail=f"ended after {limit:.0f} s", seconds=limit, figures=figures)
    how = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
    last = said[-1][-_LAST_WORDS:] if said else "it left no message"
    return Outcome(name=name, status=FAILED, detail=f"its process {how}: {last}", figures=figures, trace="\n".join(said))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End an item and what it started: asked first, so that it can end its own processes."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def render(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as a table."""
    return table([(o.name, o.status, o.detail) for o in outcomes], ("item", "status", "result or reason"))

"""The items one after another, each in a process of its own, so that a crash, a hang or lost memory ends that item and no other.

    python -m maskpro_deploy.gpu_check.processes ITEM FOLDER

is such a process. FOLDER holds `settings.json`; `figures.json` grows there while the item works, `outcome.json` comes last.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import InputError, MachineError, MaskProError, check_known, first_line
from maskpro_deploy.gpu_check.items import END_FACTOR, FAILED, MEASURED, NOT_RUN, Outcome, Record, Settings
from maskpro_deploy.gpu_check.registry import ITEMS
from maskpro_deploy.system.files import disk_errors, read_json, write_json

SETTINGS, FIGURES, OUTCOME = "settings.json", "figures.json", "outcome.json"
FORMAT, VERSION = "maskpro-deploy/gpu-check", 1
_GRACE_S = 10.0
_LAST_WORDS = 300


def choose_items(only: str) -> list[str]:
    """The items named in a list with commas, or all; a `ConfigError` where one is not known."""
    names = [name.strip() for name in only.split(",") if name.strip()] or list(ITEMS)
    for name in names:
        check_known("--only", name, ITEMS)
    return list(dict.fromkeys(names))


def check_out(out: Path) -> None:
    """Refuse early, with an `InputError`, a place where no file can be written."""
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


def run_check(
    names: Sequence[str], *, budget_s: float, scratch: Path | None, rehearse: bool, announce: Callable[[str], None]
) -> list[Outcome]:
    """Run the items one after another; `announce` is called before each. `scratch` is the system's folder by default."""
    if scratch is not None and not scratch.is_dir():
        raise InputError(f"--scratch {scratch} is not a folder.\nGive one that exists.")
    with (
        disk_errors(scratch or Path(tempfile.gettempdir())),
        tempfile.TemporaryDirectory(prefix="gpu-check-", dir=scratch) as own,
    ):
        settings = Settings(budget_s=budget_s, scratch=Path(own), rehearse=rehearse)
        outcomes = []
        for number, name in enumerate(names, start=1):
            limit = max(ITEMS[name].least_s, END_FACTOR * budget_s)
            announce(f"[{number}/{len(names)}] {name} (at most {limit:.0f} s)")
            outcomes.append(run_item(name, settings, limit))
    return outcomes


def run_item(name: str, settings: Settings, limit: float) -> Outcome:
    """Run one item in a process of its own, and end it after `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="item-", dir=settings.scratch) as own:
        folder = Path(own)
        write_json(folder / SETTINGS, settings.to_json())
        command_line = [sys.executable, "-m", "maskpro_deploy.gpu_check.processes", name, str(folder)]
        with (folder / "output").open("w+", encoding="utf-8", errors="replace") as output:
            process = subprocess.Popen(command_line, stdout=output, stderr=output, start_new_session=True)
            try:
                code: int | None = process.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end_process(process)
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


def _end_process(process: subprocess.Popen[bytes]) -> None:
    """End an item and what it started: asked first, so that it can end its own processes."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check_json(outcomes: Sequence[Outcome], *, budget_s: float, rehearse: bool) -> dict[str, Any]:
    """The content of the file."""
    items = [dataclasses.asdict(o) for o in outcomes]
    return {"format": FORMAT, "version": VERSION, "rehearsal": rehearse, "budget_s": budget_s, "items": items}


def run_here(name: str, settings: Settings, record: Record) -> Outcome:
    """Run one item in this process; whatever it raises becomes its outcome."""
    started = time.monotonic()
    trace = ""
    try:
        status, detail = MEASURED, ITEMS[name].run(settings, record)
    except MachineError as e:
        status, detail = NOT_RUN, first_line(e).rstrip(".")
    except Exception as e:  # an item may stumble over anything of the libraries it tries
        status, detail = FAILED, first_line(e).rstrip(".")
        detail = detail if isinstance(e, MaskProError) else f"{type(e).__name__}: {detail}"
        trace = traceback.format_exc()
    seconds = round(time.monotonic() - started, 1)
    return Outcome(name=name, status=status, detail=detail, seconds=seconds, figures=record.figures, trace=trace)


def _main() -> None:
    """Run the item named on the command line."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # an interrupt, so that what the item started ends with it
    settings = Settings.from_json(read_json(folder / SETTINGS))
    outcome = run_here(name, settings, Record(folder / FIGURES, settings.budget_s))
    write_json(folder / OUTCOME, dataclasses.asdict(outcome))


if __name__ == "__main__":
    _main()

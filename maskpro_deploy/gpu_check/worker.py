"""The process of one item of the GPU check, so that a crash, a hang or lost memory ends that item and no other.

    python -m maskpro_deploy.gpu_check.worker ITEM FOLDER

FOLDER holds `settings.json`; `figures.json` grows there while the item works, `outcome.json` comes last.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
import traceback
from pathlib import Path
from types import FrameType

from maskpro_deploy.errors import MachineError, MaskProError, first_line
from maskpro_deploy.gpu_check.items import FAILED, MEASURED, NOT_RUN, Outcome, Record, Settings
from maskpro_deploy.gpu_check.registry import ITEMS
from maskpro_deploy.system.files import read_json, write_json

SETTINGS, FIGURES, OUTCOME = "settings.json", "figures.json", "outcome.json"


def run(name: str, settings: Settings, record: Record) -> Outcome:
    """Run one item; whatever it raises becomes its outcome."""
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


def main() -> None:
    """Run the item named on the command line."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGTERM, _interrupt)  # so that what the item started ends with it
    settings = Settings.from_json(read_json(folder / SETTINGS))
    outcome = run(name, settings, Record(folder / FIGURES, settings.budget_s))
    write_json(folder / OUTCOME, dataclasses.asdict(outcome))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

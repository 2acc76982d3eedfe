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
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from maskpro_deploy.errors import MachineError, MaskProError, first_line
from maskpro_deploy.gpu_check import deploy as _gpu_deploy
from maskpro_deploy.gpu_check import engines as _gpu_engines
from maskpro_deploy.gpu_check import evaluation as _gpu_evaluation
from maskpro_deploy.gpu_check import learning as _gpu_learning
from maskpro_deploy.gpu_check import products as _gpu_products
from maskpro_deploy.gpu_check import serving as _gpu_serving
from maskpro_deploy.gpu_check.items import FAILED, MEASURED, NOT_RUN, Item, Outcome, Record, Settings, torch_on
from maskpro_deploy.gpu_check.models import ONE_B, SMOL
from maskpro_deploy.system.files import read_json, write_json

SETTINGS, FIGURES, OUTCOME = "settings.json", "figures.json", "outcome.json"


def environment(settings: Settings, record: Record) -> str:
    """Tell the GPU, its driver, and the versions of everything that uses it."""
    from maskpro_deploy.backends.cuda.driver import compute_capability
    from maskpro_deploy.bench.environment import capture
    from maskpro_deploy.doctor.abilities import onnxruntime_providers, tensorrt_lanes
    from maskpro_deploy.doctor.hardware import find_gpus

    gpus, providers = find_gpus(), onnxruntime_providers()
    lanes = {lane.name: lane.detail or f"lacks {', '.join(lane.lacks)}" for lane in tensorrt_lanes(gpus, providers)}
    record.put(
        gpus=[dataclasses.asdict(g) | {"sparse_tensor_cores": g.sparse_tensor_cores} for g in gpus],
        compute_capability=compute_capability(),
        onnxruntime_providers=providers,
        tensorrt_lanes=lanes,
        environment=capture(),
    )
    names = ", ".join(f"{g.name}, compute capability {g.compute_capability}, driver {g.driver}" for g in gpus)
    try:
        record.put(torch=_torch_facts(torch_on(settings.device), settings.device))
    except MachineError as e:
        record.put(torch={"lacks": str(e)})
    return names or f"nvidia-smi knows no GPU; the driver: {compute_capability() or 'none'}"


def _torch_facts(torch: Any, device: str) -> dict[str, Any]:
    facts = {"version": torch.__version__, "cuda": torch.version.cuda}
    if device == "cpu":
        return facts
    properties = torch.cuda.get_device_properties(0)
    return facts | {
        "device": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cudnn": torch.backends.cudnn.version(),
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
    }


ITEMS: dict[str, Item] = {
    "environment": environment,
    "learn-135m": partial(_gpu_learning.learn, SMOL),
    "learn-1b": partial(_gpu_learning.learn, ONE_B),
    "products": _gpu_products.measure_products,
    "tensorrt": _gpu_engines.tensorrt,
    "tensorrt-rtx": _gpu_engines.tensorrt_rtx,
    "engine-7b": _gpu_engines.engine_7b,
    "onnxruntime": _gpu_deploy.onnxruntime,
    "evaluation": _gpu_evaluation.evaluation,
    "serve-tensorrt": partial(_gpu_serving.serve, _gpu_serving.NATIVE),
    "serve-tensorrt-rtx": partial(_gpu_serving.serve, _gpu_serving.NATIVE_RTX),
    "serve-onnxruntime-tensorrt": partial(_gpu_serving.serve, _gpu_serving.ONNXRUNTIME),
}


# least seconds before an item is ended: imports, making a model and building take their time whatever the budget
LEAST_S = dict.fromkeys(ITEMS, 60.0) | {
    "learn-135m": 180.0,  # compiling the steps took 18 s on an H100
    "learn-1b": 240.0,
    "products": 180.0,  # two more processes look for what works
    "tensorrt": 300.0,
    "tensorrt-rtx": 180.0,
    "engine-7b": 420.0,
    "onnxruntime": 180.0,
    "evaluation": 180.0,
    "serve-tensorrt": 420.0,
    "serve-tensorrt-rtx": 240.0,
    "serve-onnxruntime-tensorrt": 420.0,
}


def run(name: str, settings: Settings, record: Record) -> Outcome:
    """Run one item; whatever it raises becomes its outcome."""
    started = time.monotonic()
    trace = ""
    try:
        status, detail = MEASURED, ITEMS[name](settings, record)
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

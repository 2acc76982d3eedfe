"""The process in which an engine is built or timed, so that a crash of the library is an error message and no crash.

    python -m maskpro_deploy.exporters.engines.worker JOB.json

Reads the job, writes `result` (and the engine) next to it, and prints one JSON line per percent of progress on stdout.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, MachineError, MaskProError
from maskpro_deploy.exporters.engines import provider_builder
from maskpro_deploy.exporters.engines.builder import EngineBuilder
from maskpro_deploy.exporters.engines.provider_builder import build_facts

BUILD, TIME, PROVIDER = "build", "time", "provider"
_PR_SET_PDEATHSIG = 1  # of prctl(2)
# kinds of failure that cross the process border
ERRORS: dict[str, type[MaskProError]] = {kind.__name__: kind for kind in (CheckFailed, ConfigError, FormatError, MachineError)}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do what `job` describes: the facts, or `error` and `kind`."""
    try:
        if job["task"] == PROVIDER:
            return provider_builder.build(job)
        return build(job) if job["task"] == BUILD else time_engines(job)
    except MaskProError as e:
        kind = type(e).__name__ if type(e).__name__ in ERRORS else "CheckFailed"
        return {"error": str(e), "kind": kind}


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build an engine: its file, and the facts of the build."""
    library = EngineBuilder(job["library"])
    started = time.monotonic()
    engine = library.build(
        Path(job["graph"]),
        [{name: tuple(shapes) for name, shapes in profile.items()} for profile in job["profiles"]],
        sparse=job["sparse"],
        targets=job["targets"],
        timing_cache=Path(job["timing_cache"]) if job["timing_cache"] else None,
        flags=job["flags"],
        on_step=_Steps(),
    )
    seconds = time.monotonic() - started
    library.check_engine(engine)
    Path(job["engine"]).write_bytes(engine)
    inspection = library.inspect(engine) if job["library"] == "tensorrt" else ""  # which was built on a GPU
    return build_facts(library.version, seconds, library.log.messages, library.log.warnings, inspection)


def time_engines(job: dict[str, Any]) -> dict[str, Any]:
    """Time engines on the GPU of this machine."""
    from maskpro_deploy.backends.cuda.device import CudaDevice
    from maskpro_deploy.backends.tensorrt_.executor import EngineExecutor
    from maskpro_deploy.exporters.engines.timing.measure import measure
    from maskpro_deploy.exporters.engines.timing.results import Point
    from maskpro_deploy.exporters.engines.timing.runner import Buffers, EngineRunner

    points = [Point(**point) for point in job["points"]]
    steps = _Steps()
    gpu = CudaDevice()  # its memory goes with this process
    buffers = Buffers(gpu, job["vocabulary"])
    engines = {name: EngineExecutor(job["library"], Path(path), gpu) for name, path in job["engines"].items()}
    runners = {name: EngineRunner(engine, gpu, buffers) for name, engine in engines.items()}
    results = measure(
        runners,
        points,
        job["nodes"],
        budget_s=job["budget_s"],
        on_point=lambda done, name: steps(done / len(points), f"timing {name}"),
    )
    return {"points": [dataclasses.asdict(point) for point in results]}


class _Steps:
    """Prints the share of the work that is done, once per percent."""

    def __init__(self) -> None:
        self._printed = -1

    def __call__(self, share: float, phase: str) -> None:
        if (percent := int(100 * share)) > self._printed:
            self._printed = percent
            print(json.dumps({"percent": percent, "phase": phase}), flush=True)


def _end_with_parent(parent: int | None) -> None:
    """Have the kernel end this process with the one that started it, which may be killed (Linux only)."""
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        sys.exit(1)


def main() -> None:
    """Run the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _end_with_parent(job.get("parent"))
    Path(job["result"]).write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()

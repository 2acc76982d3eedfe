"""The builder library in a process of its own: start it, follow it, end it with this call.

A crash of the library is an error message here, and an interrupt here leaves no process behind; on Linux a kill does neither.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from maskpro_deploy.backends.profiles import Profile
from maskpro_deploy.errors import MachineError
from maskpro_deploy.exporters.engines.config import EngineConfig
from maskpro_deploy.exporters.engines.timing.results import Point, PointResult, point_from_json
from maskpro_deploy.exporters.engines.worker import BUILD, ERRORS, PROVIDER, TIME
from maskpro_deploy.system.progress import Progress

_STDERR_TAIL = 300


def build_in_process(
    scratch: Path,
    graph: Path,
    library: str,
    config: EngineConfig,
    shapes: Sequence[Profile],
    progress: Progress,
    options: Mapping[str, str] | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Build one engine in `scratch`: its file and the facts; with `options` through onnxruntime's TensorRT provider.

    Errors are those that the worker reports; MachineError if it died.
    """
    job = {
        "task": BUILD if options is None else PROVIDER,
        "options": options,
        "graph": str(graph.resolve()),
        "engine": str((scratch / "engine").resolve()),
        "profiles": shapes,
        "sparse": not config.dense,
        "targets": config.targets,
        "timing_cache": str(config.timing_cache.resolve()) if config.timing_cache is not None else None,
        "flags": dataclasses.asdict(config.flags),
    }
    return scratch / "engine", _run_job(scratch, library, job, progress)


def time_in_process(
    scratch: Path,
    library: str,
    engines: Mapping[str, Path],
    points: Sequence[Point],
    nodes: Mapping[str, str],
    vocabulary: int,
    budget_s: float,
    progress: Progress,
) -> tuple[PointResult, ...]:
    """Time engines on the GPU (`timing.measure`); errors as in `build_in_process`."""
    job = {
        "task": TIME,
        "engines": {name: str(path.resolve()) for name, path in engines.items()},
        "points": [dataclasses.asdict(point) for point in points],
        "nodes": nodes,
        "vocabulary": vocabulary,
        "budget_s": budget_s,
    }
    return tuple(point_from_json(p) for p in _run_job(scratch, library, job, progress)["points"])


def _run_job(scratch: Path, library: str, job: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the worker process on a job and read its result."""
    result = scratch / "result.json"
    result.unlink(missing_ok=True)
    job |= {"library": library, "result": str(result.resolve()), "parent": os.getpid()}
    (scratch / "job.json").write_text(json.dumps(job), encoding="utf-8")
    code, stderr = _run_worker(scratch, progress)
    if code != 0 or not result.is_file():
        ended = f"was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"
        last = (stderr.strip().splitlines() or ["it left no message"])[-1][-_STDERR_TAIL:]
        raise MachineError(f"the process that runs {library} {ended}; the bundle is unchanged.\nIts last words: {last}")
    facts: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    if "error" in facts:
        raise ERRORS[facts["kind"]](facts["error"])
    progress.update(100, 100)
    return facts


def _run_worker(scratch: Path, progress: Progress) -> tuple[int, str]:
    """Run the worker in a process group of its own, which dies with this call. Returns exit code and stderr."""
    command = [sys.executable, "-m", "maskpro_deploy.exporters.engines.worker", str(scratch / "job.json")]
    with (scratch / "stderr").open("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                _pass_on(progress, line)
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        stderr.seek(0)
        return code, stderr.read()


def _pass_on(progress: Progress, line: str) -> None:
    """Pass one line of the worker on; the libraries print to stdout as well, so other lines are skipped."""
    with suppress(json.JSONDecodeError, KeyError, TypeError):
        step = json.loads(line)
        progress.update(step["percent"], 100, step["phase"])

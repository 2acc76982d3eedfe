"""The process in which an engine is built, so that a crash of the builder library is an error message and no crash.

    python -m maskpro_deploy.exporters.engine_worker JOB.json

Reads the job, writes the engine and `result` beside it, and prints one JSON line per percent of progress on stdout.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, MaskProError
from maskpro_deploy.exporters.sparsity_log import parse_log
from maskpro_deploy.exporters.trt_library import Library

# kinds of failure that cross the process border
ERRORS: dict[str, type[MaskProError]] = {kind.__name__: kind for kind in (CheckFailed, ConfigError, MachineError)}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build what `job` describes.

    Returns:
        the facts of the build, or `error` and `kind`.
    """
    try:
        library = Library(job["library"])
        started = time.monotonic()
        engine = library.build(
            Path(job["graph"]),
            [{name: tuple(shapes) for name, shapes in profile.items()} for profile in job["profiles"]],
            sparse=job["sparse"],
            targets=job["targets"],
            timing_cache=Path(job["timing_cache"]) if job["timing_cache"] else None,
            on_step=_Steps(),
        )
        seconds = time.monotonic() - started
    except MaskProError as e:
        kind = type(e).__name__ if type(e).__name__ in ERRORS else "CheckFailed"
        return {"error": str(e), "kind": kind}
    Path(job["engine"]).write_bytes(engine)
    log = parse_log(library.messages)
    return {
        "version": library.version,
        "build_s": seconds,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "warnings": library.warnings,
        "spoke": log.spoke,
        "eligible": log.eligible,
        "chosen": log.chosen,
        # only on a GPU: what the finished engine says of its layers
        "inspection": library.inspect(engine) if job["library"] == "tensorrt" else "",
    }


class _Steps:
    """Prints the share of the build that is done, once per percent."""

    def __init__(self) -> None:
        self._printed = -1

    def __call__(self, share: float, phase: str) -> None:
        if (percent := int(100 * share)) > self._printed:
            self._printed = percent
            print(json.dumps({"percent": percent, "phase": phase}), flush=True)


def main() -> None:
    """Run the job named on the command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["result"]).write_text(json.dumps(run(job)), encoding="utf-8")


if __name__ == "__main__":
    main()

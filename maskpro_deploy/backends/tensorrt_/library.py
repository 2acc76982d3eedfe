"""Loading TensorRT or TensorRT-RTX, and listening to what it says.

The two libraries are near relatives that gain and lose names between versions: what they can do is asked of them (`hasattr`),
never looked up in a table of versions. Each keeps the first logger of a process for good, so there is one per library.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

from maskpro_deploy.errors import MachineError

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_LONGEST_REASON = 300


class LibraryLog:
    """What a library said in this process."""

    def __init__(self) -> None:
        self.messages: list[str] = []  # everything that was said while `keep_all` is set
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.keep_all = False

    def add(self, level: int, message: str) -> None:
        """Take a message of a level of `logging`."""
        log.log(level, "%s", message)
        if self.keep_all:
            self.messages.append(message)
        if level == logging.WARNING:
            self.warnings.append(message)
        elif level == logging.ERROR:
            self.errors.append(message)

    def last_error(self) -> str:
        """The first line of what the library complained of last; its pages of context are of no use to who reads it."""
        lines = self.errors[-1].strip().splitlines() if self.errors else []
        return lines[0][:_LONGEST_REASON] if lines else "it gives no reason."


def load_library(name: str) -> Any:
    """Import TensorRT or TensorRT-RTX; MachineError if it cannot be imported here."""
    try:
        return import_module(MODULES[name])
    except (ImportError, OSError) as e:
        raise MachineError(f"{name} is installed, but cannot be loaded here: {e}") from e


def layer_information(trt: Any, engine: Any) -> str:
    """The layers of a loaded engine as the library's JSON."""
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


@cache
def log_of(trt: Any) -> LibraryLog:
    """The log of a loaded library in this process."""
    return LibraryLog()


@cache
def logger_of(trt: Any) -> Any:
    """The library's own logger object, which writes to its `LibraryLog`."""
    kept = log_of(trt)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                kept.add(logging.ERROR, message)
            else:
                kept.add(logging.WARNING if severity == trt.ILogger.WARNING else logging.DEBUG, message)

    return Logger()

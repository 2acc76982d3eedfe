"""The saved state of a learning run, so that an interruption costs at most one interval.

One file, `state.safetensors`, in a folder next to the output (`OUT.learning`): the tensors of every site, and as metadata the
counters and the curve. It is written to a temporary name, fsynced and renamed: at any moment there is one whole state.
"""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.system.files import atomic_file

FORMAT = "maskpro-deploy/learning-state"
VERSION = "3"
SavedState = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and counters


@dataclass(frozen=True, slots=True)
class StateStore:
    """Where a run keeps its state."""

    folder: Path  # `OUT.learning`
    fingerprint: str = ""  # of settings, model and text; a state with another one is refused

    @staticmethod
    def folder_for(out: Path) -> Path:
        """The state folder that belongs to the output `out`."""
        return out.with_name(f"{out.name}.learning")

    @property
    def path(self) -> Path:
        return self.folder / "state.safetensors"

    def save(self, tensors: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
        """Replace the saved state."""
        metadata = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint, "counters": json.dumps(dict(counters))}
        with atomic_file(self.path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=metadata)

    def check_free(self, *, resume: bool, force: bool) -> None:
        """Check that there is a state if it is to be resumed, and else none, or one that may be discarded."""
        if resume:
            self._check_exists()
        elif self.path.exists() and not force:
            raise InputError(
                f"{self.folder} holds the state of an interrupted run.\nGo on with it by --resume, or start again with --force."
            )

    def _check_exists(self) -> None:
        if not self.path.is_file():
            raise InputError(f"there is nothing to resume: {self.path} does not exist.\nStart without --resume.")

    def check(self) -> None:
        """Check that there is a whole state, and that it belongs to this run."""
        self.load(with_tensors=False)

    def load(self, *, with_tensors: bool = True) -> SavedState:
        """The saved tensors and counters (see `check` for what can go wrong)."""
        self._check_exists()
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                names = list(file.keys()) if with_tensors else []
                tensors = {name: file.get_tensor(name) for name in names}
        except SafetensorError as e:
            raise FormatError(f"{self.path} is damaged: {e}.\nStart again with --force.") from e
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise FormatError(f"{self.path} is not a learning state of version {VERSION}.\nStart again with --force.")
        if metadata.get("fingerprint") != self.fingerprint:
            raise InputError(
                f"{self.path} belongs to a run with other settings, another model or other text.\n"
                f"Repeat that run's options to resume it, or start again with --force."
            )
        return tensors, json.loads(metadata["counters"])

    def discard(self) -> None:
        """Remove the state: the run is done, or starts again."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def stop_requests(*, patient: bool = False) -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event, as half a step is not a state; the second one interrupts at once.

    A `patient` one takes any number of signals: a terminal and a launcher both send theirs.

    Outside the main thread, where signals cannot be caught, the event simply never comes.
    """
    request = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for s, handler in before.items():
            signal.signal(s, handler)

    def ask(signum: int, frame: FrameType | None) -> None:
        request.set()
        if not patient:
            restore()

    for s in before:
        signal.signal(s, ask)
    try:
        yield request
    finally:
        restore()

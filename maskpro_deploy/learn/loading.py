"""What every run loads before it starts: windows of text, the device, the dtype; and what it refuses then."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text, load_tokenizer, measure_shared_share, separator_token, token_stream, windows
from maskpro_deploy.errors import ConfigError, MachineError
from maskpro_deploy.learn.model.model import Windows, faster_dtype
from maskpro_deploy.learn.run_config import RunConfig
from maskpro_deploy.learn.window_order import Part

_MUCH_SHARED = 0.1  # of the held-out text in the learning text: one excerpt of 16 may be a licence or a letterhead
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedText:
    """Windows of tokens (W, T) each: those to learn from, of one text after the other, and those to measure on."""

    learning: Windows
    heldout: Windows
    parts: tuple[Part, ...]


def load_windows(checkpoint: Checkpoint, text: Text, heldout: Text, config: RunConfig) -> LoadedText:
    """The windows of a run; a warning where the texts overlap."""
    if (shared := measure_shared_share(text, heldout)) > _MUCH_SHARED:
        log.warning(
            "about %.0f %% of the held-out text (%s) is in the learning text too: its perplexity will look too good. "
            "Give another --heldout, or split:0.1.", 100 * shared, heldout.name,
        )  # fmt: skip
    turns = Counter(part.name for part in text.parts or (text,))
    once = {part.name: part for part in text.parts or (text,)}
    each = {name: make_windows(checkpoint, part, config.window) for name, part in once.items()}
    parts = tuple(Part(len(windows), turns[name]) for name, windows in each.items())
    heldout_windows = make_windows(checkpoint, heldout, config.window)
    count = max(1, config.heldout_tokens // config.window)
    # windows spread over the whole text, so that every genre counts
    chosen = [i * len(heldout_windows) // count for i in range(count)] if count < len(heldout_windows) else slice(None)
    return LoadedText(np.concatenate([*each.values()]), heldout_windows[chosen], parts)


@contextmanager
def memory_errors(place: str) -> Iterator[None]:
    """Say in one line that a device's memory does not suffice (MachineError)."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise MachineError(
            f"the memory of {place} does not suffice for this model and batch.\n"
            f"Try a smaller --batch-tokens or --window, or --device cpu."
        ) from e


def learning_dtype(config: RunConfig, place: str) -> torch.dtype:
    """The dtype of the weights while learning: the one that is set, or the faster one."""
    chosen: torch.dtype = faster_dtype(place) if config.dtype == "auto" else getattr(torch, config.dtype)
    return chosen


def learning_device(name: str) -> str:
    """The device of a name: "auto" takes a GPU if there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MachineError("--device cuda: torch finds no GPU here.\nUse --device cpu, or a torch built for this GPU's driver.")
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def make_windows(checkpoint: Checkpoint, text: Text, length: int) -> Windows:
    """A text as windows of tokens (W, T); a ConfigError where the tokenizer is not the model's."""
    tokenizer = load_tokenizer(checkpoint.folder)
    vocabulary = checkpoint.config.get("vocab_size")
    stream = token_stream(text.documents, tokenizer, separator_token(checkpoint.folder, tokenizer))
    if isinstance(vocabulary, int) and len(stream) and int(stream.max()) >= vocabulary:
        raise ConfigError(
            f"the tokenizer of {checkpoint.folder} gives token {int(stream.max())}, the model has {vocabulary}.\n"
            f"The tokenizer belongs to another model."
        )
    return windows(stream, length, text.name)


def add_change(stored: npt.NDArray[Any], now: Tensor, dtype: torch.dtype) -> npt.NDArray[np.float32]:
    """A weight of the checkpoint with what a run in `dtype` changed: digits that `dtype` lacks come from the checkpoint.

    What is zero now stays zero, and nothing else becomes zero.
    """
    before, ours = torch.from_numpy(stored.astype(np.float32)), now.detach().float().cpu()
    loaded = before.to(dtype).float()
    changed = ours if torch.equal(loaded, before) else before + (ours - loaded)
    array: npt.NDArray[np.float32] = torch.where((ours == 0) | (changed == 0), ours, changed).numpy()
    return array


def check_space(checkpoint: Checkpoint, out: Path) -> None:
    """Refuse at once what would fail after hours: the result is as large as the dense checkpoint."""
    needed = sum(s.stat().st_size for s in checkpoint.shards)
    existing = next(p for p in (out, *out.resolve().parents) if p.exists())
    if (free := shutil.disk_usage(existing).free) < needed:
        raise MachineError(
            f"{out} needs {needed / 1e9:.2f} GB, {existing} has {free / 1e9:.2f} GB free.\n"
            f"Free some space, or choose another --out."
        )

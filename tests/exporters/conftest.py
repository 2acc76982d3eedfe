from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

Change = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture
def variant(tiny_checkpoint: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """Makes a copy of the tiny checkpoint with its config and weights changed in place by a function."""

    def make(change: Change, base: Path = tiny_checkpoint) -> Path:
        folder = tmp_path / "variant"
        shutil.copytree(base, folder)
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        change(config, weights)
        (folder / "config.json").write_text(json.dumps(config))
        weights = {name: np.ascontiguousarray(w) for name, w in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make

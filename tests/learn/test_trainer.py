"""What a run says of how far it moved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.learn import LearnConfig, learn_checkpoint
from maskpro_deploy.pattern import NMPattern

SETTINGS = {"steps": 6, "window": 32, "batch_tokens": 128, "calibration_tokens": 128, "heldout_tokens": 256, "evaluations": 2}


def test_how_far_each_layer_moved_is_what_numpy_finds_in_the_written_weights(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = LearnConfig(pattern=NMPattern(2, 4), weights="train", transform="none", dtype="float32", **SETTINGS)  # type: ignore[arg-type]
    result = learn_checkpoint(dense.folder, tmp_path / "out", text, heldout, config, device="cpu")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(result.moved_by_layer) == set(result.masks)
    added, start = {}, {}
    for name in result.masks:
        mask, original = result.masks.mask(name), dense.tensor(name).astype(np.float64)
        added[name] = (np.where(mask, written[name] - original, 0) ** 2).sum()
        start[name] = (np.where(mask, original, 0) ** 2).sum()
        assert result.moved_by_layer[name] == pytest.approx(math.sqrt(added[name] / start[name]), rel=1e-4)
        assert result.moved_by_layer[name] > 0
    best = min(result.curve, key=lambda p: p.heldout_loss)
    assert best.moved == pytest.approx(math.sqrt(sum(added.values()) / sum(start.values())), rel=1e-4)
    assert result.summary()["weights_moved"] == best.moved


def test_frozen_weights_have_not_moved(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    config = LearnConfig(pattern=NMPattern(2, 4), weights="frozen", **SETTINGS)  # type: ignore[arg-type]
    result = learn_checkpoint(dense.folder, tmp_path / "out", text, heldout, config, device="cpu")
    assert result.moved_by_layer == {}
    assert all(p.moved == 0 for p in result.curve)

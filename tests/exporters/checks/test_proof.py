"""What an export refuses to prove, and the verdict on its own bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.exporters.checks.proof import Claim, check_bundle, check_claim
from maskpro_deploy.pattern import NMPattern

Q0 = "model.layers.0.self_attn.q_proj.weight"


def test_masks_of_another_pattern_are_refused_at_once(tiny_sparse: Path, tiny_checkpoint: Path) -> None:
    check_claim(Checkpoint.open(tiny_sparse), NMPattern(2, 4))
    check_claim(Checkpoint.open(tiny_sparse), None)
    check_claim(Checkpoint.open(tiny_checkpoint), NMPattern(4, 8))  # whether its weights hold it is counted later
    with pytest.raises(CheckFailed, match="masks of the pattern 2:4"):
        check_claim(Checkpoint.open(tiny_sparse), NMPattern(4, 8))


def test_a_model_that_no_proof_follows_is_exported_dense_only(tiny_sparse: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for folder in (tiny_sparse, tiny_checkpoint):
        copy = shutil.copytree(folder, tmp_path / folder.name)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "altup_num_inputs": 4}))
    with pytest.raises(InputError, match="mixes its embedded tokens"):
        check_claim(Checkpoint.open(tmp_path / tiny_sparse.name), None)
    check_claim(Checkpoint.open(tmp_path / tiny_checkpoint.name), None)


def test_a_bundle_is_judged_as_validate_judges_it(sparse_bundle: Path, dense_bundle: Path) -> None:
    claim = Claim(pattern=NMPattern(2, 4), names=(Q0,))
    check_bundle(sparse_bundle, claim)
    check_bundle(dense_bundle, None)
    with pytest.raises(CheckFailed, match="does not hold"):
        check_bundle(dense_bundle, claim)

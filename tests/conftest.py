"""Fixtures shared by all tests: a tiny real LLaMA checkpoint, dense and sparse."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tiny_model import magnitude_masks, write_tiny

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.pattern import NMPattern

# how fast a machine draws inputs is no property of this project: on a busy one the first draw alone can take over a second
settings.register_profile("any speed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense tiny LLaMA checkpoint (read only)."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "dense")


@pytest.fixture(scope="session")
def tiny_sparse(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a 2:4 mask on its 14 projections (read only)."""
    out = tmp_path_factory.mktemp("tiny") / "sparse"
    dense = Checkpoint.open(tiny_checkpoint)
    save_sparse(dense, magnitude_masks(dense, NMPattern(2, 4)), out, {"method": "magnitude"})
    return out

"""A tiny LLaMA in torch, for the learner."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text, load_text


@pytest.fixture(scope="session")
def text() -> Text:
    """A few documents of the built-in text."""
    return Text(name="some", documents=load_text("builtin").documents[:6])


@pytest.fixture(scope="session")
def heldout() -> Text:
    """One held-out document."""
    return Text(name="other", documents=load_text("builtin:heldout").documents[:2])


@pytest.fixture(scope="session")
def dense(tiny_checkpoint: Path) -> Checkpoint:
    """The tiny dense checkpoint, opened."""
    return Checkpoint.open(tiny_checkpoint)

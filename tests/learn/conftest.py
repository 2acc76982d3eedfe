"""A tiny LLaMA in torch, for the learner."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text, load_text
from maskpro_deploy.learn.model import norm_cache
from maskpro_deploy.system.files import cache_folder


@pytest.fixture(scope="session", autouse=True)
def own_norms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Norms of tiny models stay out of the user's cache, unless a test has a cache folder of its own."""
    users, folder = cache_folder(), tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_cache, "cache_folder", lambda: folder if cache_folder() == users else cache_folder())
        yield


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

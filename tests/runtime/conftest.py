"""Bundles of tiny models, and text generators on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from gated_session import GatedSession

from maskpro_deploy.backends.session import OpenSession
from maskpro_deploy.runtime import RuntimeConfig, SessionConfig, TextGenerator, load, open_session
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer


@pytest.fixture(scope="session")
def session(sparse_bundle: Path) -> OpenSession:
    """The tiny bundle's graph."""
    return open_session(sparse_bundle, SessionConfig(provider="cpu", threads=1))


@pytest.fixture(scope="session")
def text_tokenizer(sparse_bundle: Path, session: OpenSession) -> TextTokenizer:
    """The tiny bundle's tokenizer."""
    return TextTokenizer.load(sparse_bundle, session.shape)


@pytest.fixture(scope="module")
def generator(sparse_bundle: Path) -> Iterator[TextGenerator]:
    """A generator with four places in its batch, and prompts read in small chunks."""
    with load(sparse_bundle, RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4, chunk_tokens=24)) as made:
        yield made


@pytest.fixture
def gated(session: OpenSession) -> GatedSession:
    """The tiny bundle's graph behind a gate."""
    return GatedSession(session)


@pytest.fixture
def gated_generator(gated: GatedSession, text_tokenizer: TextTokenizer) -> Iterator[TextGenerator]:
    """A generator behind a gate: two places in the batch, two in the queue."""
    made = TextGenerator(gated, text_tokenizer, RuntimeConfig(max_num_seqs=2, max_num_queued_reqs=2))
    yield made
    gated.open()
    made.close()

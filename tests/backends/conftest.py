"""Fixtures of the backends' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from plain_session import PlainSession


@pytest.fixture(scope="session")
def session(sparse_bundle: Path) -> PlainSession:
    """The 2:4 tiny model's graph, fed with arrays."""
    return PlainSession(sparse_bundle)

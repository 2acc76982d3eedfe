"""Text to tokens and back, and chat templates."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_every_text_survives_tokens_and_back(text_tokenizer: TextTokenizer, text: str) -> None:
    assert text_tokenizer.decode(text_tokenizer.encode(text)) == text


def test_other_threads_go_on_while_a_long_text_is_encoded(text_tokenizer: TextTokenizer) -> None:
    """The longest pause of a thread that wants to work all the time is far below the time of the encoding."""
    text, pauses, done = "the quick brown fox " * 40_000, [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    tokens = text_tokenizer.encode(text)
    taken = time.perf_counter() - started
    done.set()
    watcher.join()
    assert len(tokens) > 100_000
    assert max(pauses) < 0.5 * taken


def test_a_text_that_cannot_fit_is_not_encoded(text_tokenizer: TextTokenizer) -> None:
    longest = max(len(text_tokenizer.piece(t)) for t in range(320))
    with pytest.raises(InputError, match=r"500 characters, so .* the context holds 2"):
        text_tokenizer.encode_all(["a", "a" * 500], most=2)
    (fits,) = text_tokenizer.encode_all(["a" * (2 * longest)], most=len("a" * (2 * longest)))
    assert fits


def test_parts_of_characters_are_told_apart_by_their_bytes(text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.encode("€")
    assert b"".join(text_tokenizer.token_bytes(t) for t in tokens) == "€".encode()
    assert "".join(text_tokenizer.piece(t) for t in tokens) == "".join(f"bytes:\\x{b:02x}" for b in "€".encode())


@pytest.fixture
def shape(session: GraphSession) -> ModelShape:
    return session.shape


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, shape: ModelShape) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)

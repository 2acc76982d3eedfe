"""Text to tokens and back, and chat templates."""

from __future__ import annotations

import json
import shutil
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


def test_messages_become_the_models_own_prompt(text_tokenizer: TextTokenizer) -> None:
    rendered = text_tokenizer.render([{"role": "user", "content": "hi"}])
    assert rendered == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    assert text_tokenizer.render([{"role": "user", "content": "hi"}], {"add_generation_prompt": False}).endswith("<|end|>\n")


def bundle_with(source: Path, target: Path, template: str | None, config: dict[str, object]) -> Path:
    shutil.copytree(source, target)
    (target / "chat_template.jinja").unlink()
    if template is not None:
        (target / "chat_template.jinja").write_text(template)
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target


@pytest.fixture
def shape(session: GraphSession) -> ModelShape:
    return session.shape


def test_a_template_in_the_tokenizers_config_counts_too(sparse_bundle: Path, tmp_path: Path, shape: ModelShape) -> None:
    config = {"chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}", "bos_token": {"content": "<b>"}}
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", None, config), shape)
    assert tokenizer.render([{"role": "user", "content": "x"}]) == "<b>x<|end|>"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for",
        "{{ messages[7].content.upper() }}",
    ],
)
def test_a_template_that_refuses_or_breaks_out_is_an_input_error(
    sparse_bundle: Path, tmp_path: Path, shape: ModelShape, template: str
) -> None:
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", template, {}), shape)
    with pytest.raises(InputError, match="chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_without_a_template_messages_are_refused(sparse_bundle: Path, tmp_path: Path, shape: ModelShape) -> None:
    tokenizer = TextTokenizer.load(bundle_with(sparse_bundle, tmp_path / "b", None, {}), shape)
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, shape: ModelShape) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)

"""Text that grows token by token, stop texts, chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.tokenizer import Detokenizer, StopFilter, TextTokenizer


@settings(deadline=None)
@given(text=st.text(max_size=40))
def test_every_text_survives_tokens_and_back(text_tokenizer: TextTokenizer, text: str) -> None:
    assert text_tokenizer.decode(text_tokenizer.encode(text)) == text


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 319), max_size=40))
def test_growing_text_adds_up_to_the_whole(text_tokenizer: TextTokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(text_tokenizer)
    pieces = [detokenizer.add(t) for t in tokens]
    assert "".join([*pieces, detokenizer.flush()]) == text_tokenizer.decode(tokens)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_no_half_character_is_ever_given_out(text_tokenizer: TextTokenizer, text: str) -> None:
    detokenizer = Detokenizer(text_tokenizer)
    sofar = ""
    for token in text_tokenizer.encode(text):
        sofar += detokenizer.add(token)
        assert text.startswith(sofar)


def test_endless_garbage_is_not_held_back_for_ever(text_tokenizer: TextTokenizer) -> None:
    (stray,) = [t for t in range(320) if text_tokenizer.token_bytes(t) == b"\x80"]
    detokenizer = Detokenizer(text_tokenizer)
    assert any(detokenizer.add(stray) for _ in range(100))


def test_parts_of_characters_are_told_apart_by_their_bytes(text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.encode("€")
    assert b"".join(text_tokenizer.token_bytes(t) for t in tokens) == "€".encode()
    assert "".join(text_tokenizer.piece(t) for t in tokens) == "".join(f"bytes:\\x{b:02x}" for b in "€".encode())


short_text = st.text(alphabet="ab", max_size=12)


@given(text=short_text, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), data=st.data())
def test_the_result_does_not_depend_on_how_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    def run(pieces: list[str]) -> tuple[str, bool]:
        stop_filter, out = StopFilter(stops), ""
        for piece in pieces:
            passed, stopped = stop_filter.add(piece)
            out += passed
            if stopped:
                return out, True
        return out + stop_filter.flush(), False

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, stopped = run(pieces)
    assert (out, stopped) == run([text])
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in out for stop in stops)
    assert text.startswith(out)


def test_what_may_become_a_stop_is_held_back() -> None:
    stop_filter = StopFilter(["END"])
    assert stop_filter.add("the E") == ("the ", False)
    assert stop_filter.add("N") == ("", False)
    assert stop_filter.add("vy") == ("ENvy", False)
    assert stop_filter.add("EN") == ("", False)
    assert stop_filter.add("D of it") == ("", True)


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
    assert not tokenizer.has_chat_template
    with pytest.raises(InputError, match="no chat template"):
        tokenizer.render([{"role": "user", "content": "x"}])


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path, shape: ModelShape) -> None:
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        TextTokenizer.load(tmp_path, shape)

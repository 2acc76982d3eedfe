"""What a model writes itself: enough of it, in its own template, the same again from the cache, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import load_text, load_texts, load_tokenizer
from maskpro_deploy.errors import CheckFailed
from maskpro_deploy.learn import LearnConfig, learn_checkpoint, self_text
from maskpro_deploy.learn.self_text import write_text
from maskpro_deploy.pattern import NMPattern

# nothing stands between turns here: a random model would not write it
TEMPLATE = "{% for m in messages %}Question: {{ m.content }}.{% endfor %}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MASKPRO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def chat(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model with a template whose turns end with a full stop."""
    folder = tmp_path / "chat"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def count_tokens(folder: Path, documents: tuple[str, ...]) -> int:
    return sum(len(e.ids) for e in load_tokenizer(folder).encode_batch(list(documents), add_special_tokens=False))


def test_a_model_without_a_template_writes_documents(chat: Path) -> None:
    (chat / "chat_template.jinja").unlink()
    text = write_text(chat, "self", 600)
    assert count_tokens(chat, text.documents) >= 500  # words that are cut at their ends come out shorter
    assert text.name == "self"
    assert text.written_s > 0


def test_a_chat_model_writes_dialogues_in_its_template(chat: Path) -> None:
    text = write_text(chat, "self", 300)
    assert text.documents
    for document in text.documents:
        assert document.startswith("Question: ")
        assert document.count(".") >= 1
    assert count_tokens(chat, text.documents) >= 300


def test_documents_from_words_begin_with_one_and_have_many(chat: Path) -> None:
    vocabulary = load_tokenizer(chat).get_vocab()
    text = write_text(chat, "words:2000", 2000)
    assert text.name == "words:2000"
    assert count_tokens(chat, text.documents) >= 2000
    begun = {d.split()[0] for d in text.documents}
    whole = {piece[1:] for piece in vocabulary if len(piece) > 3 and piece[1:].isalpha() and piece[0] in "\u0120\u2581"}
    assert any(any(b.startswith(w) for w in whole) for b in begun)
    assert len(begun) > len(text.documents) / 3
    assert text.documents != write_text(chat, "self:2000", 2000).documents


def test_a_sample_that_leaves_the_template_is_dropped(chat: Path) -> None:
    (chat / "chat_template.jinja").write_text(TEMPLATE.replace(".{%", ".{% if add_generation_prompt %}Answer:{% endif %}{%"))
    with pytest.raises(CheckFailed, match="writes nothing"):  # a random model never writes "Answer:"
        write_text(chat, "self", 100)


def test_the_same_is_read_again_and_another_seed_writes_another(chat: Path, cache: Path) -> None:
    first, again = (write_text(chat, "self:200", 200) for _ in range(2))
    assert again.documents == first.documents
    assert again.written_s == 0 < first.written_s
    assert write_text(chat, "self:200", 200, seed=1).documents != first.documents
    assert len(list((cache / "self_text").iterdir())) == 2
    shutil.rmtree(cache)
    assert write_text(chat, "self:200", 200).documents == first.documents


def test_another_template_or_model_is_not_read_from_the_cache(chat: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    before = write_text(chat, "self", 200).documents
    (chat / "chat_template.jinja").write_text(TEMPLATE.replace("Question", "Q"))
    assert write_text(chat, "self", 200).documents != before
    other = tmp_path / "sparse"
    shutil.copytree(tiny_sparse, other)
    (other / "chat_template.jinja").write_text(TEMPLATE)
    assert write_text(other, "self", 200).documents != before


def test_a_model_that_says_nothing_is_refused_and_nothing_is_kept(
    chat: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_text, "_LEAST_QUESTION", 1000)
    with pytest.raises(CheckFailed, match=r"writes nothing.*\n.*--data"):
        write_text(chat, "self", 100)
    assert not (cache / "self_text").exists()


def test_a_run_learns_from_it_and_counts_its_time(chat: Path, tmp_path: Path) -> None:
    def write(name: str, tokens: int):  # type: ignore[no-untyped-def]
        return write_text(chat, name, tokens)

    text, heldout = load_texts(["builtin", "self:400"], "builtin:heldout", write)
    config = LearnConfig(pattern=NMPattern(2, 4), steps=4, window=32, batch_tokens=64, calibration_tokens=64, heldout_tokens=128)
    result = learn_checkpoint(chat, tmp_path / "out", text, heldout, config)
    assert result.spent.preparing_s > text.written_s > 0
    record = json.loads((tmp_path / "out" / "learn.json").read_text())
    assert record["text"]["name"] == "builtin + self:400"
    assert record["text"]["documents"] == len(load_text("builtin").documents) + len(text.parts[1].documents)
    assert Checkpoint.open(tmp_path / "out").masks is not None

"""Text sources: each format, each kind of damage, and the built-in split, which never changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy import rows
from maskpro_deploy.data import (
    BUILTIN,
    HELD_OUT,
    Text,
    load_text,
    load_texts,
    load_tokenizer,
    measure_shared_share,
    split_text,
    token_stream,
    windows,
)
from maskpro_deploy.errors import ConfigError, FormatError, InputError, MissingExtraError
from maskpro_deploy.system import extras


class TestBuiltin:
    def test_the_split_is_fixed(self):
        learn, held_out = load_text(BUILTIN), load_text(HELD_OUT)
        assert (len(learn.documents), len(held_out.documents)) == (272, 41)
        assert held_out.sha256 == "f3fe94a9f6bffe80d6289413184722ceeaf6044bb41fe0759c285eff69ebe85d"
        assert learn.sha256 == "3ccde96d86ef8c5bda57f1a7f99ce39ab5984752f3a088e4269405871dc72268"

    def test_no_document_is_in_both_parts_or_twice(self):
        documents = load_text(BUILTIN).documents + load_text(HELD_OUT).documents
        assert len(set(documents)) == len(documents)

    def test_it_is_real_text(self):
        for document in load_text(HELD_OUT).documents:
            assert len(document.split()) > 100
            assert document == document.strip()


class TestFiles:
    @settings(max_examples=30, deadline=None)
    @given(st.data())
    def test_jsonl_keeps_any_text(self, tmp_path_factory, data):
        documents = data.draw(
            st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1)
        )
        path = tmp_path_factory.mktemp("data") / "x.jsonl"
        path.write_text("\n\n".join(json.dumps({"text": d, "n": 1}) for d in documents), encoding="utf-8")
        assert load_text(str(path)).documents == tuple(documents)

    def test_plain_text_is_split_at_its_separator_lines(self, tmp_path):
        (tmp_path / "x.txt").write_text("one\ntwo\n%%\nthree %% four\n%%\n  \n%%\nfive", encoding="utf-8")
        assert load_text(str(tmp_path / "x.txt")).documents == ("one\ntwo", "three %% four", "five")

    def test_parquet(self, tmp_path):
        pyarrow = pytest.importorskip("pyarrow")
        import pyarrow.parquet as parquet

        parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": ["one", None, "zwei ä"]}), tmp_path / "x.parquet")
        assert load_text(str(tmp_path / "x.parquet")).documents == ("one", "zwei ä")
        parquet.write_table(pyarrow.table({"body": ["one"]}), tmp_path / "y.parquet")
        with pytest.raises(FormatError, match='column "text"'):
            load_text(str(tmp_path / "y.parquet"))
        whole = (tmp_path / "x.parquet").read_bytes()
        (tmp_path / "z.parquet").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(FormatError, match=r"z\.parquet"):
            load_text(str(tmp_path / "z.parquet"))

    @pytest.mark.parametrize("line", ["{", "[]", "5", "{}", '{"text": 5}', '{"text": null}', '"text"'])
    def test_a_bad_line_is_named(self, tmp_path, line):
        (tmp_path / "x.jsonl").write_text('{"text": "good"}\n' + line)
        with pytest.raises(FormatError, match=r"x\.jsonl, line 2"):
            load_text(str(tmp_path / "x.jsonl"))

    @pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
    def test_bytes_that_are_no_text_are_refused(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(FormatError, match="UTF-8"):
            load_text(str(tmp_path / name))

    @pytest.mark.parametrize("content", ["", " \n\t", "\n%%\n\n%%\n"])
    def test_a_file_without_text_is_refused(self, tmp_path, content):
        (tmp_path / "x.txt").write_text(content)
        with pytest.raises(InputError, match="holds no text"):
            load_text(str(tmp_path / "x.txt"))

    @pytest.mark.parametrize("name", ["nope.txt", "", "."])
    def test_a_missing_file_or_a_folder_is_refused(self, tmp_path, name):
        with pytest.raises(InputError, match="does not exist or is not a file"):
            load_text(str(tmp_path / name))

    def test_a_hub_dataset_needs_its_extra(self, monkeypatch):
        for module in (rows, extras):  # as if it were not installed
            monkeypatch.setattr(module, "find_spec", lambda name: None)
        with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[eval\]"):
            load_text("hub:owner/name")


def test_the_hash_depends_on_documents_and_their_borders():
    texts = [("a", "b"), ("ab",), ("b", "a"), ("a", "b", "c")]
    assert len({Text(name="x", documents=t).sha256 for t in texts}) == 4
    assert Text(name="x", documents=("a",)).sha256 == Text(name="y", documents=("a",)).sha256


def test_a_stream_is_every_document_with_a_separator(tiny_checkpoint):
    tokenizer = load_tokenizer(tiny_checkpoint)
    stream = token_stream(["Hello there.", "General."], tokenizer, 2)
    assert stream.dtype == np.int32
    assert np.flatnonzero(stream == 2).tolist()[-1] == len(stream) - 1
    parts = np.split(stream, np.flatnonzero(stream == 2) + 1)[:2]
    assert [tokenizer.decode(p[:-1].tolist()) for p in parts] == ["Hello there.", "General."]
    assert len(token_stream(["Hello there.", "General."], tokenizer, None)) == len(stream) - 2


@given(count=st.integers(1, 200), length=st.integers(1, 50))
def test_windows_are_consecutive_and_do_not_overlap(count, length):
    stream = np.arange(count, dtype=np.int32)
    if count < length:
        with pytest.raises(ConfigError, match="--window"):
            windows(stream, length, "x")
        return
    cut = windows(stream, length, "x")
    assert cut.shape == (count // length, length)
    assert (cut.reshape(-1) == stream[: cut.size]).all()


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(FormatError, match="damaged"):
        load_tokenizer(tmp_path)


@given(
    documents=st.lists(st.text(alphabet="ab \n", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=60),
    share=st.sampled_from([0.1, 0.2, 0.25, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_a_split_parts_the_text_and_loses_nothing_but_space(documents: list[str], share: float) -> None:
    text = Text(name="t", documents=tuple(documents))
    try:
        learn, held = split_text(text, share)
    except InputError:
        assert len(documents) < 2 / share
        return
    letters = sorted("".join((*learn.documents, *held.documents)).replace(" ", "").replace("\n", ""))
    assert letters == sorted("".join(documents).replace(" ", "").replace("\n", ""))
    assert all(d.strip() for d in (*learn.documents, *held.documents))


def test_one_long_document_gives_up_its_end_at_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(f"line {i:03d}" for i in range(100)))
    learn, held = load_texts(str(tmp_path / "a.txt"), "split:0.2")
    assert learn.documents[0].endswith("line 079")
    assert held.documents[0].split("\n")[1] == "line 080"
    assert learn.sha256 != held.sha256


def test_many_documents_give_up_every_tenth() -> None:
    text = Text(name="t", documents=tuple(f"d{i}" for i in range(40)))
    assert split_text(text, 0.1)[1].documents == ("d9", "d19", "d29", "d39")


@pytest.mark.parametrize("share", ["0", "0.9", "x", "-1", ""])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match="--heldout split:"):
        load_texts("builtin", f"split:{share}")


class TestSharedShare:
    """What the learning text and the held-out text have in common is seen, however the documents are cut."""

    @staticmethod
    def numbers(first: int, last: int) -> str:
        return " ".join(str(i * i) for i in range(first, last))

    def test_the_same_text_and_a_part_of_it(self) -> None:
        text = Text(name="t", documents=(self.numbers(0, 3000), self.numbers(3000, 6000)))
        assert measure_shared_share(text, text) == 1
        part = Text(name="p", documents=(self.numbers(1000, 2000),))
        assert measure_shared_share(text, part) == 1
        assert measure_shared_share(part, text) < 0.5

    def test_half_of_it(self) -> None:
        text = Text(name="t", documents=(self.numbers(0, 3000),))
        half = Text(name="h", documents=(self.numbers(1000, 2000), self.numbers(900_000, 900_600)))
        assert 0.3 < measure_shared_share(text, half) < 0.7

    def test_the_built_in_texts_and_parts_of_one_text_share_nothing(self) -> None:
        assert measure_shared_share(*load_texts("builtin", "builtin:heldout")) == 0
        assert measure_shared_share(*load_texts("builtin", "split:0.1")) == 0

    def test_short_documents_say_nothing(self) -> None:
        text = Text(name="t", documents=("Yes.", "No."))
        assert measure_shared_share(text, text) == 0


class TestSeveralSources:
    def write(self, folder: Path, name: str, count: int) -> str:
        path = folder / name
        path.write_text("\n%%\n".join(f"{name} {i} " + "word " * 20 for i in range(count)))
        return str(path)

    def test_they_are_one_text_in_order(self, tmp_path: Path) -> None:
        one, other = self.write(tmp_path, "a.txt", 3), self.write(tmp_path, "b.txt", 2)
        text, held = load_texts([one, other], "builtin:heldout")
        assert text.documents == load_text(one).documents + load_text(other).documents
        assert (text.title, held.title) == ("a.txt + b.txt", "builtin:heldout")
        assert load_texts([one], "builtin:heldout")[0] == load_text(one) == load_texts(one, "builtin:heldout")[0]

    def test_one_that_is_named_twice_counts_twice(self, tmp_path: Path) -> None:
        one = self.write(tmp_path, "a.txt", 3)
        text, _ = load_texts([one, one, "builtin"], "builtin:heldout")
        assert text.parts == (load_text(one), load_text(one), load_text("builtin"))
        assert text.documents[:4] == (*load_text(one).documents, load_text("builtin").documents[0])
        assert text.sha256 != load_texts([one, "builtin"], "builtin:heldout")[0].sha256

    def test_a_split_holds_out_a_part_of_every_source_once(self, tmp_path: Path) -> None:
        one, other = self.write(tmp_path, "a.txt", 20), self.write(tmp_path, "b.txt", 40)
        text, held = load_texts([one, other, one], "split:0.1")
        assert [sum(d.startswith(name) for d in held.documents) for name in ("a.txt", "b.txt")] == [2, 4]
        assert [sum(d.startswith(name) for d in text.documents) for name in ("a.txt", "b.txt")] == [18, 36]
        assert [len(part.documents) for part in text.parts] == [18, 36, 18]
        assert not set(text.documents) & set(held.documents)

    def test_what_the_model_writes_is_written_last_and_once(self, tmp_path: Path) -> None:
        one, asked = self.write(tmp_path, "a.txt", 20), []

        def write(name: str, tokens: int) -> Text:
            asked.append((name, tokens))
            return Text(name=name, documents=("written",), written_s=2.0)

        text, held = load_texts([one, "self:100", "self:100", "words"], "split:0.1", write)
        assert asked == [("self:100", 100), ("words", 8192)]
        assert (text.written_s, text.documents[-2:], len(text.parts)) == (4.0, ("written", "written"), 4)
        assert "written" not in held.documents
        with pytest.raises(InputError, match="absent"):
            load_texts(["self", str(tmp_path / "absent.txt")], "builtin:heldout", write)
        assert len(asked) == 2
        with pytest.raises(ConfigError, match="nothing to hold out"):
            load_texts("self", "split:0.1", write)
        with pytest.raises(ConfigError, match="for learn and recover"):
            load_texts("self", "builtin:heldout")

    @pytest.mark.parametrize("source", ["self:", "self:x", "self:0", "self:-3", "self:1.5", "words:many"])
    def test_a_count_that_is_none_is_refused(self, source: str) -> None:
        with pytest.raises(ConfigError, match=r"--data (self|words):.* how many tokens"):
            load_texts(source, "builtin:heldout")

    def test_a_source_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="absent"):
            load_texts(["builtin", str(tmp_path / "absent.txt")], "builtin:heldout")

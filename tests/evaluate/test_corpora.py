"""The published texts: rows as they are, from every place where they may lie."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.errors import ConfigError, DownloadError, FormatError, InputError
from maskpro_deploy.evaluate.published import C4, WIKITEXT2, load_corpus

# as the dataset has them: a row for each line, blank lines as empty rows
ROWS = ["", " = Robert = \n", "", " Robert is an actor . \x85 He plays . \n", " He \u2028 acted . \n", ""]


def write_parquet(path: Path, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path)
    return path


def write_raw(path: Path, rows: list[str]) -> Path:
    path.write_text("".join(row or " \n" for row in rows), encoding="utf-8")
    return path


def test_all_forms_of_the_text_have_the_same_rows(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": row}) for row in ROWS)
    (tmp_path / "test.jsonl").write_text(lines)
    sources = [
        tmp_path / "test.jsonl",
        write_raw(tmp_path / "wiki.test.raw", ROWS),
        write_parquet(tmp_path / "deep" / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet", ROWS),
        tmp_path / "deep",
    ]
    for source in sources:
        text = load_corpus(WIKITEXT2, f"wikitext2={source}")
        assert list(text.documents) == ROWS, source
        assert text == load_corpus(WIKITEXT2, str(source))
        assert text.name.startswith("wikitext2 test (")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"])), min_size=1))
def test_plain_lines_and_rows_are_the_same_text(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "wiki.test.raw").write_bytes("".join(line + "\n" for line in [*lines, "end"]).encode())
    rows = load_corpus(WIKITEXT2, str(folder)).documents
    assert rows == tuple(line + "\n" if line.strip() else "" for line in [*lines, "end"])


def test_c4_is_the_first_documents_of_the_first_validation_shard(tmp_path: Path) -> None:
    documents = [f"document {i}" for i in range(1500)]
    shard = tmp_path / "en" / "c4-validation.00000-of-00008.json.gz"
    shard.parent.mkdir()
    with gzip.open(shard, "wt", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": d, "url": "x"}) + "\n" for d in documents)
    assert list(load_corpus(C4, str(tmp_path)).documents) == documents[:1100]
    assert list(load_corpus(C4, f"c4={shard}").documents) == documents[:1100]
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(FormatError, match="is damaged"):
        load_corpus(C4, str(shard))


def test_a_folder_without_the_split_is_an_error(tmp_path: Path) -> None:
    write_parquet(tmp_path / "wikitext-2-raw-v1" / "train-00000-of-00001.parquet", ROWS)
    with pytest.raises(InputError, match="has no test split of wikitext2"):
        load_corpus(WIKITEXT2, str(tmp_path))


def test_a_text_of_another_protocol_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="reads wikitext2"):
        load_corpus(WIKITEXT2, f"c4={tmp_path}")


def test_empty_rows_alone_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text("\n \n\n")
    with pytest.raises(InputError, match="holds no text"):
        load_corpus(WIKITEXT2, str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder laid out as the dataset on the Hub is: `datasets` opens both by the same code."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "wikitext"
    write_parquet(folder / "wikitext-2-raw-v1" / "test-00000-of-00001.parquet", ROWS)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n"
        "  - split: test\n    path: wikitext-2-raw-v1/test-*\n---\n"
    )
    return folder


def test_a_dataset_laid_out_as_on_the_hub(hub: Path) -> None:
    assert list(load_corpus(WIKITEXT2, f"hub:{hub}").documents) == ROWS


def test_a_split_that_the_dataset_lacks_is_an_error(hub: Path) -> None:
    (hub / "README.md").write_text((hub / "README.md").read_text().replace("split: test", "split: other"))
    with pytest.raises(DownloadError, match=r"could not be loaded: .*test"):
        load_corpus(WIKITEXT2, f"hub:{hub}")


def test_a_dataset_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DownloadError, match="could not be loaded"):
        load_corpus(WIKITEXT2, f"hub:{tmp_path / 'nothing'}")

"""Rows of text from files and from the Hub, as they are: empty rows too.

JSON lines (`.jsonl`, `.json`, either with `.gz`) and Parquet files hold the text under "text"; plain text has no rows.
"""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from importlib.util import find_spec
from pathlib import Path

from maskpro_deploy.errors import DownloadError, FormatError, InputError, first_line
from maskpro_deploy.system.extras import require

_ROW_SUFFIXES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz")


def file_rows(path: Path, first: int | None = None) -> list[str] | None:
    """The rows of a file that has rows, empty ones too; None for plain text.

    Args:
        path: the file.
        first: stop after so many rows.

    Raises:
        InputError: there is no such file.
        FormatError: it is damaged, or has no column "text".
        MissingExtraError: it needs an extra that is not installed.
    """
    if not path.is_file():
        raise InputError(
            f"{path} does not exist or is not a file.\nGive a .txt, .jsonl or .parquet file, `builtin`, or hub:NAME."
        )
    if path.suffix == ".parquet":
        return _read_parquet(path)[:first]
    if path.name.endswith(_ROW_SUFFIXES):
        return _read_jsonl(path, first)
    return None


def read_plain(path: Path) -> str:
    """A text file.

    Raises:
        FormatError: it is not UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise FormatError(f"{path} is not UTF-8 text: {e}") from e


def _read_jsonl(path: Path, first: int | None) -> list[str]:
    documents: list[str] = []
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if first is not None and len(documents) == first:
                    break
                if line.strip():
                    documents.append(_read_row(path, number, line))
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise FormatError(f"{path} is damaged: {e}") from e
    return documents


def _read_row(path: Path, number: int, line: bytes) -> str:
    try:
        text = json.loads(line.decode("utf-8"))["text"]
    except UnicodeDecodeError as e:
        raise FormatError(f"{path} is not UTF-8 text, line {number}: {e}") from e
    except (json.JSONDecodeError, KeyError, TypeError, RecursionError):
        raise FormatError(f'{path}, line {number}: expected a JSON object with a "text".') from None
    if not isinstance(text, str):
        raise FormatError(f'{path}, line {number}: "text" is not a string.')
    return text


def _read_parquet(path: Path) -> list[str]:
    if find_spec("pyarrow") is None:
        require("eval", "reading Parquet files")
    import pyarrow
    import pyarrow.parquet

    try:
        column = pyarrow.parquet.read_table(path, columns=["text"]).column("text")
    except (pyarrow.ArrowException, KeyError) as e:
        raise FormatError(f'{path} is not a Parquet file with a column "text": {e}') from e
    return [str(value) for value in column.to_pylist() if value is not None]


def hub_rows(
    name: str, config: str | None = None, *, split: str, data_files: str | None = None, first: int | None = None
) -> list[str]:
    """The rows of a dataset of the Hugging Face Hub, or of a folder that is laid out like one.

    Args:
        name: of the dataset.
        config: which of its configurations.
        split: which of its splits.
        data_files: only this file of it, as that split.
        first: only so many rows.

    Raises:
        MissingExtraError: datasets is not installed.
        DownloadError: there is no such dataset or split, or it cannot be fetched.
        FormatError: it has no column "text".
    """
    if find_spec("datasets") is None:
        require("eval", "reading a dataset of the Hub")
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it says each of its retries
    try:
        files = None if data_files is None else {split: data_files}
        rows = datasets.load_dataset(name, config, data_files=files, split=split)
        if first is not None:
            rows = rows.select(range(min(first, len(rows))))
        return [str(value) for value in rows["text"]]
    except KeyError:
        raise FormatError(f'hub:{name}:{split} has no column "text".') from None
    except Exception as e:  # the library raises many kinds; all mean that there is no such data here
        raise DownloadError(f"hub:{name}:{split} could not be loaded: {first_line(e)}") from e

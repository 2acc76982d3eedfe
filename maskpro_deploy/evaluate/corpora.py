"""The texts that published perplexities are measured on: from local files as the Hub lays them out, or from the Hub.

Rows are kept as they are, empty ones too: WikiText-2 as the papers' code reads it is its 4,358 test rows joined by blank lines,
and about a third of those rows are empty. Dropping them would give other tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, DownloadError, InputError
from maskpro_deploy.rows import file_rows, hub_rows, read_plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A text of the Hub, and what of it is read."""

    name: str  # what the command line calls it
    title: str  # what people call it
    hub: str  # name of the dataset
    config: str | None  # its configuration, or None
    split: str  # its split
    data_files: str | None = None  # the one file of the split that is read, or None for all
    first: int | None = None  # how many rows are read; None for all
    places: tuple[str, ...]  # where the split is in a local folder, as patterns; the first that fits is read
    rows_are_lines: bool = False  # whether the dataset's rows are the lines of a plain text file


WIKITEXT2 = Corpus(
    name="wikitext2",
    title="WikiText-2 raw",
    hub="Salesforce/wikitext",
    config="wikitext-2-raw-v1",
    split="test",
    places=(
        "wikitext-2-raw-v1/test-*.parquet",
        "test-*.parquet",
        "test.parquet",
        "test.jsonl",
        "wiki.test.raw",
        "wikitext-2-raw/wiki.test.raw",
        "test.txt",
    ),
    rows_are_lines=True,
)
C4 = Corpus(
    name="c4",
    title="C4, first validation shard",
    hub="allenai/c4",
    config=None,
    split="validation",
    data_files="en/c4-validation.00000-of-00008.json.gz",
    first=1100,
    places=(
        "en/c4-validation.00000-of-00008.json.gz",
        "c4-validation.00000-of-00008.json.gz",
        "c4-validation.00000-of-00008.json",
        "validation-*.parquet",
        "validation.parquet",
        "validation.jsonl",
    ),
)


def load_corpus(corpus: Corpus, source: str | None) -> Text:
    """Read a corpus.

    Args:
        corpus: which one.
        source: a file that holds the split, or a folder laid out like the dataset, either with or without `NAME=` before it;
            None fetches it from the Hub.

    Raises:
        InputError: there is no such file, the folder does not hold the split, or the text is empty.
        ConfigError: `source` names another corpus.
        FormatError: the file is damaged.
        DownloadError: the Hub does not give it.
        MissingExtraError: an extra is needed that is not installed.
    """
    if source is None or source.startswith("hub:"):
        name = corpus.hub if source is None else source.removeprefix("hub:")
        try:
            rows = hub_rows(name, corpus.config, split=corpus.split, data_files=corpus.data_files, first=corpus.first)
        except DownloadError as e:
            raise DownloadError(f"{e}\nA copy of your own: --data {corpus.name}=FILE_OR_FOLDER.") from e
        shown = f"hub:{name}"
    else:
        path = _find_split(corpus, _strip_name(corpus, source))
        rows, shown = _read_rows(corpus, path), str(path)
    if not any(row.strip() for row in rows):
        raise InputError(f"{shown} holds no text.")
    return Text(name=f"{corpus.name} {corpus.split} ({shown})", documents=tuple(rows))


def _strip_name(corpus: Corpus, source: str) -> Path:
    name, equals, path = source.partition("=")
    if not equals or Path(source).exists():
        return Path(source)
    if name != corpus.name:
        raise ConfigError(f"--data {source}: this protocol reads {corpus.name}.\nGive --data {corpus.name}=PATH.")
    return Path(path)


def _find_split(corpus: Corpus, path: Path) -> Path:
    """The file that holds the split."""
    if not path.is_dir():
        return path
    for pattern in corpus.places:
        if matches := sorted(path.glob(pattern)):
            return matches[0]
    raise InputError(
        f"{path} has no {corpus.split} split of {corpus.name}: none of {', '.join(corpus.places)} is there.\n"
        f"Give the file itself: --data {corpus.name}=FILE."
    )


def _read_rows(corpus: Corpus, path: Path) -> list[str]:
    rows = file_rows(path, corpus.first)
    if rows is None:
        text = read_plain(path)
        # the dataset's own rule: a row for each line with its line end, blank lines as empty rows
        rows = [line if line.strip() else "" for line in _split_lines(text)] if corpus.rows_are_lines else text.split("\n%%\n")
    return rows[: corpus.first]


def _split_lines(text: str) -> list[str]:
    r"""Lines with their ends, cut at \n alone (str.splitlines also cuts at characters that occur inside the text)."""
    lines = text.split("\n")
    return [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])

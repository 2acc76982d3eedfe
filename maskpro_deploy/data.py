"""Text for learning and measuring: documents, tokens, windows.

A text source is named on the command line:

    builtin             original English prose in eight genres that ships with the package, learning part
    builtin:heldout     its held-out part: every eighth document of each genre, fixed for good
    FILE.txt            plain text, one document; documents may be separated by a line `%%`
    FILE.jsonl          one JSON object a line, the text under "text" (also .json, and compressed: .jsonl.gz, .json.gz)
    FILE.parquet        a column "text" (needs the `eval` extra)
    hub:NAME[:SPLIT]    a dataset of the Hugging Face Hub with a column "text" (needs the `eval` extra)

    self[:TOKENS]       what the model itself writes (see `learn.self_text`), 8192 tokens unless said
    words[:TOKENS]      what it writes from random words of its vocabulary

Several sources are mixed in equal shares, and a short one comes back more often; one that is named twice has two shares. As the
held-out text, `split:SHARE` takes a part of the learning text itself, of every source (see `split_text`).

Shapes: `W` windows, `T` tokens in a window.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from maskpro_deploy.errors import ConfigError, FormatError, InputError
from maskpro_deploy.rows import file_rows, hub_rows, read_plain
from maskpro_deploy.system.files import read_json

BUILTIN = "builtin"
HELD_OUT = "builtin:heldout"
SPLIT = "split:"
SELF, WORDS, WRITTEN_TOKENS = "self", "words", 8192
_AND = " + "  # between the names of several sources
Writer = Callable[[str, int], "Text"]  # of a source's name and a number of tokens: what the model writes
_EXCERPTS, _EXCERPT_LENGTH = 16, 200  # of a held-out text, looked for in the learning text; characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Documents and where they came from."""

    name: str  # the source as the user named it
    documents: tuple[str, ...]  # the texts, in order
    parts: tuple[Text, ...] = ()  # the texts that it mixes, one for each share; none for a text of one source
    written_s: float = 0.0  # seconds that writing it took, where the model itself did

    @property
    def title(self) -> str:
        """The sources without their folders."""
        return _AND.join(Path(source).name for source in self.name.split(_AND))

    @property
    def sha256(self) -> str:
        """Hash of the documents in order, whatever file held them; of a mixture that of its parts."""
        digest = hashlib.sha256(" ".join(part.sha256 for part in self.parts).encode())
        if self.parts:
            return digest.hexdigest()
        for document in self.documents:
            digest.update(document.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def load_text(source: str) -> Text:
    """Read a text source (see the module's table).

    Raises:
        InputError: there is no such file, or it holds no text.
        FormatError: it is damaged, or has no column "text".
        MissingExtraError: it needs an extra that is not installed.
    """
    if source in (BUILTIN, HELD_OUT):
        documents = _read_builtin("learn" if source == BUILTIN else "heldout")
    elif source.startswith("hub:"):
        _, name, *split = source.split(":")
        documents = hub_rows(name, split=split[0] if split else "train")
    elif (rows := file_rows(Path(source))) is not None:
        documents = rows
    else:
        documents = read_plain(Path(source)).split("\n%%\n")
    kept = tuple(d for d in documents if d.strip())
    if not kept:
        raise InputError(f"{source} holds no text.")
    return Text(name=source, documents=kept)


def mix_texts(texts: Sequence[Text]) -> Text:
    """Several texts in equal shares; one alone stays as it is."""
    if len(texts) == 1:
        return texts[0]
    once = {text.name: text for text in texts}.values()
    documents = tuple(d for text in once for d in text.documents)
    name, written_s = _AND.join(text.name for text in texts), sum(text.written_s for text in once)
    return Text(name=name, documents=documents, parts=tuple(texts), written_s=written_s)


def load_texts(learning: str | Sequence[str], heldout: str, write: Writer | None = None) -> tuple[Text, Text]:
    """The text to learn from, of one source or several, and the one to measure on.

    `heldout` may be `split:SHARE`, such as split:0.1; nothing is held out of what the model writes, which `write` makes.

    Raises:
        InputError, FormatError, MissingExtraError: see `load_text`.
        ConfigError: the share is none, there is nothing to hold out, or no model writes here.
    """
    sources = [learning] if isinstance(learning, str) else list(learning)
    written = {source: _count_written(source) for source in sources}
    texts = {source: load_text(source) for source, tokens in written.items() if tokens is None}
    share = _read_share(heldout) if heldout.startswith(SPLIT) else None
    if share is None:
        held = load_text(heldout)
    elif not texts:
        raise ConfigError(
            f"--heldout {heldout} has nothing to hold out of what the model writes itself.\nGive another --heldout."
        )
    else:
        parted = {source: split_text(text, share) for source, text in texts.items()}
        texts, held = (
            {source: rest for source, (rest, _) in parted.items()},
            join_documents([part for _, part in parted.values()]),
        )
    for source, tokens in written.items():
        if tokens is not None and write is None:
            raise ConfigError(f"--data {source} is for learn and recover, where a model writes.")
        if tokens is not None and write is not None:
            texts[source] = write(source, tokens)  # last: all else was looked at
    return mix_texts([texts[source] for source in sources]), held


def join_documents(texts: Sequence[Text]) -> Text:
    """Several texts one after the other."""
    return Text(name=_AND.join(text.name for text in texts), documents=tuple(d for text in texts for d in text.documents))


def _count_written(source: str) -> int | None:
    """Tokens that the model itself is to write for a source; None for one that is read."""
    name, colon, count = source.partition(":")
    if name not in (SELF, WORDS) or Path(source).exists():
        return None
    if not colon:
        return WRITTEN_TOKENS
    if not count.isdecimal() or int(count) < 1:
        raise ConfigError(f"--data {source} does not say how many tokens.\nGive a number, such as {name}:{WRITTEN_TOKENS}.")
    return int(count)


def _read_share(heldout: str) -> float:
    """The share of `split:SHARE` (ConfigError: it is none)."""
    try:
        share = float(heldout.removeprefix(SPLIT))
    except ValueError:
        share = 0.0
    if not 0 < share <= 0.5:
        raise ConfigError(
            f"--heldout {heldout} is not a part of the learning text.\nGive a share of at most a half, such as split:0.1."
        )
    return share


def split_text(text: Text, share: float) -> tuple[Text, Text]:
    """Part a text into one to learn from and one to measure on, the same way every time.

    Of 2 / share documents or more, every (1 / share)-th is held out, so that a collection in some order gives up a bit of
    everything. A text of fewer documents gives up its end, from the next line break (or space) on.

    Raises:
        InputError: one of the parts would be empty.
    """
    documents = list(text.documents)
    every = round(1 / share)
    if len(documents) >= 2 * every:
        held = documents[every - 1 :: every]
        del documents[every - 1 :: every]
    else:
        left = int((1 - share) * sum(map(len, documents)))
        place = 0
        while left > len(documents[place]):
            left -= len(documents[place])
            place += 1
        whole = documents[place]
        cut = next((at for mark in "\n " if (at := whole.find(mark, left)) >= 0), len(whole))
        held = [whole[cut:], *documents[place + 1 :]]
        documents = [*documents[:place], whole[:cut]]
    parts = [tuple(d for d in part if d.strip()) for part in (documents, held)]
    if not all(parts):
        raise InputError(f"{text.name} is too short to hold out {share:g} of it.\nGive more text, or another --heldout.")
    return (
        Text(name=f"{text.name} (less {share:g} held out)", documents=parts[0]),
        Text(name=f"{text.name} ({share:g} held out)", documents=parts[1]),
    )


def measure_shared_share(text: Text, heldout: Text) -> float:
    """Share of the held-out text that the learning text holds too, judged by excerpts spread over it.

    Short excerpts do not count: a sentence that is in both says little.
    """
    total = sum(map(len, heldout.documents))
    excerpts = [_cut_excerpt(heldout.documents, (2 * i + 1) * total // (2 * _EXCERPTS)) for i in range(_EXCERPTS)]
    long_enough = [e for e in excerpts if len(e) >= _EXCERPT_LENGTH // 2]
    shared = sum(any(e in document for document in text.documents) for e in long_enough)
    return shared / max(1, len(long_enough))


def _cut_excerpt(documents: Sequence[str], place: int) -> str:
    """Characters from a place on, counted over all documents, or the last ones of the document that it is in."""
    for document in documents:
        if place < len(document):
            start = max(0, min(place, len(document) - _EXCERPT_LENGTH))
            return document[start : start + _EXCERPT_LENGTH].strip()
        place -= len(document)
    return ""


def _read_builtin(split: str) -> list[str]:
    raw = resources.files("maskpro_deploy.text").joinpath("corpus.jsonl.xz").read_bytes()
    rows = [json.loads(line) for line in lzma.decompress(raw).decode().splitlines()]
    return [row["text"] for row in rows if row["split"] == split]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint or bundle.

    Raises:
        InputError: the folder has no `tokenizer.json`.
        FormatError: the file is damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise InputError(f"{folder} has no tokenizer.json.\nSave the model's fast tokenizer there with transformers.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # the binding raises bare Exception
        raise FormatError(f"{path} is damaged: {e}") from e


def token_stream(documents: Sequence[str], tokenizer: Tokenizer, separator: int | None) -> npt.NDArray[np.int32]:
    """All documents as one stream of tokens, `separator` (the end-of-text token) after each.

    Special tokens are not added: packed windows begin anywhere in a document.
    """
    pieces: list[int] = []
    for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False):
        pieces.extend(encoding.ids)
        if separator is not None:
            pieces.append(separator)
    return np.asarray(pieces, dtype=np.int32)


def windows(stream: npt.NDArray[np.int32], length: int, name: str, stride: int | None = None) -> npt.NDArray[np.int32]:
    """Cut a stream into windows that begin every `stride` (else `length`) tokens; the rest is dropped.  # (tokens,) -> (W, T)

    Raises:
        ConfigError: the stream of the text `name` is shorter than one window.
    """
    if len(stream) < length:
        raise ConfigError(
            f"{name} has {len(stream)} tokens, less than one window of {length}.\nGive more text, or a shorter --window."
        )
    return np.lib.stride_tricks.sliding_window_view(stream, length)[:: stride or length].copy()


def separator_token(folder: Path, tokenizer: Tokenizer) -> int | None:
    """The token that ends a document: `<|endoftext|>` where the vocabulary has it, else the model's end-of-text token."""
    token = tokenizer.token_to_id("<|endoftext|>")
    if token is not None:
        return int(token)
    config = folder / "config.json"
    eos = read_json(config).get("eos_token_id") if config.is_file() else None
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    return int(eos) if eos is not None else None

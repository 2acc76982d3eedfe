"""Text that the dense model writes itself: what it would say, with no other text at hand (`--data self`, `--data words`).

`self`: a chat model writes dialogues: from the opening of a user's turn in its own template it samples what a user may ask (as
MAGPIE does, Xu et al., arXiv 2406.08464) and goes on to its answer; a sample that leaves the template is dropped, an answer that
is too long is cut. Any other model writes documents from the token that separates them. The temperature is 0.7.

`words`: documents at temperature 1, each from a random word of the vocabulary, so that rare words and what belongs to them come
up as often as common ones.

Many samples are drawn at a time. The text is kept in the cache folder under a hash of the model and the settings: a second run,
and a resumed one, reads it.

Shapes: `B` sequences, `T` tokens.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import WORDS, Text, load_text, load_tokenizer, separator_token
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.learn.loading import learning_device
from maskpro_deploy.learn.model.model import faster_dtype
from maskpro_deploy.system.files import atomic_file, cache_folder
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm

log = logging.getLogger(__name__)

FORMAT = "maskpro-deploy/self-text 2"
_TEMPERATURE, _WORDS_TEMPERATURE = 0.7, 1.0  # at 1, answers of a small model fall apart
_BATCH, _SEQUENCE_TOKENS = 64, 100  # the most sequences that are written at a time, and what one gives
_DIALOGUE_TOKENS, _DOCUMENT_TOKENS = 160, 256  # the most of each
_LEAST_QUESTION = 3  # tokens; less is no question
_MARK = "\x00maskpro\x00"  # stands for what a user says, to find the template around it
# a token that begins a word, as byte-level and SentencePiece vocabularies spell it
_WORD = re.compile(r"[\u0120\u2581][^\W\d_]{3,}")
_MOST_EMPTY = 3  # batches in a row that give nothing


def write_text(folder: Path, name: str, tokens: int, *, seed: int = 0, device: str = "auto", progress: Progress = SILENT) -> Text:
    """Let the model of a checkpoint write at least so many tokens, or read what it wrote before.

    Args:
        folder: the dense checkpoint.
        name: of the text, `self` or `words` up to a colon.
        tokens: how many.
        seed: of the samples.
        device: "cpu", "cuda" or "auto".
        progress: updated after every batch.

    Raises:
        CheckFailed: the model writes nothing that can be used.
        InputError: the folder has no tokenizer.
    """
    checkpoint, kind = Checkpoint.open(folder), name.partition(":")[0]
    path = cache_folder() / "self_text" / f"{_key(checkpoint, kind, tokens, seed)}.jsonl"
    if path.is_file():
        log.info("%s is the text that the model wrote before: %s", name, path.name)
        return replace(load_text(str(path)), name=name)
    started = time.monotonic()
    documents = _Writer(checkpoint, seed, learning_device(device)).write(kind, tokens, progress)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps({"text": x}) + "\n" for x in documents), encoding="utf-8")
    return replace(load_text(str(path)), name=name, written_s=time.monotonic() - started)


def _key(checkpoint: Checkpoint, kind: str, tokens: int, seed: int) -> str:
    """Hash of all that decides on the text."""
    files = [checkpoint.folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "" for file in files]
    limits = [
        _TEMPERATURE,
        _WORDS_TEMPERATURE,
        _WORD.pattern,
        _BATCH,
        _SEQUENCE_TOKENS,
        _DIALOGUE_TOKENS,
        _DOCUMENT_TOKENS,
        _LEAST_QUESTION,
    ]
    decides = [FORMAT, __version__, checkpoint.dense_sha256(checkpoint.names), contents, limits, kind, tokens, seed]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


class _Writer:
    """A model that writes."""

    def __init__(self, checkpoint: Checkpoint, seed: int, place: str) -> None:
        from transformers import AutoTokenizer

        self._own = load_tokenizer(checkpoint.folder)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        self._model = load_causal_lm(checkpoint.folder, faster_dtype(place)).to(place)
        self._separator = separator_token(checkpoint.folder, self._own)
        self._seed, self._place, self._batch = seed, place, _BATCH

    def write(self, kind: str, tokens: int, progress: Progress) -> list[str]:
        """Documents of a kind, of so many tokens or more."""
        documents: list[str] = []
        written = empty = 0
        self._batch = min(_BATCH, -(-tokens // _SEQUENCE_TOKENS))
        chats = bool(self._tokenizer.chat_template)
        write_some = self._write_from_words if kind == WORDS else self._write_dialogues if chats else self._write_documents
        devices = [torch.cuda.current_device()] if self._place == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(self._seed)
            while written < tokens:
                made = write_some()
                empty = 0 if made else empty + 1
                if empty == _MOST_EMPTY:
                    raise CheckFailed("the model writes nothing of its own that can be learned from.\nGive a text by --data.")
                documents += made
                written += sum(len(encoding.ids) for encoding in self._own.encode_batch(made, add_special_tokens=False))
                progress.update(min(written, tokens), tokens)
        progress.close()
        return documents

    def _write_documents(self) -> list[str]:
        if self._separator is None:
            raise InputError("the model has no token that begins a document, so it cannot write one.\nGive a text by --data.")
        return self._part(self._sample([self._separator], _DOCUMENT_TOKENS))

    def _write_from_words(self) -> list[str]:
        if not self._words:
            raise InputError("no token of the model's vocabulary begins a word.\nGive another --data.")
        chosen = torch.tensor(self._words)[torch.randint(len(self._words), (self._batch,))]
        before = [] if self._separator is None else [self._separator]
        return self._part(self._sample(before, _DOCUMENT_TOKENS, chosen.to(self._place), _WORDS_TEMPERATURE))

    @cached_property
    def _words(self) -> list[int]:
        """The tokens that begin a word, in order."""
        return sorted(token for piece, token in self._own.get_vocab().items() if _WORD.fullmatch(piece))

    def _part(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The documents in what was written."""
        mark = None if self._separator is None else self._decode([self._separator])
        texts = [self._decode(row) for row in rows]
        parts = (part.strip() for text in texts for part in (text.split(mark) if mark else [text]))
        return [part for part in parts if part]

    def _write_dialogues(self) -> list[str]:
        before, after = self._render([{"role": "user", "content": _MARK}]).split(_MARK)[:2]
        end = self._encode(after)[0] if after else self._separator
        dialogues = []
        for row in self._sample(self._encode(before), _DIALOGUE_TOKENS):
            ends = [i for i, token in enumerate(row) if token == end]
            if not ends or ends[0] < _LEAST_QUESTION:
                continue
            question = self._decode(row[: ends[0]])
            dialogue = before + self._decode(row[: ends[1] + 1] if len(ends) > 1 else row)
            if len(dialogue) > len(asked := self._render([{"role": "user", "content": question}], answer=True)):
                dialogues += [dialogue] if dialogue.startswith(asked) else []
        return dialogues

    def _render(self, messages: Sequence[dict[str, str]], *, answer: bool = False) -> str:
        """Messages in the model's template."""
        text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        return text

    def _encode(self, text: str) -> list[int]:
        return list(self._own.encode(text, add_special_tokens=False).ids)

    def _decode(self, row: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(row, skip_special_tokens=False)
        return text

    def _sample(
        self, opening: Sequence[int], most: int, last: Tensor | None = None, temperature: float = _TEMPERATURE
    ) -> list[list[int]]:  # fmt: skip
        """What the model writes after some tokens, each time another; so many tokens.

        `last (B,)` is one more token that each begins with, and is among those that come back.
        """
        tokens = torch.tensor([list(opening)], dtype=torch.int64, device=self._place).repeat(self._batch, 1)  # (B, T)
        tokens = tokens if last is None else torch.cat([tokens, last[:, None]], dim=1)
        output = self._model.generate(
            tokens, attention_mask=torch.ones_like(tokens), **self._read_once(tokens[:1, :-1]), max_new_tokens=most,
            eos_token_id=None, pad_token_id=0, do_sample=True, temperature=temperature, top_k=0, top_p=1.0,
        )  # fmt: skip
        rows: list[list[int]] = output[:, len(opening) :].tolist()
        return rows

    def _read_once(self, tokens: Tensor) -> dict[str, Any]:
        """The cache of what all sequences begin with, as `generate` takes it.  # (1, T)"""
        from transformers import DynamicCache

        known = inspect.signature(self._model.forward).parameters
        name = next((n for n in ("cache", "past_key_values") if n in known), None)
        if name is None or not tokens.numel():
            return {}
        try:
            cache = DynamicCache(config=self._model.config)
            self._model(tokens, use_cache=True, **{name: cache})
            cache.batch_repeat_interleave(self._batch)
        except (AttributeError, IndexError, NotImplementedError, TypeError, ValueError):  # its cache is of another kind
            return {}
        return {name: cache}

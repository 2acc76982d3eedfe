"""Text that the dense model writes itself: what it would say, with no other text at hand (`--data self`).

A chat model writes dialogues: from the opening of a user's turn in its own template it samples what a user may ask, then its
answer (as MAGPIE does, Xu et al., arXiv 2406.08464). Any other model writes documents from the token that separates them. Samples
are drawn at temperature 0.7, many at a time; turns that do not end within the limits are cut.

The text is kept in the cache folder under a hash of the model and the settings: a second run, and a resumed one, reads it.

Shapes: `B` sequences, `T` tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskpro_deploy._version import __version__
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text, load_text, load_tokenizer, separator_token
from maskpro_deploy.errors import CheckFailed, InputError
from maskpro_deploy.learn.loading import learning_device
from maskpro_deploy.learn.model.model import faster_dtype
from maskpro_deploy.system.files import atomic_file, cache_folder
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.torch_lm import load_causal_lm

log = logging.getLogger(__name__)

FORMAT = "maskpro-deploy/self-text 1"
_TEMPERATURE = 0.7  # at 1, answers of a small model fall apart
_BATCH = 64  # sequences written at a time
_QUESTION_TOKENS, _ANSWER_TOKENS, _DOCUMENT_TOKENS = 48, 96, 256  # the most of each
_LEAST_QUESTION = 3  # tokens; less is no question
_MARK = "\x00maskpro\x00"  # stands for what a user says, to find the template around it
_MOST_EMPTY = 3  # batches in a row that give nothing


def write_text(folder: Path, name: str, tokens: int, *, seed: int = 0, device: str = "auto", progress: Progress = SILENT) -> Text:
    """Let the model of a checkpoint write at least so many tokens, or read what it wrote before.

    Args:
        folder: the dense checkpoint.
        name: of the text.
        tokens: how many.
        seed: of the samples.
        device: "cpu", "cuda" or "auto".
        progress: updated after every batch.

    Raises:
        CheckFailed: the model writes nothing that can be used.
        InputError: the folder has no tokenizer.
    """
    checkpoint = Checkpoint.open(folder)
    path = cache_folder() / "self_text" / f"{_key(checkpoint, tokens, seed)}.jsonl"
    if path.is_file():
        log.info("%s is the text that the model wrote before: %s", name, path.name)
        return replace(load_text(str(path)), name=name)
    started = time.monotonic()
    documents = _Writer(checkpoint, seed, learning_device(device)).write(tokens, progress)
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps({"text": x}) + "\n" for x in documents), encoding="utf-8")
    return replace(load_text(str(path)), name=name, written_s=time.monotonic() - started)


def _key(checkpoint: Checkpoint, tokens: int, seed: int) -> str:
    """Hash of all that decides on the text."""
    files = [checkpoint.folder / name for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")]
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "" for file in files]
    limits = [_TEMPERATURE, _BATCH, _QUESTION_TOKENS, _ANSWER_TOKENS, _DOCUMENT_TOKENS]
    decides = [FORMAT, __version__, checkpoint.dense_sha256(checkpoint.names), contents, limits, tokens, seed]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


class _Writer:
    """A model that writes."""

    def __init__(self, checkpoint: Checkpoint, seed: int, place: str) -> None:
        from transformers import AutoTokenizer

        self._own = load_tokenizer(checkpoint.folder)
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        self._model = load_causal_lm(checkpoint.folder, faster_dtype(place)).to(place)
        self._separator = separator_token(checkpoint.folder, self._own)
        self._seed, self._place = seed, place

    def write(self, tokens: int, progress: Progress) -> list[str]:
        """Documents of so many tokens or more."""
        documents: list[str] = []
        written = empty = 0
        chats = bool(self._tokenizer.chat_template)
        devices = [torch.cuda.current_device()] if self._place == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(self._seed)
            while written < tokens:
                made = self._write_dialogues() if chats else self._write_documents()
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
        start = torch.full((_BATCH, 1), self._separator)
        rows = self._sample(start, torch.ones_like(start), _DOCUMENT_TOKENS, self._separator)
        return [text for row in rows if (text := self._decode(row).strip())]

    def _write_dialogues(self) -> list[str]:
        before, after = self._render([{"role": "user", "content": _MARK}]).split(_MARK)[:2]
        end = self._own.encode(after, add_special_tokens=False).ids[0] if after else self._separator
        opening = torch.tensor([self._own.encode(before, add_special_tokens=False).ids] * _BATCH)
        asked = self._sample(opening, torch.ones_like(opening), _QUESTION_TOKENS, end)
        questions = [self._decode(row).strip() for row in asked if len(row) > _LEAST_QUESTION and row[-1] == end]
        prompts = [self._render([{"role": "user", "content": q}], answer=True) for q in questions if q]
        if not prompts:
            return []
        tokens, mask = self._pad([self._own.encode(p, add_special_tokens=False).ids for p in prompts])
        answers = self._sample(tokens, mask, _ANSWER_TOKENS, end)
        return [
            prompt + self._tokenizer.decode(answer, skip_special_tokens=False)
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer
        ]

    def _render(self, messages: Sequence[dict[str, str]], *, answer: bool = False) -> str:
        """Messages in the model's template."""
        text: str = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)
        return text

    def _decode(self, row: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(row, skip_special_tokens=True)
        return text

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows padded on the left, and their mask.  # (B, T) each"""
        width = max(map(len, rows))
        tokens = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
        return tokens, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])

    def _sample(self, tokens: Tensor, mask: Tensor, most: int, end: int | None) -> list[list[int]]:
        """What the model writes after some tokens, to the token `end` at most, which is included.  # (B, T) each"""
        settings: dict[str, Any] = {"do_sample": True, "temperature": _TEMPERATURE, "top_k": 0, "top_p": 1.0}
        output = self._model.generate(
            tokens.to(self._place), attention_mask=mask.to(self._place), max_new_tokens=most, eos_token_id=end, pad_token_id=0,
            **settings,
        )  # fmt: skip
        rows = []
        for row in output[:, tokens.shape[1] :].tolist():
            ended = row.index(end) + 1 if end in row else len(row)
            rows.append(row[:ended])
        return rows

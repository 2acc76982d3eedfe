"""Protocols by name: the ones that published perplexities were measured with, and the built-in one.

Sources: the evaluation code of Wanda (Sun et al., arXiv 2306.11695: lib/eval.py, lib/data.py) and of MaskLLM (Fang et al., arXiv
2409.17481: eval_llama_ppl.py). Both tokenise the whole test text at once with the tokenizer's own special tokens, cut it into
windows that do not overlap, drop the rest, and take the mean cross-entropy of each window's T - 1 predicted tokens; perplexity is
the exponential of the mean over windows, which is the mean over tokens since all windows have as many.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from maskpro_deploy.data import HELD_OUT, Text, load_text
from maskpro_deploy.errors import check_known
from maskpro_deploy.evaluate.corpora import C4, WIKITEXT2, Corpus, load_corpus
from maskpro_deploy.evaluate.protocol import (
    BOS_RULES,
    BOS_TOKENIZER,
    JOIN_BLANK_LINE,
    JOIN_SPACE,
    JOININGS,
    EvalProtocol,
    Windows,
)

BUILTIN_PROTOCOL, CUSTOM = "builtin", "custom"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProtocol:
    """A protocol and the text that it reads."""

    settings: EvalProtocol  # windows and joining
    corpus: Corpus | None = None  # what it reads; None for the built-in held-out text or a file of the user's
    source: str = ""  # whose code it follows, in words; empty for our own


def _wikitext2(window: int) -> EvalProtocol:
    return EvalProtocol(window=window, joining=JOIN_BLANK_LINE, bos=BOS_TOKENIZER)


_WANDA = "Wanda, lib/eval.py and lib/data.py"
PROTOCOLS: dict[str, NamedProtocol] = {
    BUILTIN_PROTOCOL: NamedProtocol(settings=EvalProtocol()),
    "wikitext2-wanda": NamedProtocol(settings=_wikitext2(2048), corpus=WIKITEXT2, source=_WANDA),
    "wikitext2-wanda-4096": NamedProtocol(settings=_wikitext2(4096), corpus=WIKITEXT2, source=_WANDA),
    "wikitext2-maskllm": NamedProtocol(settings=_wikitext2(4096), corpus=WIKITEXT2, source="MaskLLM, eval_llama_ppl.py"),
    "c4-wanda": NamedProtocol(
        settings=EvalProtocol(window=2048, joining=JOIN_SPACE, bos=BOS_TOKENIZER, max_windows=256), corpus=C4, source=_WANDA
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenProtocol(NamedProtocol):
    """A protocol as it is used: a named one, with what was changed."""

    # of the protocol; CUSTOM if the text is a file of the user's, or more than the number of windows of the built-in one was
    # changed
    name: str
    data: str | None  # where the text comes from, as the user gave it
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # setting -> (as named, as used)

    def load(self) -> Text:
        """The text (see `load_text` and `load_corpus` for what can go wrong)."""
        return load_text(self.data or HELD_OUT) if self.corpus is None else load_corpus(self.corpus, self.data)

    def to_json(self, text: Text, windows: Windows, tokenizer: Tokenizer) -> dict[str, Any]:
        """All facts that belong to a figure."""
        added = tokenizer.encode("", add_special_tokens=True).ids if self.settings.bos == BOS_TOKENIZER else []
        corpus = self.corpus
        return {
            "name": self.name,
            "follows": self.source or None,
            "changed": {key: {"named": was, "used": now} for key, (was, now) in self.changed.items()},
            "data": text.name,
            "data_sha256": text.sha256,
            "corpus": corpus and corpus.title,
            "split": corpus and corpus.split,
            "documents": len(text.documents),
            **self.settings.to_json(),
            "special_tokens": list(added),
            "windows": len(windows.tokens),
            "scored_tokens": windows.total_scored,
            "unread_tokens": windows.unread,
        }


def choose_protocol(name: str, *, data: str | None = None, **overrides: Any) -> ChosenProtocol:
    """A named protocol with some settings changed.

    Args:
        name: of PROTOCOLS.
        data: where the text comes from; None for the protocol's own source.
        overrides: fields of EvalProtocol; None leaves one as it is.

    Raises:
        ConfigError: there is no such protocol, or a setting is out of range.
    """
    check_known("--protocol", name, PROTOCOLS)
    published = PROTOCOLS[name]
    base = published.settings
    given = {key: value for key, value in overrides.items() if value is not None}
    settings = dataclasses.replace(base, **given)
    changed = {key: (getattr(base, key), value) for key, value in given.items() if value != getattr(base, key)}
    if published.corpus is None:  # the number of windows is always stated
        name = name if set(changed) <= {"max_windows"} and data in (None, HELD_OUT) else CUSTOM
        changed = {}
    return ChosenProtocol(
        name=name, settings=settings, corpus=published.corpus, source=published.source, data=data, changed=changed
    )


def describe_protocol(facts: dict[str, Any]) -> str:
    """The facts of `ChosenProtocol.to_json` in one sentence or two."""
    name = facts["name"] if facts["name"] in (BUILTIN_PROTOCOL, CUSTOM) else f"{facts['name']} ({facts['follows']})"
    special = ""
    if facts["bos"] == BOS_TOKENIZER:
        ids = facts["special_tokens"]
        special = f" (token {', '.join(map(str, ids))} once)" if ids else " (it adds none)"
    text = (
        f"{name}, {facts['data']}: {facts['windows']} windows of {facts['window']} tokens, stride {facts['stride']}, "
        f"{JOININGS[facts['joining']]}, {BOS_RULES[facts['bos']]}{special}; {facts['scored_tokens']} tokens scored "
        f"({facts['scored']}), {facts['unread_tokens']} after the last window not read. The mean is taken over scored tokens; "
        "± is one standard error over windows."
    )
    if facts["changed"]:
        changes = [f"{k.replace('_', '-')} {v['used']} instead of {v['named']}" for k, v in facts["changed"].items()]
        text += f"\nChanged from the protocol: {', '.join(changes)}. The figure compares with no published one."
    return text

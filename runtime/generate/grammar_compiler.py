"""Compiling grammars for a vocabulary, and following one token by token.

Each answer walks through its grammar with a `GrammarState`: after every token there is a mask of the tokens that may be next. It
is computed on a thread of its own while the model computes the logits that it is for, as llguidance gives up the interpreter's
lock. An end-of-text token is in the mask only where the grammar may end, and an answer ends where nothing else could
follow.

Shapes: `V` vocabulary.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import MaskProError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.grammars import EXTRA, Grammar, GrammarError, Schema, literal, plain_error, schema_rule
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.system.extras import require

Bools = npt.NDArray[np.bool_]

_KEPT = 32  # compiled grammars
# bounds of one grammar: building it takes about 20 ms at most, a mask 15 ms, its states 40 MB
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    "max_lexer_states": 20_000,
    "verbose_errors": False,
}
_BRANCHES = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")  # schemas by name
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else")
_MOST_LOOKS = 200  # schemas that are compiled to find the one at fault


class StuckError(MaskProError):
    """A grammar got too complex for its limits while an answer was being made."""


class CompiledGrammar:
    """A grammar for one vocabulary, from which any number of answers start."""

    def __init__(self, matcher: Any, vocab_size: int, end_tokens: frozenset[int], pool: ThreadPoolExecutor) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._pool = pool
        self.end_tokens = end_tokens  # stand for the end of an answer

    def start(self) -> GrammarState:
        """The state before the first token."""
        return GrammarState(self._matcher, self._vocab_size, self._pool)


class GrammarState:
    """Where one answer is in its grammar."""

    def __init__(self, prototype: Any, vocab_size: int, pool: ThreadPoolExecutor) -> None:
        self._vocab_size = vocab_size
        self._pool = pool
        self._matcher: Any = None
        self._next: Future[Bools] = pool.submit(self._begin, prototype)

    def allowed(self) -> Bools:
        """True at the tokens that may be next; a StuckError if that took too long to find out.  # (V,)"""
        return self._next.result()

    def accept(self, token: int) -> bool:
        """Go on by a token of those allowed; whether the answer is complete and nothing can follow."""
        self._next.result()
        if not self._matcher.consume_token(token):
            raise StuckError(f"the answer cannot follow its grammar any more: {self._matcher.get_error()}")
        if self._matcher.is_stopped():
            return True
        self._next = self._pool.submit(self._mask)
        return False

    def _begin(self, prototype: Any) -> Bools:
        self._matcher = prototype.deep_copy()
        return self._mask()

    def _mask(self) -> Bools:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not mask.any():
            raise StuckError(f"the answer cannot follow its grammar any more: {self._matcher.get_error() or 'no token fits'}")
        return mask


class GrammarCompiler:
    """Compiles grammars for one vocabulary, one after the other, and keeps the last ones; from any thread."""

    def __init__(self, tokenizer: TextTokenizer, shape: ModelShape) -> None:
        self._tokenizer = tokenizer
        self._shape = shape
        self._kept: OrderedDict[str, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self) -> Future[object]:
        """Bring the vocabulary into llguidance's form: seconds for a large one, in which other threads hardly run."""
        return self._compiling.submit(lambda: self._vocabulary)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The grammar, ready for use; found again by its text.

        Raises:
            GrammarError: it is no grammar, or too large a one.
            MissingExtraError: llguidance is not installed.
        """
        with self._lock:
            if (kept := self._kept.get(grammar.text)) is None:
                kept = self._compile(grammar)
                self._kept[grammar.text] = kept
                if len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(grammar.text)
            return kept

    def submit(self, grammar: Grammar) -> Future[CompiledGrammar]:
        """The same on a thread that does nothing else: many slow grammars hold up each other only."""
        return self._compiling.submit(self.compile, grammar)

    def marker(self, text: str) -> str:
        """A text that a model may know as one special token, as a term of a Lark rule."""
        token = self._tokenizer.token_id(text)
        special = token is not None and self._vocabulary.is_special_token(token)
        return f"<[{token}]>" if special else literal(text)

    @cached_property
    def _compiling(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "maskpro-grammars")

    @cached_property
    def _masks(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "maskpro-masks")

    @cached_property
    def _vocabulary(self) -> Any:
        """The vocabulary in llguidance's form."""
        require(EXTRA, "an answer of a given form")
        from llguidance import LLTokenizer

        size = max(self._shape.vocab_size, self._tokenizer.size)
        return LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=sorted(self._shape.eos_token_ids) or None)

    def _compile(self, grammar: Grammar) -> CompiledGrammar:
        vocabulary = self._vocabulary
        matcher, error = self._try(grammar.text)
        if error:
            for field, schema in grammar.schemas:
                rule = schema_rule(json.loads(schema))
                if alone := self._try(f"start: {rule}\n")[1]:
                    raise GrammarError(alone, field + self._find_fault(json.loads(schema), alone))
            raise GrammarError(error, grammar.field)
        return CompiledGrammar(matcher, self._shape.vocab_size, frozenset(vocabulary.eos_tokens), self._masks)

    def _try(self, text: str) -> tuple[Any, str]:
        """A matcher, and what is wrong with its grammar."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=LLParserLimits(**_LIMITS))
        except (ValueError, UnicodeEncodeError) as e:
            return None, plain_error(str(e))
        return matcher, plain_error(matcher.get_error()) if matcher.is_error() else ""

    def _find_fault(self, root: Schema, error: str) -> str:
        """The part of a schema that makes the same error alone, as ".properties.age"; "" for the whole."""
        place, part, looks = "", root, 0
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root} if isinstance(root, Mapping) else {}
        while isinstance(part, Mapping):
            for name, inner in _parts(part):
                looks += 1
                alone = {**shared, **inner} if isinstance(inner, Mapping) else inner
                if looks <= _MOST_LOOKS and self._try(f"start: {schema_rule(alone)}\n")[1] == error:
                    place, part = place + name, inner
                    shared = {key: value for key, value in shared.items() if not name.startswith(f".{key}.")}
                    break
            else:
                break
        return place


def _parts(schema: Mapping[str, object]) -> list[tuple[str, Schema]]:
    """The schemas directly inside of one, with their places."""
    found: list[tuple[str, object]] = []
    for key in _BRANCHES:
        inner = schema.get(key)
        found += [(f".{key}.{name}", value) for name, value in inner.items()] if isinstance(inner, Mapping) else []
    for key in _LISTS:
        inner = schema.get(key)
        found += [(f".{key}.{i}", value) for i, value in enumerate(inner)] if isinstance(inner, list) else []
    found += [(f".{key}", schema[key]) for key in _SINGLE if key in schema]
    return [(place, value) for place, value in found if isinstance(value, (Mapping, bool))]

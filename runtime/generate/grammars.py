"""Grammars: which tokens may follow, so that an answer is JSON of a schema, matches a pattern, or is one of some choices.

A `Grammar` is text that llguidance compiles for one vocabulary; compiled ones are kept by their text. Each answer walks through it
with a `GrammarState`: after every token there is a mask of the tokens that may be next. The mask is computed on a thread of its own
while the model computes the logits that it is for, as llguidance gives up the interpreter's lock. An end-of-text token is in the mask
only where the grammar may end, and an answer ends by itself where nothing else could follow.

Shapes: `V` vocabulary.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import InputError, MaskProError
from maskpro_deploy.manifest import ModelShape
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.system.extras import require

Bools = npt.NDArray[np.bool_]
Schema = Mapping[str, object] | bool

EXTRA = "structured"
_KEPT = 32  # compiled grammars
# bounds of one grammar: building it takes about 20 ms at most, a mask 15 ms, its states 40 MB
_LIMITS = {"initial_lexer_fuel": 1_000_000, "step_lexer_fuel": 200_000, "max_lexer_states": 20_000, "verbose_errors": False}
# a model that prefers white space to everything else would never come to an end
_WHITE_SPACE = r"[ \n]{0,24}"
_BRANCHES = ("$defs", "definitions", "properties", "patternProperties", "dependentSchemas")  # schemas by name
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else")
_PREFIX = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
_DRAWING = re.compile(r"\s*\d+ \| ")
_LONGEST_ERROR = 500  # characters
_MOST_LOOKS = 200  # schemas that are compiled to find the one at fault


class GrammarError(InputError):
    """A grammar cannot be compiled; `field` says where it was given, and within a schema the part at fault."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class StuckError(MaskProError):
    """A grammar got too complex for its limits while an answer was being made."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may be, in llguidance's form of Lark; `field` and `schema` say what an error should name."""

    text: str
    field: str = ""  # where a request gave it
    schema: str | None = None  # the schema alone, as JSON


def schema_rule(schema: Schema) -> str:
    """A schema as a term of a Lark rule; the settings of llguidance are this server's, whatever the schema says."""
    settings = {"whitespace_flexible": True, "whitespace_pattern": _WHITE_SPACE}
    whole = {**schema, "x-guidance": settings} if isinstance(schema, Mapping) else schema
    # every bool is a schema, too; llguidance wants settings in an object
    return "%json " + json.dumps(whole if isinstance(whole, dict) else {"allOf": [whole], "x-guidance": settings})


def literal(text: str) -> str:
    """A text as a term of a Lark rule."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def schema_grammar(schema: Schema, field: str = "") -> Grammar:
    """JSON that is valid under a schema."""
    return Grammar(f"start: {schema_rule(schema)}\n", field, json.dumps(schema))


def regex_grammar(pattern: str, field: str = "") -> Grammar:
    """A text that a regular expression (of Rust's crate `regex`) matches from its start to its end."""
    require(EXTRA, "an answer of a given form")
    from llguidance import regex_to_lark

    return Grammar(f"start: /{regex_to_lark(pattern)}/\n", field)


def choice_grammar(choices: Sequence[str], field: str = "") -> Grammar:
    """One of some texts."""
    return Grammar("start: " + " | ".join(map(literal, choices)) + "\n", field)


def lark_grammar(text: str, field: str = "") -> Grammar:
    """A text of a grammar in llguidance's form of Lark, or in GBNF; a GrammarError if it is neither."""
    require(EXTRA, "an answer of a given form")
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return Grammar(any_to_lark(text), field)
    except Exception as e:  # the converter raises whatever comes its way
        raise GrammarError(f"the grammar cannot be read: {_plain(str(e))}", field) from e


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
            place = self._find_fault(json.loads(grammar.schema), error) if grammar.schema is not None else ""
            raise GrammarError(error, grammar.field + place)
        return CompiledGrammar(matcher, self._shape.vocab_size, frozenset(vocabulary.eos_tokens), self._masks)

    def _try(self, text: str) -> tuple[Any, str]:
        """A matcher, and what is wrong with its grammar."""
        from llguidance import LLMatcher, LLParserLimits

        try:
            matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=LLParserLimits(**_LIMITS))
        except (ValueError, UnicodeEncodeError) as e:
            return None, _plain(str(e))
        return matcher, _plain(matcher.get_error()) if matcher.is_error() else ""

    def _find_fault(self, root: Schema, error: str) -> str:
        """The part of a schema that makes the same error by itself, as ".properties.age"; "" for the whole."""
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


def _plain(error: str) -> str:
    """An error in one line, without the drawing of its place in a text that the client has not written."""
    lines: list[str] = []
    for line in error.splitlines():
        if _DRAWING.match(line):
            break
        lines.append(line.strip())
    return _PREFIX.sub("", " ".join(filter(None, lines)))[:_LONGEST_ERROR]

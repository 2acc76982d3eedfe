"""What an answer may be: JSON of a schema, a text that matches a pattern, one of some choices, a text of a grammar.

All of them become text in llguidance's form of Lark, which `grammar_compiler` compiles. A client's grammars are counted before
anybody works on them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskpro_deploy.errors import InputError
from maskpro_deploy.system.extras import require

Schema = Mapping[str, object] | bool

EXTRA = "structured"
MAX_GRAMMAR_BYTES = 128 << 10  # of a schema as JSON, a pattern, all choices, a grammar
MAX_DEPTH = 64  # of lists and objects in a schema
MAX_CHOICES = 1024
# JSON is written as Python's json does: a model that may put white space anywhere can go on with it for ever
_SETTINGS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_PREFIX = re.compile(r"^(at )?\d+\(\d+\): (failed to compile JSON schema: )?")
_DRAWING = re.compile(r"\s*\d+ \| ")
_LONGEST_ERROR = 500  # characters


class GrammarError(InputError):
    """A grammar cannot be compiled; `field` says where it was given, and within a schema the part at fault."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer may be, in llguidance's form of Lark."""

    text: str
    field: str = ""  # where a request gave it
    schemas: tuple[tuple[str, str], ...] = ()  # those in it, as JSON, each behind the field that gave it


def schema_rule(schema: Schema) -> str:
    """A schema as a term of a Lark rule; the settings of llguidance are this server's, whatever the schema says."""
    # true and false are schemas, too; llguidance wants settings in an object
    whole = {**schema, "x-guidance": _SETTINGS} if isinstance(schema, Mapping) else {"allOf": [schema], "x-guidance": _SETTINGS}
    return "%json " + json.dumps(whole)


def literal(text: str) -> str:
    """A text as a term of a Lark rule."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def schema_grammar(schema: Schema, field: str = "") -> Grammar:
    """JSON that is valid under a schema."""
    return Grammar(f"start: {schema_rule(schema)}\n", field, ((field, json.dumps(schema)),))


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
        raise GrammarError(f"the grammar cannot be read: {plain_error(str(e))}", field) from e


def check_schema(schema: object, field: str) -> None:
    """Refuse a schema that is too large or too deep (GrammarError)."""
    level = [schema]
    for _ in range(MAX_DEPTH + 1):
        level = [item for value in level for item in _items(value)]
        if not level:
            break
    else:
        raise GrammarError(f"it is nested more than {MAX_DEPTH} deep.", field)
    check_text(json.dumps(schema, ensure_ascii=False), field)


def check_text(text: str, field: str) -> None:
    """Refuse a text that is too long, or that is not Unicode (GrammarError)."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as e:
        raise GrammarError("it holds half of a surrogate pair, which is not a character.", field) from e
    if size > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it has {size} bytes; this server takes {MAX_GRAMMAR_BYTES} at most.", field)


def _items(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def plain_error(error: str) -> str:
    """An error in one line, without the drawing of its place in a text that the client has not written."""
    lines: list[str] = []
    for line in error.splitlines():
        if _DRAWING.match(line):
            break
        lines.append(line.strip())
    return _PREFIX.sub("", " ".join(filter(None, lines)))[:_LONGEST_ERROR]

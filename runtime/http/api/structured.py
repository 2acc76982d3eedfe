"""Answers of a given form: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`, as one grammar.

Everything is counted before a compiler sees it. The functions take what was asked, not a request: other APIs spell it differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictStr
from pydantic_core import from_json, to_json

from maskpro_deploy.runtime.generate.grammars import Grammar, GrammarError, Schema, choice_grammar, lark_grammar, regex_grammar
from maskpro_deploy.runtime.generate.grammars import schema_grammar as grammar_of_schema

MAX_GRAMMAR_BYTES = 128 << 10  # of a schema as JSON, a pattern, all choices, a grammar
MAX_DEPTH = 64  # of lists and objects in a schema
MAX_CHOICES = 1024

_ANY_OBJECT: Schema = {"type": "object"}
# vLLM's names, as fields of `structured_outputs` and, behind "guided_", of the request
_KINDS = ("json", "regex", "choice", "grammar", "json_object")
# what else vLLM takes there, which only tunes its own back ends
_TUNING = ("backend", "disable_fallback", "disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")


class StructuredFields(BaseModel):
    """The fields of a request that say what form its answers have; one of them at most."""

    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | bool | StrictStr | None = None
    guided_regex: StrictStr | None = None
    guided_choice: Annotated[list[StrictStr], Field(fail_fast=True)] | None = None
    guided_grammar: StrictStr | None = None


def find_grammar(asked: StructuredFields) -> Grammar | None:
    """What the answers may be; None for anything. A GrammarError names the field that is at fault."""
    found: dict[str, Grammar] = {}
    if asked.response_format is not None and (grammar := read_response_format(asked.response_format)) is not None:
        found["response_format"] = grammar
    if asked.structured_outputs is not None and (grammar := _read_structured_outputs(asked.structured_outputs)) is not None:
        found["structured_outputs"] = grammar
    for kind in _KINDS:
        if (value := getattr(asked, f"guided_{kind}", None)) is not None:
            found[f"guided_{kind}"] = _read_kind(kind, value, f"guided_{kind}")
    if len(found) > 1:
        first, second, *_ = found
        raise GrammarError(f"an answer has one form: it cannot be used with {first}.", second)
    return next(iter(found.values()), None)


def read_response_format(value: Mapping[str, Any], field: str = "response_format") -> Grammar | None:
    """OpenAI's `response_format`; None for plain text. A GrammarError if it is none, or too large."""
    match value.get("type"):
        case "text":
            return None
        case "json_object":
            return schema_grammar(_ANY_OBJECT, field)
        case "json_schema":
            inner = value.get("json_schema")
            if not isinstance(inner, dict) or not isinstance(inner.get("schema"), (dict, bool)):
                raise GrammarError("a JSON schema is missing.", f"{field}.json_schema.schema")
            return schema_grammar(inner["schema"], f"{field}.json_schema.schema")
    raise GrammarError('it has to be "text", "json_object" or "json_schema".', f"{field}.type")


def schema_grammar(schema: Schema, field: str) -> Grammar:
    """JSON under a client's schema; a GrammarError if it is too large or too deep."""
    check_schema(schema, field)
    return grammar_of_schema(schema, field)


def check_schema(schema: object, field: str) -> None:
    """Refuse a schema that is too large or too deep (GrammarError)."""
    _check_depth(schema, field)
    try:
        size = len(to_json(schema))
    except ValueError as e:  # halves of surrogate pairs
        raise GrammarError("it holds text that is not Unicode.", field) from e
    _check_size(size, field)


def _check_depth(schema: object, field: str) -> None:
    level = [schema]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item for value in level for item in (value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
        ]
        if not level:
            return
    raise GrammarError(f"it is nested more than {MAX_DEPTH} deep.", field)


def _check_size(size: int, field: str) -> None:
    if size > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"it has {size} bytes; this server takes {MAX_GRAMMAR_BYTES} at most.", field)


def _read_structured_outputs(value: Mapping[str, Any]) -> Grammar | None:
    given = {key: item for key, item in value.items() if item is not None and item is not False and key not in _TUNING}
    if not given:
        return None
    if len(given) > 1:
        raise GrammarError(f"an answer has one form: {', '.join(sorted(given))[:200]} cannot be used together.", "structured_outputs")
    ((kind, item),) = given.items()
    if kind not in _KINDS:
        raise GrammarError(f"it is none of {', '.join(_KINDS)}.", f"structured_outputs.{kind[:100]}")
    return _read_kind(kind, item, f"structured_outputs.{kind}")


def _read_kind(kind: str, value: Any, field: str) -> Grammar:
    match kind, value:
        case "json", str():
            _check_size(len(value), field)
            try:
                schema = from_json(value)
            except ValueError as e:
                raise GrammarError(f"it is not valid JSON: {e}", field) from e
            if isinstance(schema, (dict, bool)):
                return schema_grammar(schema, field)
        case "json", dict() | bool():
            return schema_grammar(value, field)
        case "json_object", True:
            return schema_grammar(_ANY_OBJECT, field)
        case "choice", [*choices] if choices and all(isinstance(c, str) and c for c in choices):
            if len(choices) > MAX_CHOICES:
                raise GrammarError(f"it has {len(choices)} choices; this server takes {MAX_CHOICES} at most.", field)
            _check_text("".join(choices), field)
            return choice_grammar(choices, field)
        case ("regex" | "grammar"), str() if value:
            _check_text(value, field)
            return regex_grammar(value, field) if kind == "regex" else lark_grammar(value, field)
    wanted = {"json": "a JSON schema", "choice": "a list of texts, none empty", "json_object": "true"}.get(kind, "a text, not empty")
    raise GrammarError(f"it has to be {wanted}.", field)


def _check_text(text: str, field: str) -> None:
    try:
        _check_size(len(text.encode()), field)
    except UnicodeEncodeError as e:
        raise GrammarError("it holds text that is not Unicode.", field) from e

"""Answers of a given form: OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_*`, as one grammar.

Everything is counted before a compiler sees it. `read_response_format` takes what was asked, not a request: other APIs spell it
differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictStr
from pydantic_core import from_json

from maskpro_deploy.runtime.generate.grammars import (
    MAX_CHOICES,
    Grammar,
    GrammarError,
    Schema,
    check_schema,
    check_text,
    choice_grammar,
    lark_grammar,
    regex_grammar,
    schema_grammar,
)

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
            return _bounded_schema_grammar(inner["schema"], f"{field}.json_schema.schema")
    raise GrammarError('it has to be "text", "json_object" or "json_schema".', f"{field}.type")


def read_text_format(value: Mapping[str, Any]) -> Grammar | None:
    """`text.format` of the Responses API: as `response_format`, with the schema next to its type."""
    field = "text.format"
    if value.get("type") != "json_schema":
        return read_response_format(value, field)
    if not isinstance(schema := value.get("schema"), (dict, bool)):
        raise GrammarError("a JSON schema is missing.", f"{field}.schema")
    return _bounded_schema_grammar(schema, f"{field}.schema")


def _bounded_schema_grammar(schema: Schema, field: str) -> Grammar:
    check_schema(schema, field)
    return schema_grammar(schema, field)


def _read_structured_outputs(value: Mapping[str, Any]) -> Grammar | None:
    given = {key: item for key, item in value.items() if item is not None and item is not False and key not in _TUNING}
    if not given:
        return None
    if len(given) > 1:
        raise GrammarError(
            f"an answer has one form: {', '.join(sorted(given))[:200]} cannot be used together.", "structured_outputs"
        )
    ((kind, item),) = given.items()
    if kind not in _KINDS:
        raise GrammarError(f"it is none of {', '.join(_KINDS)}.", f"structured_outputs.{kind[:100]}")
    return _read_kind(kind, item, f"structured_outputs.{kind}")


def _read_kind(kind: str, value: Any, field: str) -> Grammar:
    match kind, value:
        case "json", str():
            check_text(value, field)
            try:
                schema = from_json(value)
            except ValueError as e:
                raise GrammarError(f"it is not valid JSON: {e}", field) from e
            if isinstance(schema, (dict, bool)):
                return _bounded_schema_grammar(schema, field)
        case "json", dict() | bool():
            return _bounded_schema_grammar(value, field)
        case "json_object", True:
            return schema_grammar(_ANY_OBJECT, field)
        case "choice", [*choices] if choices and all(isinstance(c, str) and c for c in choices):
            if len(choices) > MAX_CHOICES:
                raise GrammarError(f"it has {len(choices)} choices; this server takes {MAX_CHOICES} at most.", field)
            check_text("".join(choices), field)
            return choice_grammar(choices, field)
        case (("regex" | "grammar"), str()) if value:
            check_text(value, field)
            return regex_grammar(value, field) if kind == "regex" else lark_grammar(value, field)
    wanted = {"json": "a JSON schema", "choice": "a list of texts, none empty", "json_object": "true"}.get(
        kind, "a text, not empty"
    )
    raise GrammarError(f"it has to be {wanted}.", field)

"""The OpenAPI document as one page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskpro_deploy.runtime.http.openapi.document import EVENTS, read_event_schema

_TEMPLATE = Path(__file__).with_name("page.html")
Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a schema, in words."""

    name: str
    required: bool
    type: str
    links: tuple[str, ...]  # the schemas that its type names
    default: str
    about: str


def render_page(document: Schema) -> str:
    """The page of a document, as HTML; texts are escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    return template.render(
        info=document["info"],
        keys="securitySchemes" in document["components"],
        tags={tag["name"]: list(_operations_of(document, tag["name"])) for tag in document["tags"]},
        schemas={name: (schema.get("description", ""), list(list_fields(schema))) for name, schema in sorted(schemas.items())},
    )


def _operations_of(document: Schema, tag: str) -> Iterator[dict[str, Any]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield {"method": method.upper(), "path": path, **_describe(operation)}


def _describe(operation: Schema) -> dict[str, Any]:
    """What the template reads of one operation."""
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    answers = [
        (status, answer["description"], [(media, *_name_shape(media, shape)) for media, shape in answer["content"].items()])
        for status, answer in operation["responses"].items()
    ]
    return {
        "id": operation["operationId"],
        "summary": operation["summary"],
        "secured": "security" in operation,
        "request": find_links(body.get("schema", {})),
        "example": json.dumps(body["example"], ensure_ascii=False) if "example" in body else None,
        "answers": answers,
    }


def _name_shape(media: str, content: Schema) -> tuple[str, tuple[str, ...]]:
    """An answer's shape in words, and the schemas that it names; of a stream those of its events."""
    schema = read_event_schema(content["schema"]) if media == EVENTS else content["schema"]
    return name_type(schema), find_links(schema)


def list_fields(schema: Schema) -> Iterator[Field]:
    """The fields of an object, those that have to be there first."""
    required = schema.get("required", ())
    for name, described in sorted(schema.get("properties", {}).items(), key=lambda item: item[0] not in required):
        yield Field(
            name=name,
            required=name in required,
            type=name_type(described),
            links=find_links(described),
            default=json.dumps(described["default"]) if "default" in described else "",
            about=" ".join(filter(None, (described.get("description", ""), _name_limits(described)))),
        )


def name_type(schema: Schema) -> str:
    """A schema in a few words, such as "array of string or null"."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema or "oneOf" in schema:
        return " or ".join(dict.fromkeys(name_type(kind) for kind in schema.get("anyOf") or schema["oneOf"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {name_type(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"object of {name_type(schema['additionalProperties'])}"
    return str(schema.get("type", "anything"))


def find_links(schema: Schema) -> tuple[str, ...]:
    """The names of the schemas that a schema refers to."""
    if "$ref" in schema:
        return (schema["$ref"].rpartition("/")[2],)
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), schema.get("items"), schema.get("additionalProperties")]
    return tuple(dict.fromkeys(link for kind in inner if isinstance(kind, Mapping) for link in find_links(kind)))


def _name_limits(schema: Schema) -> str:
    """Least and most, in words."""
    kinds = (schema, *(kind for kind in schema.get("anyOf", ()) if isinstance(kind, Mapping)))
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "minItems": "{} at least",
        "maxItems": "{} at most",
    }
    limits = [text.format(kind[key]) for key, text in words.items() for kind in kinds if key in kind]
    return f"({' '.join(limits)})" if limits else ""

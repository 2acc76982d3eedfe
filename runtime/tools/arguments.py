"""The arguments that a function declares, and no others.

A schema that does not speak of further properties allows them, but a function that is called with an argument it does not know
fails; and small models go on inventing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# their parts see one object together, or count which of them it is valid under: closing one changes what the whole allows
_COMBINE = frozenset(("allOf", "dependentSchemas", "if", "not", "oneOf"))
# what a schema says itself about properties that it does not name
_SPEAK_OF_OTHERS = frozenset(
    ("$ref", "additionalProperties", "anyOf", "minProperties", "patternProperties", "unevaluatedProperties")
)


def close_objects(schema: Any) -> Any:
    """A schema whose objects have only the properties that it names; whatever is valid under it is valid under the given one.

    Objects without named properties stay open, and so do those that the schema says more about.
    """
    if any(_COMBINE & part.keys() or {"$ref", "properties"} <= part.keys() for part in _walk(schema)):
        return schema
    return _close(schema)


def _close(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    closed: dict[str, Any] = dict(schema)
    for name in ("properties", "$defs", "definitions"):
        if isinstance(parts := schema.get(name), Mapping):
            closed[name] = {key: _close(part) for key, part in parts.items()}
    # next to properties of its own, each of several forms is only a part of the object
    for name in ("prefixItems",) if "properties" in schema else ("prefixItems", "anyOf"):
        if isinstance(parts := schema.get(name), list):
            closed[name] = [_close(part) for part in parts]
    for name in ("items", "additionalProperties"):
        if name in schema:
            closed[name] = _close(schema[name])
    if _names_all(schema) and not _SPEAK_OF_OTHERS & schema.keys():
        closed["additionalProperties"] = False
    return closed


def _names_all(schema: Mapping[str, Any]) -> bool:
    """Whether there are named properties, and all that are required are among them."""
    named, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, Mapping) or not isinstance(required, list):
        return False
    return bool(named) and all(isinstance(name, str) and name in named for name in required)


def _walk(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all objects inside it."""
    if isinstance(schema, Mapping):
        yield schema
    for part in schema.values() if isinstance(schema, Mapping) else schema if isinstance(schema, list) else ():
        yield from _walk(part)

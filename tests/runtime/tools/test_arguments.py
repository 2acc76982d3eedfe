"""A closed schema allows less than the given one, and never nothing."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from maskpro_deploy.runtime.tools.arguments import close_objects

CITY = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def test_arguments_that_are_not_declared_are_refused() -> None:
    closed = close_objects(CITY)
    assert jsonschema_rs.is_valid(closed, {"name": "x"})
    assert jsonschema_rs.is_valid(CITY, {"name": "x", "more": 1})
    assert not jsonschema_rs.is_valid(closed, {"name": "x", "more": 1})
    assert "additionalProperties" not in CITY


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object", "properties": {"c": CITY}}, {"c": {"name": "x", "more": 1}}),
        ({"type": "object", "properties": {"c": {"type": "array", "items": CITY}}}, {"c": [{"name": "x", "more": 1}]}),
        ({"type": "object", "properties": {"c": {"anyOf": [CITY, {"type": "null"}]}}}, {"c": {"name": "x", "more": 1}}),
        ({"$defs": {"C": CITY}, "type": "object", "properties": {"c": {"$ref": "#/$defs/C"}}}, {"c": {"name": "x", "more": 1}}),
        ({"type": "object", "properties": {"a": {}}}, {"b": 1}),
    ],
)
def test_that_holds_wherever_an_object_stands(schema: dict[str, Any], value: object) -> None:
    assert jsonschema_rs.is_valid(schema, value)
    assert not jsonschema_rs.is_valid(close_objects(schema), value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "object"}, {"anything": 1}),
        ({"type": "object", "properties": {}}, {"anything": 1}),
        ({**CITY, "additionalProperties": {"type": "integer"}}, {"name": "x", "more": 1}),
        ({**CITY, "required": ["other"]}, {"other": 1}),
        ({**CITY, "required": []}, {"name": "x"}),
        ({**CITY, "minProperties": 2}, {"name": "x", "more": 1}),
        ({"$defs": {"C": CITY}, "$ref": "#/$defs/C", "properties": {"size": {}}}, {"name": "x", "size": 1}),
        ({**CITY, "patternProperties": {"^x": {}}}, {"name": "x", "x1": 1}),
        ({"allOf": [CITY, {"type": "object", "properties": {"size": {"type": "integer"}}}]}, {"name": "x", "size": 1}),
        ({**CITY, "anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]}, {"name": "x", "a": 1}),
        ({**CITY, "if": {"required": ["size"]}, "then": {"properties": {"size": {"minimum": 1}}}}, {"name": "x", "size": 2}),
    ],
)
def test_what_a_schema_says_itself_stays(schema: dict[str, Any], value: object) -> None:
    assert jsonschema_rs.is_valid(close_objects(schema), value)


@pytest.mark.parametrize(
    "schema", [True, False, {}, {"type": "string"}, {"properties": []}, {**CITY, "required": 5}, {**CITY, "required": [{}]}]
)
def test_what_is_no_object_or_no_schema_stays_as_it_is(schema: object) -> None:
    assert close_objects(schema) == schema


def test_a_value_of_two_forms_does_not_become_one_of_one() -> None:
    schema = {"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert not jsonschema_rs.is_valid(schema, {"a": 1})
    assert not jsonschema_rs.is_valid(close_objects(schema), {"a": 1})

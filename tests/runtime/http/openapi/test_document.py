"""The description of the API is complete, valid and true."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import jsonschema_rs
import pytest
from markupsafe import escape
from starlette.routing import Route
from starlette.testclient import TestClient

from maskpro_deploy.runtime import TextGenerator
from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.openapi.document import build_document
from maskpro_deploy.runtime.http.openapi.operations import OPERATIONS
from maskpro_deploy.runtime.http.openapi.page import render_page
from maskpro_deploy.runtime.http.server import create_app

KEY = "a secret key"


@pytest.fixture(scope="module")
def http(generator: TextGenerator) -> Iterator[TestClient]:
    with TestClient(create_app(generator, ServeConfig(api_key=KEY))) as client:
        yield client


def test_every_route_is_described_and_nothing_else(generator: TextGenerator) -> None:
    served = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in create_app(generator).routes
        if isinstance(route, Route) and route.include_in_schema
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert served == {(operation.method, operation.path) for operation in OPERATIONS}


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("keys", [True, False])
def test_references_lead_somewhere_and_schemas_are_valid(keys: bool) -> None:
    document = build_document(keys=keys)
    for reference in references(document):
        value: Any = document
        for part in reference.removeprefix("#/").split("/"):
            value = value[part]
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.example], ids=lambda o: o.path)
def test_examples_are_answered_as_described(http: TestClient, operation: Any) -> None:
    document = build_document(keys=True)
    kinds = {"components": document["components"]}
    assert operation.request is not None
    jsonschema_rs.validate({"$ref": f"#/components/schemas/{operation.request.__name__}", **kinds}, operation.example)
    answer = http.post(operation.path, json=operation.example, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200
    jsonschema_rs.validate({"$ref": f"#/components/schemas/{operation.answer.__name__}", **kinds}, answer.json())


def test_only_what_is_guarded_asks_for_a_key(http: TestClient) -> None:
    document = http.get("/openapi.json").json()
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method]
        without = http.request(operation.method, operation.path.replace("{name}", "x"), json=operation.example)
        assert (without.status_code == 401) == ("security" in described) == operation.guarded == ("401" in described["responses"])
    open_document = build_document(keys=False)
    assert "securitySchemes" not in open_document["components"]
    assert not any("security" in op for methods in open_document["paths"].values() for op in methods.values())


def test_the_defaults_are_those_of_the_model() -> None:
    document = build_document(keys=False, defaults=ModelDefaults(sampling={"temperature": 0.6}))
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["temperature"]["default"] == 0.6
    assert fields["top_p"]["default"] == 1.0


def test_a_field_may_be_null_unless_it_has_to_be_there() -> None:
    schemas = build_document(keys=False)["components"]["schemas"]
    kinds = {"components": {"schemas": schemas}}
    for name, required in (("ChatRequest", "messages"), ("ResponsesRequest", "input"), ("CompletionRequest", "prompt")):
        example = next(o.example for o in OPERATIONS if o.request is not None and o.request.__name__ == name)
        for field in schemas[name]["properties"]:
            body = {**example, field: None}
            valid = jsonschema_rs.is_valid({"$ref": f"#/components/schemas/{name}", **kinds}, body)
            assert valid == (field != required), field


class Page(HTMLParser):
    """What a page names, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name == "href":
                self.links.append(value or "")
            elif name in ("src", "srcset", "data", "action"):
                self.loads.append(value or "")


def test_the_page_needs_nothing_else_and_its_links_lead_somewhere(http: TestClient) -> None:
    answer = http.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = Page()
    page.feed(answer.text)
    assert page.loads == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "@import" not in answer.text
    assert "url(" not in answer.text
    assert len(page.ids) == len(set(page.ids))
    assert {link for link in page.links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    for operation in OPERATIONS:
        assert operation.path in answer.text
        assert str(escape(operation.summary)) in answer.text
    assert "prefers-color-scheme: dark" in answer.text


def test_texts_of_the_document_are_escaped() -> None:
    document = build_document(keys=False)
    document["info"]["description"] = "<script>alert(1)</script>"
    assert "<script>" not in render_page(document)


def test_without_docs_there_are_none(generator: TextGenerator) -> None:
    with TestClient(create_app(generator, ServeConfig(docs=False))) as client:
        assert {client.get(path).status_code for path in ("/docs", "/openapi.json")} == {404}

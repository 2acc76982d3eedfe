"""The OpenAPI document: requests as the models that check them say, answers as `answers` says.

The server takes more than the document shows: it ignores fields that it does not know, and takes texts for numbers.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from maskpro_deploy._version import __version__
from maskpro_deploy.runtime.generate.model_defaults import ModelDefaults
from maskpro_deploy.runtime.http.api.parsing import unsupported_fields
from maskpro_deploy.runtime.http.api.requests import SAMPLING_FIELDS, Asked
from maskpro_deploy.runtime.http.openapi.answers import ErrorAnswer
from maskpro_deploy.runtime.http.openapi.operations import OPERATIONS, STATUSES, Operation

Schema = dict[str, Any]
_JSON, EVENTS = "application/json", "text/event-stream"
_REF = "#/components/schemas/{model}"
_KEY = "bearer"
_ABOUT = """Text from a language model with N:M sparsity, over OpenAI's routes. Errors have OpenAI's form.

A request field that is null has its default, and one that is unknown is ignored. What would change the answer and is not
supported is refused with 400 and its name: {fields}."""


def build_document(*, keys: bool, defaults: ModelDefaults | None = None) -> Schema:
    """The document of a server that asks for keys or not, with the defaults of its model."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "maskpro-deploy",
            "version": __version__,
            "description": _ABOUT.format(fields=", ".join(f"`{name}`" for name in unsupported_fields())),
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in OPERATIONS)],
        "paths": _list_paths(keys=keys),
        "components": {
            "schemas": _describe_models(defaults or ModelDefaults()),
            "headers": _HEADERS,
            **({"securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}}} if keys else {}),
        },
    }


_HEADERS: Schema = {
    "X-Request-Id": {
        "description": "The request's id: the client's own, if it sent a plain one.", "required": True,
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}},
}  # fmt: skip
_HEADERS_OF = {401: ("X-Request-Id", "WWW-Authenticate"), 503: ("X-Request-Id", "Retry-After")}


def _list_paths(*, keys: bool) -> Schema:
    paths: Schema = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _describe_operation(operation, keys=keys)
    return paths


def _describe_operation(operation: Operation, *, keys: bool) -> Schema:
    guarded = keys and operation.guarded
    statuses = (*operation.errors, *((401,) if guarded else ()))
    described: Schema = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": "_".join([operation.method, *operation.path.replace("{", "").replace("}", "").strip("/").split("/")]),
        "responses": {"200": _describe_success(operation)} | {str(s): _describe_error(operation, s) for s in sorted(statuses)},
    }
    if guarded:
        described["security"] = [{_KEY: []}]
    if "{name}" in operation.path:
        described["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    if operation.request is not None:
        content = {"schema": _refer(operation.request), "example": operation.example}
        described["requestBody"] = {"required": True, "content": {_JSON: content}}
    return described


def _describe_success(operation: Operation) -> Schema:
    """The answer, and the stream in its place if the request says `stream: true`."""
    content: Schema = {_JSON: {"schema": _refer(operation.answer)}} if operation.answer else {"text/plain": {"schema": _TEXT}}
    words = "The answer."
    if operation.events:
        content[EVENTS] = {"schema": _describe_event(operation)}
        words = f"The answer; with `stream: true` server-sent events. {operation.stream}"
    return _describe_response(200, words, content)


def _describe_event(operation: Operation) -> Schema:
    """One event of a stream; OpenAPI 3.1 has no other place for it than that of the whole stream."""
    kinds: list[Schema] = [_refer(kind) for kind in operation.events]
    json_text = {"type": "string", "contentMediaType": _JSON, "contentSchema": {"anyOf": kinds}}
    if operation.typed_events:
        return {"type": "object", "required": ["event", "data"], "properties": {"event": _TEXT, "data": json_text}}
    kinds.append(_refer(ErrorAnswer))
    return {"type": "object", "required": ["data"], "properties": {"data": {"anyOf": [json_text, {"const": "[DONE]"}]}}}


def read_event_schema(schema: Schema) -> Schema:
    """What the JSON of an event is like, from the schema of an event."""
    data: Schema = schema["properties"]["data"]
    shape: Schema = data.get("anyOf", [data])[0]["contentSchema"]
    return shape


def _describe_error(operation: Operation, status: int) -> Schema:
    kind = operation.unready if status == 503 else ErrorAnswer
    described = _describe_response(status, STATUSES[status], {_JSON: {"schema": _refer(kind)}})
    if status == 503 and kind is not ErrorAnswer:
        del described["headers"]["Retry-After"]
    return described


def _describe_response(status: int, words: str, content: Schema) -> Schema:
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _HEADERS_OF.get(status, ("X-Request-Id",))}
    return {"description": words, "headers": headers, "content": content}


_TEXT: Schema = {"type": "string"}


def _refer(model: type) -> Schema:
    return {"$ref": _REF.format(model=model.__name__)}


def _describe_models(defaults: ModelDefaults) -> Schema:
    """The schemas of all requests and answers, by name."""
    requests = [o.request for o in OPERATIONS if o.request is not None]
    models: list[type[BaseModel]] = [ErrorAnswer, *requests]
    for operation in OPERATIONS:
        models += [*((operation.answer,) if operation.answer is not None else ()), *operation.events]
    _, whole = models_json_schema([(model, "validation") for model in dict.fromkeys(models)], ref_template=_REF)
    schemas: Schema = whole["$defs"]
    asked = {kind.__name__ for kind in _subclasses(Asked)}
    for name, schema in schemas.items():
        schema.pop("title", None)
        for field, described in schema.get("properties", {}).items():
            described.pop("title", None)
            if described.get("default", ...) is None:
                del described["default"]
            if name in asked and field not in schema.get("required", ()):
                schema["properties"][field] = _allow_null(described)
    for request in requests:
        _set_defaults(schemas[request.__name__]["properties"], defaults)
    return schemas


def _subclasses(kind: type) -> set[type]:
    return {kind}.union(*map(_subclasses, kind.__subclasses__()))


def _allow_null(schema: Schema) -> Schema:
    """A field of a request may be null, which means its default."""
    null = {"type": "null"}
    if null in schema.get("anyOf", ()):
        return schema
    beside: Schema = {key: schema[key] for key in ("default", "description") if key in schema}
    return {"anyOf": [{key: value for key, value in schema.items() if key not in beside}, null], **beside}


def _set_defaults(properties: Schema, defaults: ModelDefaults) -> None:
    """What a request gets that does not say."""
    for name, parameter in SAMPLING_FIELDS.items():
        default: object = defaults.sampling.get(name, parameter.default)
        if name in properties and isinstance(default, (bool, int, float)):
            properties[name]["default"] = default

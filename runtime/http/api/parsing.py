"""Reading a request's body.

A body is counted before it is validated (`limits`), and validation stops at the first error in a list. A field that is null has
its default, as with OpenAI. A field that is unknown is ignored (clients send new ones) and logged once. A known field
that would change the answer, but is not supported, is an error: it is never silently dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from maskpro_deploy.runtime.http.api.errors import ApiError, invalid_request
from maskpro_deploy.runtime.http.api.limits import RequestLimits

log = logging.getLogger(__name__)

# known fields that change the answer and that this server does not do -> the values that ask for nothing
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),  # of chats only
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "suffix": ("",),
    "best_of": (1,),
    "use_beam_search": (False,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "continue_final_message": (False,),
    "documents": ([],),
}
_logged: set[str] = set()
_SHORT = 1 << 16  # bytes of a body
_LONGEST_NAME = 100  # characters of a field's name that an error repeats

R = TypeVar("R", bound=BaseModel)


def parse(kind: type[R], body: bytes, limits: RequestLimits) -> R:
    """Read a request.

    Raises:
        ApiError: it is not a JSON object, holds too much, a field has the wrong type, or an unsupported field is used.
    """
    limits.check_structure(body)
    try:
        value = from_json(body, allow_inf_nan=False, cache_strings=len(body) <= _SHORT)  # a long body would fill the cache
    except ValueError as e:
        raise invalid_request(f"the body is not valid JSON: {e}", "invalid_json") from e
    if not isinstance(value, dict):
        raise invalid_request("the body has to be a JSON object.", "invalid_json")
    limits.check(value)
    if value.get("tool_choice") == "none":  # then tools are not to be used, whatever they are
        value.pop("tools", None)
    for field, harmless in _UNSUPPORTED.items():
        if field not in kind.model_fields and value.get(field) is not None and value[field] not in harmless:
            raise invalid_request(f"{field} is not supported by this server.", "unsupported_parameter", field)
    try:
        request = kind.model_validate(value)
    except ValidationError as e:
        raise _to_api_error(e) from e
    _log_unknown(request.model_extra or {})
    return request


def unsupported_fields() -> tuple[str, ...]:
    """The known fields that are refused if they ask for something."""
    return tuple(_UNSUPPORTED)


def _to_api_error(error: ValidationError) -> ApiError:
    """What is wrong, in one line: of a field that may be of several types, the error that is deepest inside."""
    first = max(error.errors(include_url=False, include_context=False, include_input=False), key=lambda e: len(e["loc"]))
    # a union names its own members after the field: only the field is of use to the reader
    parts = [str(part)[:_LONGEST_NAME] for part in first["loc"] if part not in ("str", "int", "[key]")]
    field = ".".join([part for part in parts if not part.startswith("list[")][:3]) or None
    message = first["msg"].removeprefix("Value error, ")
    return invalid_request(f"{field}: {message}" if field else message, "invalid_value", field)


def _log_unknown(fields: Mapping[str, object]) -> None:
    for field in fields.keys() - _logged - _UNSUPPORTED.keys():
        if len(_logged) < 100:
            _logged.add(field)
            log.info("ignoring the unknown request field %r", field[:64])

"""The functions that a request offers, and whether one has to be called.

Both spellings are read: OpenAI's chats nest a function, `{"type": "function", "function": {"name": ...}}`, its responses do not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maskpro_deploy.runtime.generate.grammars import GrammarError, Schema, check_schema

MAX_TOOLS = 128
AUTO, NONE, REQUIRED = "auto", "none", "required"
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_NO_PARAMETERS: Schema = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that may be called."""

    name: str
    parameters: Schema
    strict: bool  # whether its arguments have to be valid, however it comes to be called
    field: str  # where the request gave its parameters
    definition: Mapping[str, Any]  # what a chat template reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Functions of which the model may call one, or has to."""

    functions: tuple[Function, ...]  # those that may be called
    required: bool = False  # whether an answer is a call
    parallel: bool = True  # whether it may be several
    definitions: tuple[Mapping[str, Any], ...] = ()  # what a chat template reads; also of those that may not be called

    @property
    def names(self) -> frozenset[str]:
        """Their names."""
        return frozenset(f.name for f in self.functions)


def read_offer(tools: Sequence[Any] | None, choice: object = None, *, parallel: bool = True) -> Offer | None:
    """What `tools` and `tool_choice` of a request say; None where nothing may be called.

    Args:
        tools: the request's tools.
        choice: "auto", "none", "required" or a named function; None is "auto".
        parallel: whether an answer may hold several calls.

    Raises:
        GrammarError: a tool is no function, or too large; or the choice is not one of them.
    """
    if not tools:
        if choice not in (None, AUTO, NONE):
            raise GrammarError("there are no tools to choose from.", "tool_choice")
        return None
    if len(tools) > MAX_TOOLS:
        raise GrammarError(f"it has {len(tools)} tools; this server takes {MAX_TOOLS} at most.", "tools")
    check_schema(list(tools), "tools")
    functions = tuple(_read_function(tool, f"tools.{i}") for i, tool in enumerate(tools))
    names = [f.name for f in functions]
    if len(set(names)) < len(names):
        raise GrammarError("two functions have the same name.", "tools")
    if choice == NONE:
        return None
    definitions = tuple(f.definition for f in functions)
    if choice is None or choice in (AUTO, REQUIRED):
        return Offer(functions=functions, required=choice == REQUIRED, parallel=parallel, definitions=definitions)
    chosen = _read_named(choice)
    if chosen not in names:
        raise GrammarError(f"{chosen!r} is not among the tools.", "tool_choice")
    one = functions[names.index(chosen)]
    return Offer(functions=(one,), required=True, parallel=False, definitions=definitions)


def _read_function(tool: Any, field: str) -> Function:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else None
        raise GrammarError(f"tools of the type {str(kind)[:40]!r} are not supported: this server knows functions.", field)
    nested = isinstance(tool.get("function"), dict)
    inner, field = (tool["function"], f"{field}.function") if nested else (tool, field)
    name, parameters = inner.get("name"), inner.get("parameters")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise GrammarError("a name has 1 to 64 letters, digits, dots, dashes and underscores.", f"{field}.name")
    if parameters is not None and not isinstance(parameters, dict):
        raise GrammarError("they have to be a JSON schema.", f"{field}.parameters")
    if isinstance(parameters, dict) and parameters.get("type", "object") != "object":
        raise GrammarError("the arguments of a function are an object.", f"{field}.parameters.type")
    definition = tool if nested else {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
    return Function(
        name=name,
        parameters={"type": "object", **parameters} if parameters else _NO_PARAMETERS,
        strict=inner.get("strict") is True,
        field=f"{field}.parameters",
        definition=definition,
    )


def _read_named(choice: object) -> str:
    if isinstance(choice, dict) and choice.get("type") == "function":
        inner = choice.get("function", choice)
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return str(inner["name"])[:100]
    raise GrammarError('it has to be "auto", "none", "required" or a function by its name.', "tool_choice")

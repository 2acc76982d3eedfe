"""Calls of functions over HTTP: what a request offers with the model's way of calling, and calls in OpenAI's shape.

Nothing here knows a request's class: chats and responses spell the same differently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import Grammar, GrammarError
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.api.formats import Json
from maskpro_deploy.runtime.tools.formats import ToolFormat, find_format
from maskpro_deploy.runtime.tools.grammar import find_call_grammar
from maskpro_deploy.runtime.tools.offers import Offer, read_offer
from maskpro_deploy.runtime.tools.reader import CallPiece, CallReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """The functions that an answer may call, and how this model calls."""

    offer: Offer
    form: ToolFormat
    marker_is_special: bool  # whether the texts of answers leave the marker out, unless told otherwise

    @classmethod
    def find(
        cls, tools: Sequence[Any] | None, choice: object, tokenizer: TextTokenizer, *, parallel: bool = True
    ) -> ToolUse | None:
        """What `tools` and `tool_choice` of a request say; None where nothing may be called.

        Raises:
            GrammarError: they are not in order.
            InputError: this model cannot call functions.
        """
        offer = read_offer(tools, choice, parallel=parallel)
        if offer is None:
            return None
        form = find_format(tokenizer)
        token = tokenizer.token_id(form.marker) if form.marker else None
        return cls(offer=offer, form=form, marker_is_special=token is not None and not tokenizer.decode([token]))

    def find_grammar(self, compiler: GrammarCompiler, answer: Grammar | None) -> Grammar | None:
        """What answers may be; one that is no call has to be `answer`, which is of a JSON schema, or None for any text.

        Raises:
            GrammarError: it is of another kind.
        """
        other = None
        if answer is not None:
            if not answer.schemas:
                raise GrammarError("it cannot be used with tools.", answer.field)
            ((_, schema),) = answer.schemas
            other = json.loads(schema)
        return find_call_grammar(self.offer, self.form, compiler.marker, other)

    def show_marker(self, params: SamplingParams) -> SamplingParams:
        """The sampling parameters under which the marker is in the text."""
        return replace(params, skip_special_tokens=False) if self.marker_is_special else params

    def reader(self) -> CallReader:
        """A reader for one answer."""
        return CallReader(self.form, self.offer.names)


def stream_calls(reader: CallReader, text: str, reason: str | None) -> tuple[Json, str | None]:
    """More text of an answer as OpenAI's delta, which may be empty, and why the answer ended, if it did."""
    piece = reader.add(text)
    content, calls = piece.content, piece.calls
    if reason is not None:
        rest = reader.finish()
        content, calls, reason = content + rest.content, calls + rest.calls, reader.finish_reason(reason)
    delta: Json = {}
    if content:
        delta["content"] = content
    if calls:
        delta["tool_calls"] = [_delta(call) for call in calls]
    return delta, reason


def collect_calls(reader: CallReader, text: str, reason: str) -> tuple[Json, str]:
    """The content and the calls of a whole answer, as fields of OpenAI's message, and why it ended."""
    first, rest = reader.add(text), reader.finish()
    content = first.content + rest.content
    calls = [
        {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in first.calls + rest.calls
    ]
    message: Json = {"content": content if content or not calls else None}
    return message | ({"tool_calls": calls} if calls else {}), reader.finish_reason(reason)


def calls_for_template(calls: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Earlier calls as chat templates read them: with arguments as an object, where they are the JSON of one."""
    return [_with_object(call) for call in calls]


def _with_object(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _delta(call: CallPiece) -> Json:
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}

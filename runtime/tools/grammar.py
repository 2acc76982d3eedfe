"""Calls as a grammar: what a model has to write to call a function, with arguments that are valid.

Where a call is required, the answer is nothing else. Where it is not, the answer is free text, or from the marker on a call whose
arguments are valid if the function is strict.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from maskpro_deploy.runtime.generate.grammars import Grammar, Schema, literal, schema_rule
from maskpro_deploy.runtime.tools.arguments import close_objects
from maskpro_deploy.runtime.tools.formats import ToolFormat
from maskpro_deploy.runtime.tools.offers import Offer

_ANY_OBJECT: Schema = {"type": "object"}


def find_call_grammar(
    offer: Offer, form: ToolFormat, marker_rule: Callable[[str], str], other: Schema | None = None
) -> Grammar | None:
    """The grammar of answers to an offer; None where any text will do.

    Args:
        offer: the functions.
        form: how the model writes calls.
        marker_rule: a marker as a term of a rule (`GrammarCompiler.marker`).
        other: what an answer that is no call has to be; None for any text.
    """
    if not offer.required and offer.parallel and other is None and not any(f.strict for f in offer.functions):
        return None
    calls = _call_rules(offer, form, marker_rule)
    if offer.required:
        start = "start: marker first calls last\nmarker: " + (marker_rule(form.marker) if form.marker else '""')
    elif other is not None:
        start = f"start: marker first calls last | other\nother: {schema_rule(other)}\nmarker: "
        start += marker_rule(form.marker) if form.marker else '""'
    else:
        start = _free_start(form, marker_rule)
    used = tuple((f.field, json.dumps(f.parameters)) for f in offer.functions if offer.required or f.strict)
    schemas = (*used, *((("response_format", json.dumps(other)),) if other is not None else ()))
    return Grammar(f"{start}\n{calls}", "tools", schemas)


def _free_start(form: ToolFormat, marker_rule: Callable[[str], str]) -> str:
    """Free text, or what leads to calls."""
    if not form.marker:  # a call begins with a brace, so no other text may
        return "start: first calls last | FREE\nFREE: /[^{\\s](.|\\n)*/"
    marker = marker_rule(form.marker)
    if marker.startswith("<["):
        return f"start: TEXT | opened first calls last\nopened: TEXT {marker}\nTEXT: /(.|\\n)*/"
    return f"start: TEXT | opened first calls last\nopened[lazy]: TEXT {marker}\nTEXT: /(.|\\n)*/"


def _call_rules(offer: Offer, form: ToolFormat, marker_rule: Callable[[str], str]) -> str:
    rules = ["calls: call (again call)*" if offer.parallel else "calls: call"]
    rules.append("call: " + " | ".join(f"call{i}" for i in range(len(offer.functions))))
    for i, function in enumerate(offer.functions):
        head = literal(f'{{"name": "{function.name}", "{form.arguments}": ')
        schema = close_objects(function.parameters) if offer.required or function.strict else _ANY_OBJECT
        rules += [f"call{i}: {head} arguments{i} {literal('}' + form.after)}", f"arguments{i}: {schema_rule(schema)}"]
    # the marker stands between calls, too, where each has its own
    again = [literal(part) if part != form.marker else marker_rule(part) for part in _split(form.again, form.marker)]
    rules.append(f"again: {' '.join(again)}")
    rules += [f"first: {literal(form.first)}", f"last: {literal(form.last)}"]
    return "\n".join(rules) + "\n"


def _split(text: str, marker: str) -> list[str]:
    """A text in pieces, of which those that are the marker stand alone."""
    if not marker or marker not in text:
        return [text]
    before, _, after = text.partition(marker)
    return [part for part in (before, marker, after) if part]

"""How models write calls, told by their chat template and their vocabulary.

A new format is one more entry of `TOOL_FORMATS`: the texts around the JSON of a call, and what gives it away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """The texts around calls, each of which is an object with "name" and `arguments`."""

    name: str
    marker: str  # begins calls, perhaps as one special token; "" where the answer itself is one
    first: str = ""  # between the marker and the first call
    after: str = ""  # follows a call
    again: str = ""  # leads from what follows a call to the next one
    last: str = ""  # follows the last call
    arguments: str = "arguments"  # the key of the arguments
    fits: Callable[[str, TextTokenizer], bool]  # whether a model with this template and this vocabulary writes so


def _is_hermes(template: str, tokenizer: TextTokenizer) -> bool:
    # some templates put another language than JSON between the same marks
    return "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template


def _is_mistral(template: str, tokenizer: TextTokenizer) -> bool:
    # newer ones put the name before "[ARGS]"
    return "[TOOL_CALLS]" in template and "[ARGS]" not in template


def _is_llama(template: str, tokenizer: TextTokenizer) -> bool:
    return '"parameters"' in template and '"name"' in template


TOOL_FORMATS: tuple[ToolFormat, ...] = (  # the first that fits counts
    ToolFormat(name="mistral", marker="[TOOL_CALLS]", first="[", again=", ", last="]", fits=_is_mistral),
    ToolFormat(
        name="hermes",
        marker="<tool_call>",
        first="\n",
        after="\n</tool_call>",
        again="\n<tool_call>\n",
        fits=_is_hermes,
    ),
    ToolFormat(name="llama3_json", marker="", again="; ", arguments="parameters", fits=_is_llama),
)


def find_format(tokenizer: TextTokenizer) -> ToolFormat:
    """How the model of this tokenizer writes calls; an InputError if it cannot call functions, or in no known way."""
    template = tokenizer.tool_template
    if template is None:
        raise InputError("this model cannot call tools: its chat template does not read them.")
    found = next((form for form in TOOL_FORMATS if form.fits(template, tokenizer)), None)
    if found is None:
        known = ", ".join(form.name for form in TOOL_FORMATS)
        raise InputError(f"the chat template reads tools, but how this model writes calls is not known here ({known} are).")
    return found

"""The grammar of calls lets through what a model of each format writes, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tool_models import tool_bundle, tool_template

from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime import RuntimeConfig, TextGenerator, load
from maskpro_deploy.runtime.generate.chat_template import ChatTemplate
from maskpro_deploy.runtime.generate.grammars import Grammar, GrammarError
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.tools.formats import TOOL_FORMATS, ToolFormat, find_format
from maskpro_deploy.runtime.tools.grammar import find_call_grammar
from maskpro_deploy.runtime.tools.offers import Offer, read_offer

PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/small"}},
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "minimum": 0, "maximum": 9}},
}
NAMES = [form.name for form in TOOL_FORMATS]


def offer(choice: object = None, *, strict: bool = False, parallel: bool = True) -> Offer:
    functions = [{"name": name, "parameters": PARAMETERS, "strict": strict} for name in ("get", "set_it")]
    found = read_offer([{"type": "function", "function": f} for f in functions], choice, parallel=parallel)
    assert found is not None
    return found


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextGenerator]:
    with load(
        tool_bundle(tmp_path_factory.mktemp(request.param), request.param), RuntimeConfig(threads=1, provider="cpu")
    ) as made:
        yield made


@pytest.fixture(scope="module")
def form(model: TextGenerator) -> ToolFormat:
    return find_format(model.tokenizer)


def write(form: ToolFormat, *calls: tuple[str, object]) -> str:
    objects = [json.dumps({"name": name, form.arguments: given}) + form.after for name, given in calls]
    return form.marker + form.first + form.again.join(objects) + form.last


def follows(model: TextGenerator, grammar: Grammar | None, text: str) -> bool:
    """Whether a grammar lets a text through, and may end after it."""
    assert grammar is not None
    compiled = model.grammars.compile(grammar)
    state = compiled.start()
    tokens = model.tokenizer.encode(text)
    for read, token in enumerate(tokens, 1):
        if not state.allowed()[token]:
            return False
        if state.accept(token):
            return read == len(tokens)
    return bool(state.allowed()[list(compiled.end_tokens)].any())


def grammar(model: TextGenerator, form: ToolFormat, offered: Offer, other: Any = None) -> Grammar | None:
    return find_call_grammar(offered, form, model.grammars.marker, other)


def test_each_template_tells_its_format(model: TextGenerator, form: ToolFormat) -> None:
    assert form.name in NAMES
    assert model.tokenizer.tool_template == tool_template(form.name)


def test_a_required_call_is_the_whole_answer(model: TextGenerator, form: ToolFormat) -> None:
    required = grammar(model, form, offer("required"))
    assert follows(model, required, write(form, ("get", {"a": 1})))
    assert follows(model, required, write(form, ("get", {"a": 1}), ("set_it", {"a": 9})))
    wrong_calls = (("get", {"a": 10}), ("get", {}), ("get", {"a": 1, "more": 1}), ("other", {"a": 1}))
    for wrong in ("text", *(write(form, call) for call in wrong_calls)):
        assert not follows(model, required, wrong)


def test_a_named_function_is_called_once(model: TextGenerator, form: ToolFormat) -> None:
    named = grammar(model, form, offer({"type": "function", "function": {"name": "set_it"}}))
    assert follows(model, named, write(form, ("set_it", {"a": 1})))
    assert not follows(model, named, write(form, ("get", {"a": 1})))
    assert not follows(model, named, write(form, ("set_it", {"a": 1}), ("set_it", {"a": 2})))


def test_free_answers_are_text_or_strict_calls(model: TextGenerator, form: ToolFormat) -> None:
    free = grammar(model, form, offer(strict=True))
    assert follows(model, free, "Any text: <b> [1] é\n\n}")
    assert follows(model, free, write(form, ("get", {"a": 1}), ("set_it", {"a": 9})))
    assert not follows(model, free, write(form, ("get", {"a": 10})))
    if form.marker:
        assert follows(model, free, "I look: " + write(form, ("get", {"a": 1})))
        assert not follows(model, free, "I look: " + write(form, ("get", {"b": 1})))


def test_without_strict_functions_any_text_will_do(model: TextGenerator, form: ToolFormat) -> None:
    assert grammar(model, form, offer()) is None
    single = grammar(model, form, offer(parallel=False))
    assert follows(model, single, write(form, ("get", {"b": [1]})))
    assert not follows(model, single, write(form, ("get", {"a": 1}), ("get", {"a": 1})))


def test_an_answer_of_a_schema_or_a_call(model: TextGenerator, form: ToolFormat) -> None:
    both = grammar(model, form, offer(strict=True), {"type": "array", "items": {"type": "boolean"}})
    assert follows(model, both, "[true, false]")
    assert follows(model, both, write(form, ("get", {"a": 1})))
    assert not follows(model, both, "text")


def test_parameters_at_fault_are_named(model: TextGenerator, form: ToolFormat) -> None:
    bad = read_offer(
        [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}], "required"
    )
    assert bad is not None
    made = grammar(model, form, bad)
    assert made is not None
    with pytest.raises(GrammarError, match=r"^tools.0.function.parameters.properties.a: Unimplemented keys"):
        model.grammars.compile(made)


def test_a_template_without_tools_or_of_an_unknown_format_is_refused(text_tokenizer: TextTokenizer, sparse_bundle: Path) -> None:
    with pytest.raises(InputError, match="cannot call tools"):
        find_format(text_tokenizer)
    unknown = TextTokenizer(text_tokenizer._tokenizer, ChatTemplate(tool_template("unknown"), {}))
    with pytest.raises(InputError, match="not known here"):
        find_format(unknown)
    two = TextTokenizer(text_tokenizer._tokenizer, ChatTemplate("{{ messages }}", {}), ChatTemplate(tool_template("hermes"), {}))
    assert find_format(two).name == "hermes"
    assert two.render([{"role": "user", "content": "x"}]) != two.render([{"role": "user", "content": "x"}], tools=[{"a": 1}])

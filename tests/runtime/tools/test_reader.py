"""Calls are found in any text, however it was cut, and nothing that was said is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.runtime.tools.formats import TOOL_FORMATS, ToolFormat
from maskpro_deploy.runtime.tools.reader import CallReader

FORMATS = {form.name: form for form in TOOL_FORMATS}
NAMES = ("get", "set_it")

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=6), values, max_size=3)
calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
cuts = st.lists(st.integers(1, 9), min_size=1, max_size=60)


def write(form: ToolFormat, made: list[tuple[str, dict[str, object]]], indent: int | None = None) -> str:
    """Calls as a model writes them."""
    objects = [json.dumps({"name": name, form.arguments: values}, indent=indent) + form.after for name, values in made]
    return form.marker + form.first + form.again.join(objects) + form.last


def read(form: ToolFormat, text: str, sizes: list[int], reason: str = "stop") -> tuple[str, list[tuple[str, str]], str]:
    """Content, calls and finish reason of a text that arrives in pieces of these sizes."""
    reader = CallReader(form, NAMES)
    content, found = "", {}
    at = 0
    pieces = []
    for i in range(len(text)):
        if at >= len(text):
            break
        size = sizes[i % len(sizes)]
        pieces.append(reader.add(text[at : at + size]))
        at += size
    pieces.append(reader.finish())
    for piece in pieces:
        content += piece.content
        for call in piece.calls:
            if call.id is not None:
                assert call.name is not None
                assert call.index == len(found)
                found[call.index] = [call.name, ""]
            found[call.index][1] += call.arguments
    return content, [(name, given) for name, given in found.values()], reader.finish_reason(reason)


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda f: f.name)
@given(made=calls, sizes=cuts, indent=st.sampled_from([None, 2]))
def test_calls_arrive_whole_however_the_text_is_cut(
    form: ToolFormat, made: list[tuple[str, dict[str, object]]], sizes: list[int], indent: int | None
) -> None:
    content, found, reason = read(form, write(form, made, indent), sizes)
    assert content == ""
    assert [(name, json.loads(given)) for name, given in found] == made
    assert reason == "tool_calls"


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda f: f.name)
@given(text=st.text('<tol_ca>[TOLCS]{}"name: g,;\n', max_size=40), sizes=cuts)
def test_text_without_a_call_is_content(form: ToolFormat, text: str, sizes: list[int]) -> None:
    content, found, reason = read(form, text, sizes)
    assert (content, found, reason) == (text, [], "stop")


@pytest.mark.parametrize("name", ["hermes", "mistral"])
@given(before=st.text("ab <[{", min_size=1, max_size=9), made=calls, sizes=cuts)
def test_content_before_calls_stays(name: str, before: str, made: list[tuple[str, dict[str, object]]], sizes: list[int]) -> None:
    content, found, reason = read(FORMATS[name], before + write(FORMATS[name], made), sizes)
    assert content == before.rstrip()
    assert len(found) == len(made)
    assert reason == "tool_calls"


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda f: f.name)
@given(made=calls, sizes=cuts, share=st.floats(0, 1))
def test_what_is_broken_off_is_not_lost(
    form: ToolFormat, made: list[tuple[str, dict[str, object]]], sizes: list[int], share: float
) -> None:
    whole = write(form, made)
    part = whole[: int(share * len(whole))]
    content, found, reason = read(form, part, sizes, "length")
    assert reason == "length"
    for (name, given_part), (meant, values) in zip(found, made, strict=False):
        assert name == meant
        assert json.dumps(values).startswith(given_part)
    if not found:
        assert content.strip() == part.strip()


def test_a_call_that_the_model_gives_up_is_no_finished_call() -> None:
    text = '<tool_call>\n{"name": "get", "arguments": {"a": "x'
    assert read(FORMATS["hermes"], text, [3]) == ("", [("get", '{"a": "x')], "length")


@pytest.mark.parametrize("form", TOOL_FORMATS, ids=lambda f: f.name)
def test_functions_that_were_not_offered_are_content(form: ToolFormat) -> None:
    text = write(form, [("other", {"a": 1})])
    content, found, reason = read(form, text, [2])
    assert (content, found, reason) == (text, [], "stop")


def test_keys_may_come_in_any_order_and_arguments_within_a_text() -> None:
    swapped = '<tool_call>{"arguments": {"a": "}"}, "name": "get"}</tool_call>'
    assert read(FORMATS["hermes"], swapped, [1]) == ("", [("get", '{"a": "}"}')], "tool_calls")
    quoted = '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>'
    assert read(FORMATS["hermes"], quoted, [1]) == ("", [("get", '{"a": 1}')], "tool_calls")
    none = '<tool_call>{"name": "get", "arguments": null}</tool_call> and more'
    assert read(FORMATS["hermes"], none, [1]) == (" and more", [("get", "{}")], "tool_calls")
    missing = '<tool_call>{"name": "get"}</tool_call>'
    assert read(FORMATS["hermes"], missing, [1]) == ("", [("get", "{}")], "tool_calls")


def test_arguments_are_given_out_while_they_are_written() -> None:
    reader = CallReader(FORMATS["hermes"], NAMES)
    assert reader.add('<tool_call>\n{"name": "get", "arg').calls == []
    (first,) = reader.add('uments": {"a').calls
    assert (first.index, first.name, first.arguments) == (0, "get", '{"a')
    (more,) = reader.add('": 1').calls
    assert (more.index, more.id, more.name, more.arguments) == (0, None, None, '": 1')

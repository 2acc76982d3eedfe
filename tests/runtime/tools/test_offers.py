"""What a request says of tools is read in both spellings, and refused by its place."""

from __future__ import annotations

from typing import Any

import pytest

from maskpro_deploy.runtime.generate.grammars import MAX_DEPTH, GrammarError
from maskpro_deploy.runtime.tools.offers import MAX_TOOLS, read_offer

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}


def tool(name: str = "get", **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": PARAMETERS, **more}}


def test_both_spellings_mean_the_same() -> None:
    flat = {"type": "function", "name": "get", "parameters": PARAMETERS, "strict": True}
    nested, other = read_offer([tool(strict=True)]), read_offer([flat])
    assert nested is not None
    assert other is not None
    assert nested.definitions == other.definitions
    assert [(f.name, f.parameters, f.strict) for f in nested.functions] == [
        (f.name, f.parameters, f.strict) for f in other.functions
    ]


def test_the_choice_says_what_may_be_called() -> None:
    tools = [tool("a"), tool("b")]
    assert read_offer(tools, "none") is read_offer([], "auto") is read_offer(None) is None
    auto, required = read_offer(tools, None), read_offer(tools, "required", parallel=False)
    named = read_offer(tools, {"type": "function", "function": {"name": "b"}})
    flat = read_offer(tools, {"type": "function", "name": "b"})
    assert auto is not None
    assert (auto.names, auto.required, auto.parallel) == ({"a", "b"}, False, True)
    assert required is not None
    assert (required.names, required.required, required.parallel) == ({"a", "b"}, True, False)
    assert named == flat
    assert named is not None
    assert (named.names, named.required, named.parallel, len(named.definitions)) == ({"b"}, True, False, 2)


def test_a_function_without_parameters_takes_none() -> None:
    offer = read_offer([{"type": "function", "function": {"name": "now"}}])
    assert offer is not None
    assert offer.functions[0].parameters == {"type": "object", "properties": {}, "additionalProperties": False}


def nest(depth: int) -> dict[str, Any]:
    return {"properties": {"a": nest(depth - 1)}} if depth else {}


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ([{"type": "web_search"}], None, "tools.0: .*'web_search'"),
        (["x"], None, "tools.0: "),
        ([tool("")], None, "tools.0.function.name: "),
        ([tool("a b")], None, "tools.0.function.name: "),
        ([tool(), tool()], None, "tools: two functions"),
        ([tool(parameters=[])], None, "tools.0.function.parameters: "),
        ([tool(parameters={"type": "string"})], None, "tools.0.function.parameters.type: "),
        ([tool(parameters=nest(MAX_DEPTH))], None, "tools: it is nested more"),
        ([tool(description="x" * 200_000)], None, "tools: it has .* bytes"),
        ([tool(f"f{i}") for i in range(MAX_TOOLS + 1)], None, "tools: it has 129"),
        ([tool()], "always", "tool_choice: "),
        ([tool()], {"type": "function", "function": {"name": "other"}}, "tool_choice: 'other' is not among"),
        ([tool()], {"type": "allowed_tools"}, "tool_choice: "),
        ([], "required", "tool_choice: there are no tools"),
    ],
)
def test_what_is_not_in_order_is_refused_by_its_place(tools: list[Any], choice: object, said: str) -> None:
    with pytest.raises(GrammarError, match=f"^{said}"):
        read_offer(tools, choice)

"""Answers under a grammar have its form, whatever the model would say; all others stay as they are."""

from __future__ import annotations

import json
import queue
import re
import sys
import threading
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.errors import MissingExtraError
from maskpro_deploy.runtime import SamplingParams, TextGenerator
from maskpro_deploy.runtime.generate.grammar_compiler import GrammarCompiler
from maskpro_deploy.runtime.generate.grammars import (
    Grammar,
    GrammarError,
    choice_grammar,
    lark_grammar,
    literal,
    regex_grammar,
    schema_grammar,
)
from maskpro_deploy.runtime.generate.sequence import Completion, Event, build_completion

LONG = SamplingParams(max_tokens=200, seed=1)
POINT = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer"}},
    "required": ["name", "size"],
    "additionalProperties": False,
}

names = st.text('abcdé "\\/', min_size=1, max_size=6)
leaves = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-50, 50).flatmap(
        lambda low: st.integers(low, 60).map(lambda high: {"type": "integer", "minimum": low, "maximum": high})
    ),
    st.integers(0, 9).map(lambda most: {"type": "string", "maxLength": most}),
    st.just({"type": "string", "pattern": "^[a-c]{1,4}$"}),
    st.sampled_from(["date", "time", "uuid", "ipv4"]).map(lambda form: {"type": "string", "format": form}),
    st.lists(st.one_of(names, st.integers(-9, 9), st.none()), min_size=1, max_size=4, unique_by=repr).map(lambda v: {"enum": v}),
    names.map(lambda value: {"const": value}),
)


def objects(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with properties, of which some are required."""
    properties = st.dictionaries(names, inner, min_size=1, max_size=3)
    return properties.flatmap(
        lambda p: st.sets(st.sampled_from(sorted(p))).map(
            lambda needed: {"type": "object", "properties": p, "required": sorted(needed), "additionalProperties": False}
        )
    )


def lists(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(inner, st.integers(0, 2)).map(
        lambda pair: {"type": "array", "items": pair[0], "minItems": pair[1], "maxItems": pair[1] + 1}
    )


def unions(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(inner, min_size=1, max_size=2).map(lambda several: {"anyOf": several})


schemas = st.recursive(leaves, lambda inner: st.one_of(objects(inner), lists(inner), unions(inner)), max_leaves=5)


def answer(generator: TextGenerator, grammar: Grammar, params: SamplingParams = LONG) -> Completion:
    (found,) = generator.generate(["Once"], params, grammar)
    return found


@given(schemas, st.integers(0, 5))
def test_every_finished_answer_is_valid_under_its_schema(generator: TextGenerator, schema: dict[str, Any], seed: int) -> None:
    found = answer(generator, schema_grammar(schema), SamplingParams(max_tokens=240, seed=seed))
    if found.finish_reason == "length":  # so many random tokens of white space and strings do happen
        assert len(found.tokens) == 240
        return
    assert found.finish_reason == "stop"
    jsonschema_rs.validator_for(schema, validate_formats=True).validate(json.loads(found.text))


@pytest.mark.parametrize("seed", range(8))
def test_an_answer_of_bounded_length_comes_to_its_end(generator: TextGenerator, seed: int) -> None:
    schema = {**POINT, "properties": {"name": {"enum": ["a", "bc"]}, "size": {"type": "integer", "minimum": 0, "maximum": 99}}}
    found = answer(generator, schema_grammar(schema), SamplingParams(max_tokens=240, seed=seed))
    assert found.finish_reason == "stop"
    assert json.loads(found.text).keys() == {"name", "size"}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("pattern", [r"[a-f]{3,5}", r"(\d{3}-){2}\d{4}", 'x\ny|z/[é"]+', r"\p{Lu}[^\s]{0,3}"])
def test_every_answer_matches_its_pattern(generator: TextGenerator, pattern: str, seed: int) -> None:
    found = answer(generator, regex_grammar(pattern), SamplingParams(max_tokens=100, seed=seed))
    assert found.finish_reason == "stop"
    assert re.fullmatch(pattern.replace(r"\p{Lu}", r"[^\W\d_a-z]"), found.text)


@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5).filter(lambda c: "<|" not in "".join(c)), st.integers(0, 3)
)
def test_every_answer_is_one_of_its_choices(generator: TextGenerator, choices: list[str], seed: int) -> None:
    assert answer(generator, choice_grammar(choices), SamplingParams(max_tokens=60, seed=seed)).text in choices


def test_a_grammar_in_either_form_is_followed(generator: TextGenerator) -> None:
    assert answer(generator, lark_grammar('start: "a" b\nb: /[0-9]{2}/')).text[0] == "a"
    assert answer(generator, lark_grammar('root ::= "yes" | "no"')).text in ("yes", "no")


def test_an_answer_ends_with_its_grammar_without_another_token(generator: TextGenerator) -> None:
    found = answer(generator, choice_grammar(["yes"]), SamplingParams(max_tokens=50, ignore_eos=True, min_tokens=40))
    assert (found.text, found.finish_reason) == ("yes", "stop")
    assert generator.tokenizer.decode(found.tokens) == "yes"


def test_end_of_text_waits_for_the_grammar(generator: TextGenerator) -> None:
    """However much the end is preferred, it comes where the grammar may end, and no earlier."""
    wish = SamplingParams(max_tokens=100, temperature=0, logit_bias={2: 100.0})
    assert re.fullmatch("[a-f]{7}", answer(generator, regex_grammar("[a-f]{7,}"), wish).text)


def test_the_last_token_allowed_cuts_an_answer_short(generator: TextGenerator) -> None:
    found = answer(generator, schema_grammar(POINT), SamplingParams(max_tokens=4, seed=0))
    assert (len(found.tokens), found.finish_reason) == (4, "length")
    assert found.text.startswith("{")


def test_penalties_and_top_k_work_within_the_grammar(generator: TextGenerator) -> None:
    forced = SamplingParams(max_tokens=30, temperature=0, frequency_penalty=2.0, top_k=1)
    both = [answer(generator, regex_grammar("[ab]{20}"), p).text for p in (forced, SamplingParams(max_tokens=30, temperature=0))]
    assert all(re.fullmatch("[ab]{20}", text) for text in both)
    assert both[0] != both[1]


def test_log_probabilities_are_those_of_the_unrestricted_model(generator: TextGenerator) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=20)
    (free,) = generator.generate(["Once"], params)
    held = answer(generator, regex_grammar("[x-z]+"), params)
    assert held.scores[0].top == free.scores[0].top
    assert held.scores[0].token != free.scores[0].token


def run_together(generator: TextGenerator, jobs: list[tuple[str, SamplingParams, Grammar | None]]) -> list[Completion]:
    """Answers to jobs that share their batches."""
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    of: list[list[Event]] = [[] for _ in jobs]
    lengths = []
    for at, (prompt, params, grammar) in enumerate(jobs):
        tokens = generator.tokenizer.encode(prompt)
        lengths.append(len(tokens))
        compiled = generator.grammars.compile(grammar) if grammar else None
        generator.submit([tokens], params, lambda event, at=at: events.put((at, event)), grammar=compiled)  # type: ignore[misc]
    left = len(jobs)
    while left:
        at, event = events.get(timeout=60)
        of[at].append(event)
        left -= event.last
    return [build_completion(n, own) for n, own in zip(lengths, of, strict=True)]


def test_neighbours_in_the_batch_are_unchanged(generator: TextGenerator) -> None:
    free: list[tuple[str, SamplingParams, Grammar | None]] = [
        ("The sea", SamplingParams(max_tokens=40, seed=3), None),
        ("A", SamplingParams(max_tokens=40, temperature=0), None),
    ]
    held: list[tuple[str, SamplingParams, Grammar | None]] = [
        ("The sea", SamplingParams(max_tokens=40, seed=3), schema_grammar(POINT)),
        ("The", SamplingParams(max_tokens=40, seed=4), regex_grammar("[0-9]{30}")),
    ]
    alone = [run_together(generator, [job])[0] for job in free + held]
    together = run_together(generator, [free[0], held[0], free[1], held[1]])
    assert [together[i] for i in (0, 2, 1, 3)] == alone


def test_several_answers_to_a_prompt_each_follow_the_grammar(generator: TextGenerator) -> None:
    compiled = generator.grammars.compile(regex_grammar("[a-p]{12}"))
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    generator.submit([[5, 6]], LONG, events.put, n=4, grammar=compiled)
    texts = ["", "", "", ""]
    left = 4
    while left:
        event = events.get(timeout=60)
        texts[event.choice] += event.text  # type: ignore[union-attr]
        left -= event.last
    assert len(set(texts)) > 1
    assert all(re.fullmatch("[a-p]{12}", text) for text in texts)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objec"}, "here: Invalid type: objec"),
        (
            {"properties": {"a": {"type": "array", "items": {"not": {}}}}},
            r"here.properties.a.items: Unimplemented keys: \[\"not\"\]",
        ),
        ({"$defs": {"q": {"format": "no"}}, "anyOf": [{"$ref": "#/$defs/q"}]}, r"here.\$defs.q: Unknown format: no"),
        ({"properties": {"a": {"$ref": "#/$defs/q"}}}, "here.properties.a: Pointer '/\\$defs/q' does not exist"),
        (
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["a"]},
            "here.properties.a: Unsatisfiable",
        ),
        ({"not": {}, "x-guidance": {"lenient": True}}, "here: Unimplemented keys"),
    ],
)
def test_a_schema_at_fault_is_refused_by_its_place(generator: TextGenerator, schema: dict[str, Any], said: str) -> None:
    with pytest.raises(GrammarError, match=f"^{said}") as caught:
        generator.grammars.compile(schema_grammar(schema, "here"))
    assert len(str(caught.value).splitlines()) == 1
    assert caught.value.field.startswith("here")


@pytest.mark.parametrize(
    "make",
    [
        lambda: regex_grammar("[a", "it"),
        lambda: regex_grammar("(?=a)b", "it"),
        lambda: lark_grammar("start: foo", "it"),
        lambda: lark_grammar("nonsense", "it"),
    ],
)
def test_what_is_no_grammar_is_refused_in_a_line(generator: TextGenerator, make: Any) -> None:
    with pytest.raises(GrammarError, match=r"^it: ") as caught:
        generator.grammars.compile(make())
    assert len(str(caught.value).splitlines()) == 1


def test_compiled_grammars_are_kept_by_their_text(generator: TextGenerator) -> None:
    compiler = GrammarCompiler(generator.tokenizer, generator.shape)
    first = compiler.compile(regex_grammar("a+"))
    assert compiler.compile(regex_grammar("a+", "elsewhere")) is first
    for i in range(40):
        compiler.compile(regex_grammar(f"a{{{i}}}b"))
    assert compiler.compile(regex_grammar("a+")) is not first
    assert compiler.compile(regex_grammar("a{39}b")) is compiler.submit(regex_grammar("a{39}b")).result(10)


def test_a_marker_is_a_special_token_or_a_text(generator: TextGenerator) -> None:
    assert generator.grammars.marker("<|start|>") == "<[1]>"
    assert generator.grammars.marker("e") == literal("e")
    assert generator.grammars.marker("no token at all") == literal("no token at all")


def test_without_the_extra_its_name_is_said(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[structured\]"):
        GrammarCompiler(generator.tokenizer, generator.shape).compile(schema_grammar({}))


def test_masks_are_computed_on_their_own_thread(generator: TextGenerator) -> None:
    answer(generator, regex_grammar("[ab]{5}"))
    assert any(thread.name.startswith("maskpro-masks") for thread in threading.enumerate())

"""One answer: what its text is when it ends in the middle of something."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.sequence import GenerationSequence, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

EOS = 2
Answer = Callable[..., list[TokenEvent]]


@pytest.fixture
def answer(session: GraphSession, text_tokenizer: TextTokenizer) -> Answer:
    """Events of an answer that consists of given tokens."""

    def run(tokens: list[int], **params: object) -> list[TokenEvent]:
        settings = SamplingParams(**{"temperature": 0.0, "max_tokens": 100, **params})  # type: ignore[arg-type]
        sequence = GenerationSequence([5], settings, session.shape, text_tokenizer, lambda e: None)
        events = []
        for token in tokens:
            assert not sequence.finished
            logits = np.zeros(session.shape.vocab_size, np.float32)
            logits[token] = 1
            events.append(sequence.extend(logits))
        return events

    return run


def text_of(events: list[TokenEvent]) -> str:
    return "".join(e.text for e in events)


def test_text_held_for_a_stop_comes_out_at_the_end_of_text(answer: Answer, text_tokenizer: TextTokenizer) -> None:
    events = answer([*text_tokenizer.encode("the EN"), EOS], stop=("END",))
    assert text_of(events) == "the EN"
    assert "E" not in text_of(events[:-1])
    assert events[-1].finish_reason == "stop"


def test_text_held_for_a_stop_comes_out_at_the_longest_length(answer: Answer, text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.encode("the EN")
    events = answer(tokens, stop=("END",), max_tokens=len(tokens))
    assert text_of(events) == "the EN"
    assert events[-1].finish_reason == "length"


@pytest.mark.parametrize("last", [[EOS], []])
def test_half_a_character_at_the_end_comes_out_as_a_replacement(
    answer: Answer, text_tokenizer: TextTokenizer, last: list[int]
) -> None:
    tokens = [*text_tokenizer.encode("x€")[:-1], *last]
    events = answer(tokens, max_tokens=len(tokens))
    assert text_of(events) == text_tokenizer.decode(tokens) == "x\ufffd"
    assert text_of(events[:-1]) == "x"


def test_a_stop_text_that_is_complete_with_the_last_token_is_a_stop(answer: Answer, text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.encode("all END")
    events = answer(tokens, stop=("END",), max_tokens=len(tokens))
    assert text_of(events) == "all "
    assert events[-1].finish_reason == "stop"


def test_stop_texts_do_not_count_before_min_tokens(answer: Answer, text_tokenizer: TextTokenizer) -> None:
    tokens = text_tokenizer.encode("a.b.c")
    early = answer(tokens[:2], stop=(".",))
    assert (text_of(early), early[-1].finish_reason) == ("a", "stop")
    late = answer(tokens[:4], stop=(".",), min_tokens=3)
    assert (text_of(late), late[-1].finish_reason) == ("a.b", "stop")


def test_special_tokens_show_only_on_request(answer: Answer) -> None:
    assert text_of(answer([1, 1])) == ""
    assert text_of(answer([1, 1], skip_special_tokens=False)) == "<|start|><|start|>"

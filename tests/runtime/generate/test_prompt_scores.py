"""Log-probabilities of prompts: what they are, chunk by chunk, and how many of them there may be."""

from __future__ import annotations

import queue

import numpy as np
import pytest
from gated_session import GatedSession

from maskpro_deploy.backends.caches import Cache, Ints
from maskpro_deploy.backends.session import Floats, GraphSession
from maskpro_deploy.errors import InputError
from maskpro_deploy.runtime import RuntimeConfig, TextGenerator
from maskpro_deploy.runtime.generate.generator import OverloadedError
from maskpro_deploy.runtime.generate.sampling import likeliest, top_k_mask
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.scheduler import Scheduler, SchedulerConfig
from maskpro_deploy.runtime.generate.sequence import Event, FailureEvent, GenerationSequence, PromptEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

LONG = [1 + i % 50 for i in range(100)]


class Watched:
    """A real session that remembers how many tokens each call was asked for the logits of."""

    def __init__(self, inner: GraphSession) -> None:
        self._inner, self.shape = inner, inner.shape
        self.calls: list[tuple[int, ...]] = []

    def forward(self, tokens: Ints, cache: Cache | None = None, attention_mask: Ints | None = None) -> tuple[Floats, Cache]:
        self.calls.append(tokens.shape)
        return self._inner.forward(tokens, cache, attention_mask)


def scored(session: Watched, tokenizer: TextTokenizer, prompt: list[int], top: int) -> GenerationSequence:
    params = SamplingParams(max_tokens=1, temperature=0, ignore_eos=True, prompt_logprobs=top)
    return GenerationSequence(prompt, params, session.shape, tokenizer, lambda e: None)


def test_they_are_those_of_the_softmax_whatever_the_chunks(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    """Two sequences share a prompt and want different numbers of tokens; a third reads along and wants nothing."""
    logits = session.logits(np.array([LONG], np.int64))[0].astype(np.float64)  # (T, V)
    reference = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for chunk in (7, 64, 1000):
        watched, found = Watched(session), {}
        events: list[tuple[GenerationSequence, Event]] = []
        scheduler = Scheduler(watched, SchedulerConfig(chunk_tokens=chunk), lambda s, e, to=events: to.append((s, e)))
        few, many = (scored(watched, text_tokenizer, LONG, top) for top in (1, 5))
        silent = GenerationSequence(LONG, SamplingParams(max_tokens=1), session.shape, text_tokenizer, lambda e: None)
        scheduler.waiting.extend([few, silent, many])
        while not scheduler.idle:
            scheduler.step()
        found = {s: e.scores for s, e in events if isinstance(e, PromptEvent)}
        assert found.keys() == {few, many}
        assert max(rows * columns for rows, columns in watched.calls) <= chunk
        for sequence, top in ((few, 1), (many, 5)):
            first, *rest = found[sequence]
            assert (first.token, first.logprob) == (LONG[0], None)
            assert [s.token for s in rest] == LONG[1:]
            assert [s.logprob for s in rest] == pytest.approx([reference[i, t] for i, t in enumerate(LONG[1:])], abs=1e-4)
            for place, item in enumerate(rest):
                assert len(item.top) == top
                assert item.top[0][0] == int(reference[place].argmax())


@pytest.mark.parametrize("size", [1, 20, 300, 5000, 100_003])
def test_the_likeliest_are_those_of_a_full_sort(size: int) -> None:
    """Of equal scores the lower token comes first, at the edge too."""
    draw = np.random.default_rng(size)
    for values in (draw.standard_normal(size), draw.integers(0, 5, size), np.full(size, -np.inf), np.zeros(size)):
        scores = values.astype(np.float32)
        for k in (1, 5, 20):
            order = sorted(range(size), key=lambda t: (-scores[t], t))[:k]
            assert likeliest(scores, k).tolist() == order
            assert sorted(order) == np.flatnonzero(top_k_mask(scores, min(k, size))).tolist()[: len(order)]


def test_neighbours_wait_for_a_chunk_at_most(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    scheduler = Scheduler(session, SchedulerConfig(max_num_seqs=2, chunk_tokens=8), lambda s, e: None)
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    neighbour = GenerationSequence([1], params, session.shape, text_tokenizer, lambda e: None)
    scheduler.waiting.append(neighbour)
    scheduler.step()
    scheduler.waiting.append(scored(Watched(session), text_tokenizer, LONG, 20))
    while scheduler.waiting or len(scheduler.running) + scheduler.num_running > 2:
        before = len(neighbour.tokens)
        scheduler.step()
        assert len(neighbour.tokens) == before + 1
        assert len(neighbour.tokens) < 30
    assert len(neighbour.tokens) >= len(LONG) // 8


def test_who_leaves_is_not_read_to_the_end(gated: GatedSession, text_tokenizer: TextTokenizer) -> None:
    generator = TextGenerator(gated, text_tokenizer, RuntimeConfig(chunk_tokens=8))
    try:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        sequences = generator.submit([LONG], SamplingParams(prompt_logprobs=20), events.put)
        gated.allow(3)
        for _ in range(4):
            assert gated.entered.acquire(timeout=30)
        generator.abort(sequences)
        gated.open()
        assert events.get(timeout=30).last
        assert not gated.entered.acquire(timeout=0.2)  # the model is asked for nothing more
        assert len(sequences[0].prompt_scores) == 1 + 4 * 8
    finally:
        generator.close()


def test_a_request_and_all_of_them_together_are_bounded(gated: GatedSession, text_tokenizer: TextTokenizer) -> None:
    config = RuntimeConfig(max_num_queued_reqs=50, max_prompt_logprobs_tokens=150)
    generator = TextGenerator(gated, text_tokenizer, config)
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    try:
        with pytest.raises(InputError, match=r"200 prompt tokens .* 150 at most \(--max-prompt-logprobs-tokens\)"):
            generator.submit([LONG], params, events.put, n=2)
        for _ in range(6):  # 600 tokens: four requests of the largest size
            generator.submit([LONG], params, events.put)
        with pytest.raises(OverloadedError) as refused:
            generator.submit([[1]], params, events.put)
        assert refused.value.reason == "prompt_logprobs_full"
        generator.submit([LONG], SamplingParams(max_tokens=1), events.put)  # others are not concerned
        gated.open()
        ends = 0
        while ends < 7:
            event = events.get(timeout=30)
            assert not isinstance(event, FailureEvent)
            ends += event.last
        generator.submit([LONG], params, events.put)
    finally:
        gated.open()
        generator.close()
    assert generator.load.running == 0

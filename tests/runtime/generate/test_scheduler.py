"""Who runs when: chunks of prompts between decode steps, places given up and taken."""

from __future__ import annotations

import numpy as np
import pytest

from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.scheduler import Scheduler, SchedulerConfig
from maskpro_deploy.runtime.generate.sequence import Event, GenerationSequence, PromptEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer


class Bench:
    """A scheduler, and what came out of it."""

    def __init__(self, session: GraphSession, tokenizer: TextTokenizer, **config: int) -> None:
        self.session, self.tokenizer = session, tokenizer
        self.events: list[tuple[GenerationSequence, Event]] = []
        self.scheduler = Scheduler(session, SchedulerConfig(**config), lambda s, e: self.events.append((s, e)))

    def add(self, prompt: list[int], **params: object) -> GenerationSequence:
        settings = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})  # type: ignore[arg-type]
        sequence = GenerationSequence(prompt, settings, self.session.shape, self.tokenizer, lambda e: None)
        self.scheduler.waiting.append(sequence)
        return sequence

    def finish(self) -> None:
        while not self.scheduler.idle:
            self.scheduler.step()


@pytest.fixture
def bench(session: GraphSession, text_tokenizer: TextTokenizer) -> Bench:
    return Bench(session, text_tokenizer, max_num_seqs=3, chunk_tokens=8)


def test_a_long_prompt_does_not_stop_the_others(bench: Bench) -> None:
    first = bench.add([1, 2, 3], max_tokens=50)
    bench.scheduler.step()
    long = bench.add(list(range(40)), max_tokens=2)
    for step in range(5):  # 40 tokens in chunks of 8
        assert not long.tokens
        before = len(first.tokens)
        bench.scheduler.step()
        assert len(first.tokens) == before + 1, f"step {step}"
    assert long.tokens


def test_all_tokens_of_a_step_are_chosen_before_the_first_is_told(bench: Bench) -> None:
    sequences = [bench.add([i + 1], max_tokens=9) for i in range(3)]
    bench.scheduler.step()
    seen: list[list[int]] = []
    bench.scheduler.emit = lambda sequence, event: seen.append([len(s.tokens) for s in sequences])
    bench.scheduler.step()
    assert seen == [[3, 3, 3]] * 3


def test_a_finished_sequence_makes_room_at_once(bench: Bench) -> None:
    sequences = [bench.add([i + 1], max_tokens=2 + i) for i in range(5)]
    bench.scheduler.step()
    assert bench.scheduler.num_running == 2
    assert sequences[0].finished
    bench.scheduler.step()
    assert sequences[3].tokens
    assert bench.scheduler.num_running <= 3
    bench.finish()
    assert [len(s.tokens) for s in sequences] == [2, 3, 4, 5, 6]


def test_prompts_are_taken_in_the_order_they_came(bench: Bench) -> None:
    sequences = [bench.add([i + 1] * (9 - i), max_tokens=3) for i in range(6)]
    bench.finish()
    starts = [s.times.started for s in sequences]
    assert starts == sorted(starts)


def test_equal_prompts_are_read_once(bench: Bench) -> None:
    for _ in range(3):
        bench.add([4, 5, 6, 7], max_tokens=2)
    assert bench.scheduler.step().prompt_tokens == 4
    bench.finish()
    texts = [s.tokens for s, e in bench.events if isinstance(e, TokenEvent) and e.finish_reason]
    assert texts[0] == texts[1] == texts[2] == bench.session.greedy([4, 5, 6, 7], 2)


def test_steps_count_tokens_without_padding(bench: Bench) -> None:
    bench.add([1, 2, 3, 4], max_tokens=3)
    bench.add([1], max_tokens=3)
    count = bench.scheduler.step()
    assert (count.prompt_tokens, count.generated_tokens) == (5, 2)
    assert bench.scheduler.cached_tokens == 5 + 2


@pytest.mark.parametrize("chunk_tokens", [2, 5, 64])
def test_prompt_scores_are_the_same_in_any_chunks(
    session: GraphSession, text_tokenizer: TextTokenizer, chunk_tokens: int
) -> None:
    bench = Bench(session, text_tokenizer, max_num_seqs=4, chunk_tokens=chunk_tokens)
    prompts = [[9, 8, 7, 6, 5, 4], [3, 2]]
    for prompt in prompts:
        bench.add(prompt, max_tokens=0, prompt_logprobs=1)
    bench.finish()
    scored = [e.scores for _, e in bench.events if isinstance(e, PromptEvent)]
    for prompt, scores in zip(prompts, scored, strict=True):
        assert [s.token for s in scores] == prompt
        assert scores[0].logprob is None
        logits = session.logits(np.array([prompt]))[0].astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i, s in enumerate(scores[1:]):
            assert s.logprob == pytest.approx(expected[i, prompt[i + 1]], abs=1e-4)
            assert s.top[0][0] == expected[i].argmax()
    assert all(e.finish_reason == "length" for _, e in bench.events if isinstance(e, TokenEvent))


def test_aborts_wherever_the_sequence_is(bench: Bench) -> None:
    running = bench.add([1], max_tokens=50)
    bench.scheduler.step()
    reading, staying = bench.add(list(range(12)), max_tokens=5), bench.add([5], max_tokens=3)
    bench.scheduler.step()
    waiting = bench.add([7], max_tokens=5)
    bench.scheduler.abort([running, reading, waiting])
    assert [s.finish_reason for s in (running, reading, waiting)] == ["abort"] * 3
    bench.finish()
    assert staying.tokens == bench.session.greedy([5], 3)
    assert not reading.tokens


def test_the_cache_stays_in_its_limit_and_answers_stay_the_same(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    """Sequences that outgrow the cache together give way to each other; nobody's answer changes."""
    bench = Bench(session, text_tokenizer, max_num_seqs=8, max_cache_tokens=160)
    settings = [{"max_tokens": 70}, {"max_tokens": 90, "temperature": 1.0, "seed": 3}, {"max_tokens": 100, "logprobs": 1}]
    sequences = [bench.add([i + 1, 5, 6], **params) for i, params in enumerate(settings * 2)]
    preempted = 0
    while not bench.scheduler.idle:
        preempted += bench.scheduler.step().preempted
        batch = bench.scheduler._batch
        assert batch is None or len(bench.scheduler.running) == 1 or batch.cache.batch * batch.cache.length <= 160
    assert preempted > 0
    for sequence, params in zip(sequences, settings * 2, strict=True):
        alone = Bench(session, text_tokenizer)
        expected = alone.add(list(sequence.prompt), **params)
        alone.finish()
        assert sequence.tokens == expected.tokens
    assert [sum(s is t for t, e in bench.events) for s in sequences] == [len(s.tokens) for s in sequences]


def test_what_needs_more_cache_than_there_is_runs_alone(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    bench = Bench(session, text_tokenizer, max_num_seqs=8, max_cache_tokens=40)
    big = bench.add([1] * 50, max_tokens=30)
    small = [bench.add([2] * 4, max_tokens=6) for _ in range(6)]
    most = 0
    while not bench.scheduler.idle:
        bench.scheduler.step()
        assert big.finished or bench.scheduler.num_running <= 1
        most = max(most, bench.scheduler.num_running)
    assert most == 4
    assert all(len(s.tokens) == 6 for s in small)


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="--max-num-seqs"):
        SchedulerConfig(max_num_seqs=0)

"""Prefix caching: the same answers with it and without it, in every form, whatever happens to the others; only sooner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dirty_device import device_session
from gated_session import GatedSession
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engines import LENGTH

from maskpro_deploy.backends.session import GraphSession, SessionLimits
from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.generate.loading import limit_config
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.scheduler import Scheduler, SchedulerConfig, StepCount
from maskpro_deploy.runtime.generate.sequence import Event, GenerationSequence, PromptEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.sessions.batches import Batch

BLOCK = 4
TOLERANCE = 1e-4  # of log-probabilities


class Run:
    """A scheduler, what came out of it, and what its steps counted."""

    def __init__(self, session: GraphSession | GatedSession, tokenizer: TextTokenizer, **config: int) -> None:
        self.session, self.tokenizer = session, tokenizer
        self.events: list[tuple[GenerationSequence, Event]] = []
        self.count = StepCount()
        settings = SchedulerConfig(**{"prefix_block": BLOCK, "max_num_seqs": 4, "chunk_tokens": 16, **config})  # type: ignore[arg-type]
        self.scheduler = Scheduler(session, settings, lambda s, e: self.events.append((s, e)))

    def add(self, prompt: Sequence[int], **params: object) -> GenerationSequence:
        settings = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 3, **params})  # type: ignore[arg-type]
        sequence = GenerationSequence(prompt, settings, self.session.shape, self.tokenizer, lambda e: None)
        self.scheduler.waiting.append(sequence)
        return sequence

    def step(self) -> StepCount:
        """One step; what sequences and prefixes hold together stays in the limit, of which sequences come first."""
        count = self.scheduler.step()
        for name in StepCount.__slots__:
            setattr(self.count, name, getattr(self.count, name) + getattr(count, name))
        batch, capacity = self.scheduler._batch, self.scheduler._capacity
        held = batch.cache.batch * batch.cache.length if batch is not None else 0
        assert self.scheduler.prefix_tokens <= max(0, capacity - held)
        return count

    def finish(self) -> None:
        while not self.scheduler.idle:
            self.step()

    def answer(self, prompt: Sequence[int], **params: object) -> GenerationSequence:
        sequence = self.add(prompt, **params)
        self.finish()
        return sequence

    def logprobs(self, sequence: GenerationSequence) -> list[float]:
        events = [e for s, e in self.events if s is sequence and isinstance(e, TokenEvent)]
        return [e.score.logprob for e in events if e.score is not None and e.score.logprob is not None]


@pytest.fixture(scope="module")
def int4_bundle(tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int4") / "bundle"
    config = ExportConfig(forms=tuple(CACHE_FORMS), max_length=LENGTH, quantize="int4", block_size=16)
    export(tiny_sparse, out, config, compare=False)
    return out


@pytest.fixture(scope="module", params=[f"{form}-{kind}" for form in CACHE_FORMS for kind in ("fp32", "int4")])
def variant(request: pytest.FixtureRequest, forms_bundle: Path, int4_bundle: Path) -> GraphSession:
    """A session in memory that is full of NaN at first, for each form, with fp32 and with int4 weights."""
    form, kind = request.param.split("-")
    return device_session(int4_bundle if kind == "int4" else forms_bundle, form)


@pytest.fixture
def run(session: GraphSession, text_tokenizer: TextTokenizer) -> Run:
    return Run(session, text_tokenizer)


def text(seed: int, tokens: int) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, 320, tokens)]


def test_a_chat_gives_the_same_answers_and_reads_only_what_is_new(variant: GraphSession, text_tokenizer: TextTokenizer) -> None:
    """Three turns of two chats with one system prompt: tokens equal, log-probabilities within the tolerance."""
    system, logprobs = text(1, 9), {}
    for caching in (True, False):
        run = Run(variant, text_tokenizer, prefix_caching=caching)
        said = [list(system), list(system)]
        for turn in range(3):
            sequences = [run.add([*s, *text(10 * turn + chat, 5)], logprobs=0) for chat, s in enumerate(said)]
            run.finish()
            if turn and caching:  # all whole blocks of the turns before, but for the answer's last token
                assert [s.cached_tokens for s in sequences] == [(len(s) - 1) // BLOCK * BLOCK for s in said]
            said = [list(s.context) for s in sequences]
            logprobs[caching, turn] = [(s.tokens, run.logprobs(s)) for s in sequences]
        assert run.count.prompt_tokens + run.count.prefix_hits == (2 * (3 * 9 + 5 * 6 + 3 * 3))
    for turn in range(3):
        for (mine, my_scores), (theirs, their_scores) in zip(logprobs[True, turn], logprobs[False, turn], strict=True):
            assert mine == theirs
            np.testing.assert_allclose(my_scores, their_scores, atol=TOLERANCE)


REQUESTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 2), min_size=1, max_size=3),  # pieces of text that prompts are made of
        st.integers(1, 9),  # tokens of the answer
        st.integers(0, 4),  # steps until the next request
        st.sampled_from([None, None, None, 1, 3]),  # steps after which the oldest unfinished one is aborted
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=12)
@given(requests=REQUESTS, limit=st.integers(20, 120), chunk=st.sampled_from([3, 16, 64]))
def test_answers_do_not_depend_on_what_is_kept(
    variant: GraphSession,
    text_tokenizer: TextTokenizer,
    requests: list[tuple[list[int], int, int, int | None]],
    limit: int,
    chunk: int,
) -> None:
    """Prompts that share beginnings come and go in any order, within a cache so small that they displace each other."""
    run = Run(variant, text_tokenizer, max_cache_tokens=limit, chunk_tokens=chunk)
    sequences: list[GenerationSequence] = []
    for pieces, tokens, steps, abort_after in requests:
        prompt = [t for piece in pieces for t in text(piece, 7 + 4 * piece)]
        sequences.append(run.add(prompt, max_tokens=tokens))
        for step in range(steps):
            run.step()
            if step + 1 == abort_after:
                run.scheduler.abort([next((s for s in sequences if not s.finished), sequences[0])])
    run.finish()
    assert (run.scheduler.num_running, run.scheduler.cached_tokens) == (0, 0)
    for sequence in sequences:
        assert sequence.tokens == variant.greedy(sequence.prompt, sequence.params.max_tokens)[: len(sequence.tokens)]
        assert sequence.finish_reason == "abort" or len(sequence.tokens) == sequence.params.max_tokens


@pytest.mark.parametrize("length", [33, 32, 29])
def test_the_last_token_of_a_prompt_is_always_read(run: Run, length: int) -> None:
    prompt = text(5, length)
    first = run.answer(prompt)
    again = run.answer(prompt)
    assert again.tokens == first.tokens
    assert (first.cached_tokens, again.cached_tokens) == (0, min(length // BLOCK * BLOCK, length - 1))


def test_what_waiting_prompts_share_is_read_once(run: Run) -> None:
    """Also where nothing is kept yet; prompts that share nothing are still read together."""
    system = text(1, 4 * BLOCK)
    prompts = [[*system, *text(n, 3)] for n in (2, 3, 4)]
    sequences = [run.add(p) for p in prompts]
    run.finish()
    assert run.count.prompt_tokens == len(system) + 3 * 3
    assert [s.cached_tokens for s in sequences] == [0, len(system), len(system)]
    for sequence in sequences:
        assert sequence.tokens == run.session.greedy(sequence.prompt, 3)
    others = [run.add(text(n, 4)) for n in (20, 21, 22)]
    run.step()
    assert all(s.tokens for s in others)


def test_a_reading_counts_what_it_looked_for_and_found(run: Run) -> None:
    prompt = text(3, 2 * BLOCK + 1)
    run.answer(prompt)
    assert (run.count.prefix_queries, run.count.prefix_hits) == (len(prompt), 0)
    run.answer(prompt)
    assert (run.count.prefix_queries, run.count.prefix_hits) == (2 * len(prompt), 2 * BLOCK)


def test_prompt_scores_are_those_of_the_whole_prompt(run: Run) -> None:
    prompt = text(6, 3 * BLOCK)
    for _ in range(2):
        run.answer(prompt, prompt_logprobs=0)
    scores = [[s.logprob for s in e.scores] for _, e in run.events if isinstance(e, PromptEvent)]
    assert scores[0] == scores[1]
    assert len(scores[0]) == len(prompt)
    assert run.count.prefix_queries == 0
    assert run.answer(prompt).cached_tokens == len(prompt) - 1, "but what it read is kept for others"


def test_a_sequence_that_gave_up_its_place_finds_what_it_had_read(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    read = {}
    for caching in (True, False):
        run = Run(session, text_tokenizer, max_cache_tokens=160, prefix_caching=caching)
        sequences = [run.add(text(n, 3), max_tokens=100) for n in range(4)]
        run.finish()
        assert run.count.preempted > 0
        assert all(s.tokens == session.greedy(s.prompt, 100) for s in sequences)
        assert all(s.cached_tokens == 0 for s in sequences), "its own tokens do not count as a prompt's"
        read[caching] = run.count.prompt_tokens
    assert read[True] < read[False]


def test_an_abort_while_a_prompt_is_read_keeps_what_was_read(run: Run) -> None:
    prompt = text(7, 40)
    gone = run.add(prompt)
    run.step()
    run.step()  # 2 chunks of 16
    run.scheduler.abort([gone])
    assert (run.scheduler.idle, run.scheduler.num_running, run.scheduler.prefix_tokens) == (True, 0, 32)
    again = run.answer(prompt)
    assert again.cached_tokens == 32
    assert again.tokens == run.session.greedy(prompt, 3)


def test_unusable_logits_leave_nothing_behind(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    broken = GatedSession(session)
    broken.open()
    broken.nan_rows = (0,)
    run = Run(broken, text_tokenizer, chunk_tokens=64)
    run.answer(text(8, 20))
    assert run.scheduler.prefix_tokens == 0
    broken.nan_rows = ()
    later = run.add(text(8, 20), max_tokens=20)
    run.step()
    kept = run.scheduler.prefix_tokens
    broken.nan_rows = (0,)
    run.step()
    assert later.broken
    assert (kept, run.scheduler.prefix_tokens) == (20, 20)


def test_switched_off_nothing_is_kept(session: GraphSession, text_tokenizer: TextTokenizer) -> None:
    run = Run(session, text_tokenizer, prefix_caching=False)
    for _ in range(2):
        assert run.answer(text(9, 30)).cached_tokens == 0
    assert (run.scheduler.prefix_tokens, run.count.prefix_queries, run.count.prompt_tokens) == (0, 0, 60)


def test_where_it_would_not_help_it_is_off_and_the_log_says_so(sparse_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = Manifest.load(sparse_bundle)
    assert not limit_config(RuntimeConfig(), SessionLimits(prefix_block=0), manifest).prefix_caching
    assert "prefix caching is off" in caplog.text
    on = limit_config(RuntimeConfig(), SessionLimits(prefix_block=64), manifest)
    assert (on.prefix_caching, on.prefix_block) == (True, 64)


def test_a_cache_of_another_kind_is_left_alone(run: Run) -> None:
    """A session may have caches that pieces cannot be cut out of: nothing is kept of them, and nothing breaks."""

    class Opaque:
        batch = length = 8

    run.scheduler._batch = Batch(Opaque(), np.array([8], np.int64))  # type: ignore[arg-type]
    run.scheduler.running = [run.add(text(1, 8))]
    run.scheduler.waiting.clear()
    run.scheduler.abort(run.scheduler.running)
    assert run.scheduler.prefix_tokens == 0

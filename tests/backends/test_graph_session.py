"""Sessions read what the plain graph says: same logits, same tokens, in every form, in any order of calls."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from dirty_device import DirtyDevice, device_session
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_engines import LENGTH, profile_of

from maskpro_deploy.backends.memory import HostDevice
from maskpro_deploy.backends.onnxruntime_.executor import OnnxExecutor
from maskpro_deploy.backends.onnxruntime_.sessions import open_graph
from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, load
from maskpro_deploy.runtime.sessions.batches import Batch, Prefill, left_mask

FORMS = tuple(CACHE_FORMS)


@pytest.fixture(scope="module", params=FORMS)
def device(request, forms_bundle):
    return device_session(forms_bundle, request.param)


def prompts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 60, n).tolist() for n in lengths]


def test_greedy_tokens_and_logits_are_the_same(device, session):
    tokens = np.array(prompts(9, 9))
    np.testing.assert_allclose(device.logits(tokens), session.logits(tokens), atol=1e-4)
    assert device.greedy([3, 4, 5], 20) == session.greedy([3, 4, 5], 20)


@pytest.mark.parametrize("columns", [1, 3, 4, 100])
def test_rows_of_different_lengths_are_read_in_chunks(device, session, columns):
    given_prompts = prompts(2, 11, 5, 7)
    results = []
    for s in (device, session):
        prefill = Prefill(given_prompts)
        logits = []
        while not prefill.finished:
            logits.append(prefill.advance(s, columns))
        batch, last = prefill.batch(), logits[-1][:, -1]
        steps = [last]
        for _ in range(6):
            last, batch = batch.step(s, np.argmax(last, axis=-1))
            steps.append(last)
        results.append((np.concatenate(logits, axis=1), np.stack(steps)))
    (mine, my_steps), (theirs, their_steps) = results
    counts = left_mask(np.array([len(p) for p in given_prompts]), 11).astype(bool)
    np.testing.assert_allclose(mine[counts], theirs[counts], atol=1e-4)
    np.testing.assert_allclose(my_steps, their_steps, atol=1e-4)


MOVES = st.lists(
    st.one_of(
        st.just(("step", 0)),
        st.tuples(st.just("join"), st.integers(1, 9)),
        st.tuples(st.just("keep"), st.integers(0, 63)),
        st.tuples(st.just("fork"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(moves=MOVES, data=st.randoms(use_true_random=False))
def test_caches_stay_valid_whatever_is_done_with_them(device, session, moves, data):
    """Steps, joins, choices of rows and going on from an older cache, in any order, give what the plain session gives."""

    def read(s, lengths, seed):
        prefill = Prefill(prompts(*lengths, seed=seed))
        while not prefill.finished:
            prefill.advance(s, 5)
        return prefill.batch()

    pairs: list[tuple[Batch, Batch]] = [(read(device, [3, 7], 1), read(session, [3, 7], 1))]
    for number, (move, value) in enumerate(moves):
        mine, theirs = pairs[-1]
        rows = len(theirs.lengths)
        if move == "step" and theirs.lengths.max() < LENGTH - 2:
            tokens = np.arange(rows) + number
            (a, mine), (b, theirs) = mine.step(device, tokens), theirs.step(session, tokens)
            np.testing.assert_allclose(a, b, atol=1e-4)
        elif move == "join" and rows < 8:
            mine, theirs = mine.join(read(device, [value], number)), theirs.join(read(session, [value], number))
        elif move == "keep":
            chosen = [r for r in range(rows) if value >> r & 1] or [rows - 1]
            mine, theirs = mine.keep(chosen), theirs.keep(chosen)
        elif move == "fork":
            mine, theirs = pairs[value % len(pairs)]
        pairs.append((mine, theirs))
    for mine, theirs in data.sample(pairs, min(3, len(pairs))):  # those that came before are what they were
        tokens = np.ones(len(theirs.lengths), np.int64)
        np.testing.assert_allclose(mine.step(device, tokens)[0], theirs.step(session, tokens)[0], atol=1e-4)


@pytest.mark.parametrize("form", ["cat", "static"])
def test_profiles_bound_the_calls_and_the_answer_is_the_same(form, forms_bundle, session):
    profiles = [profile_of(form, (1, 2), (1, 4), (0, 8)), profile_of(form, (1, 3), (1, 1), (0, 30))]
    device = device_session(forms_bundle, form, profiles)
    calls = []
    run = device._executor.run
    device._executor.run = lambda profile, s, a: (calls.append((profile, s["input_ids"])), run(profile, s, a))
    assert device.limits.max_batch == 3
    assert device.limits.max_prefill_rows == 2
    assert device.shape.max_length == (31 if form == "cat" else LENGTH)
    tokens = np.array(prompts(15, 15))
    np.testing.assert_allclose(device.logits(tokens), session.logits(tokens), atol=1e-4)
    assert calls == (
        [(0, (2, 4)), (0, (2, 4)), (0, (2, 4)), *[(1, (2, 1))] * 3]
        if form == "cat"
        else [(0, (2, 4)), (0, (2, 4)), (0, (2, 4)), (0, (2, 3))]
    )
    calls.clear()
    np.testing.assert_allclose(device.logits(np.array(prompts(2, 2, 2))), session.logits(np.array(prompts(2, 2, 2))), atol=1e-4)
    assert calls == [(1, (3, 1))] * 2
    with pytest.raises(InputError, match="--max-batch 4"):
        device.logits(np.array(prompts(2, 2, 2, 2)))


def test_prefixes_are_kept_where_several_tokens_are_read_behind_them(forms_bundle):
    decode = profile_of("cat", (1, 2), (1, 1), (0, 30))
    fresh, chunks = (profile_of("cat", (1, 2), (1, 16), (0, past)) for past in (0, 30))
    blocks = [device_session(forms_bundle, "cat", [first, decode]).limits.prefix_block for first in (fresh, chunks)]
    assert blocks == [0, 16]


def test_an_engine_that_cannot_decode_is_refused(forms_bundle):
    with pytest.raises(InputError, match="decode profile"):
        device_session(forms_bundle, "cat", [profile_of("cat", (1, 2), (4, 16), (0, 8))])


def test_another_graph_is_refused(forms_bundle):
    manifest = Manifest.load(forms_bundle)
    executor = OnnxExecutor(open_graph(forms_bundle / "model.onnx"), HostDevice())
    wrong = dataclasses.replace(manifest.graph, form="static", length=LENGTH)
    with pytest.raises(FormatError, match="write_indices"):
        GraphSession(manifest.model, wrong, executor, HostDevice())


def test_memory_is_used_again(forms_bundle):
    """A long generation takes turns in two blocks (cat), or stays in one (static): nothing is allocated per token."""
    for form, most in (("cat", 12), ("static", 8)):
        device = device_session(forms_bundle, form)
        device.greedy([1, 2, 3], 40)
        assert len(device._device._blocks) <= most


@pytest.mark.parametrize("form", ["static", "gqa"])
def test_a_server_answers_alike_in_every_form(form, forms_bundle):
    """Sequences that join and leave between steps, with room for fewer than there are."""
    texts = ["the cat", "a dog and", "one", "two three four", "five", "six seven"]
    answers = []
    for own in (form, "cat"):
        config = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=3, chunk_tokens=8, max_cache_tokens=100, form=own)
        with load(forms_bundle, config) as engine:
            params = [SamplingParams(max_tokens=n, temperature=0) for n in (5, 20, 11)]
            answers.append([c.text for p in params for c in engine.generate(texts, p)])
    assert answers[0] == answers[1]


class SmallDevice(DirtyDevice):
    """A device that tells how much memory it has."""

    def free_bytes(self):
        return 1 + int(3 * LENGTH * (4 * 2 * 8 * 4) / 0.4)  # 40 % hold three rows of slots: 4 tensors, 2 heads of 8 floats


def test_a_device_that_tells_its_memory_bounds_rows_and_tokens(forms_bundle):
    manifest = Manifest.load(forms_bundle)
    for graph in (manifest.graph, *manifest.siblings[:1]):
        executor = OnnxExecutor(open_graph(forms_bundle / graph.file), HostDevice())
        limits = GraphSession(manifest.model, graph, executor, SmallDevice()).limits
        assert limits.max_cache_tokens == 3 * LENGTH
        assert limits.max_batch == (3 if graph.form == "static" else None)


@pytest.mark.parametrize(("form", "bound"), [("gqa", 4), ("static", 4), ("cat", 12)])
def test_what_stays_where_it_is_is_bound_once(forms_bundle, form, bound):
    """A cache in place moves no tensor: a step binds tokens, mask or indices, positions and logits at most.

    Fewer, where new arrays come to stand where the old ones stood.
    """
    session = device_session(forms_bundle, form)
    counted = []

    class Counting:
        def __init__(self, binding):
            self.binding = binding

        def __getattr__(self, name):
            if name in ("bind_input", "bind_output"):
                counted.append(name)
            return getattr(self.binding, name)

    cache = session.forward(np.array([[3, 4, 5]]))[1]
    for _ in range(2):
        cache = session.forward(np.array([[6]]), cache)[1]
    executor = session._executor
    inner = executor._session

    class Unwrapping:
        def __getattr__(self, name):
            return getattr(inner, name)

        def run_with_iobinding(self, binding, options):
            inner.run_with_iobinding(binding.binding, options)

    executor._binding, executor._session = Counting(executor._binding), Unwrapping()
    cache = session.forward(np.array([[7]]), cache)[1]
    assert len(counted) <= bound
    counted.clear()
    executor._bound = dict.fromkeys(executor._bound)  # as if everything had moved
    session.forward(np.array([[8]]), cache)
    assert len(counted) == len(executor._bound) >= bound

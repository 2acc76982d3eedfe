"""onnxruntime-genai gives what the plain session gives: same logits, same answers, whatever is done with caches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.errors import FormatError, InputError, MissingExtraError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, SessionConfig, load, open_session
from maskpro_deploy.runtime.sessions import genai_lane
from maskpro_deploy.runtime.sessions.batches import Batch, Prefill
from maskpro_deploy.system import extras

LENGTH = 128
ROOM = 16  # of a generator at first
FORMS = ("cat", "gqa")


@pytest.fixture(scope="module", params=FORMS)
def bundle(request, tiny_sparse: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("genai") / request.param
    export(tiny_sparse, out, ExportConfig(layout="genai", forms=(request.param,), max_length=LENGTH), compare=False)
    return out


@pytest.fixture(scope="module")
def genai(bundle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genai_lane, "_LEAST_ROOM", ROOM)
        yield open_session(bundle, SessionConfig(provider="genai", threads=1))


@pytest.fixture(scope="module")
def plain(bundle):
    return open_session(bundle, SessionConfig(provider="cpu", threads=1))


def read(session, lengths, seed) -> Batch:
    rng = np.random.default_rng(seed)
    prefill = Prefill([rng.integers(3, 60, n).tolist() for n in lengths])
    while not prefill.finished:
        prefill.advance(session, 5)
    return prefill.batch()


def test_greedy_tokens_are_the_same_beyond_the_first_room(genai, plain) -> None:
    prompt = [3, 4, 5, 6]
    assert genai.greedy(prompt, LENGTH - 10) == plain.greedy(prompt, LENGTH - 10)
    tokens = np.array([prompt, prompt[::-1]])
    np.testing.assert_allclose(genai.logits(tokens), plain.logits(tokens), atol=1e-5)
    assert genai.providers[0].startswith("onnxruntime-genai ")


MOVES = st.lists(
    st.one_of(
        st.just(("step", 0)),
        st.tuples(st.just("join"), st.integers(1, 9)),
        st.tuples(st.just("keep"), st.lists(st.integers(0, 7), min_size=1, max_size=4)),  # a row may be named twice
        st.tuples(st.just("fork"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(moves=MOVES, data=st.randoms(use_true_random=False))
def test_caches_stay_valid_whatever_is_done_with_them(genai, plain, moves, data) -> None:
    pairs = [(read(genai, [3, 7], 1), read(plain, [3, 7], 1))]
    for number, (move, value) in enumerate(moves):
        mine, theirs = pairs[-1]
        rows = len(theirs.lengths)
        if move == "step":
            tokens = np.arange(rows) + number
            (a, mine), (b, theirs) = mine.step(genai, tokens), theirs.step(plain, tokens)
            np.testing.assert_allclose(a, b, atol=1e-4)
        elif move == "join" and rows < 6:
            mine, theirs = mine.join(read(genai, [value], number)), theirs.join(read(plain, [value], number))
        elif move == "keep":
            chosen = [row % rows for row in value]
            mine, theirs = mine.keep(chosen), theirs.keep(chosen)
        elif move == "fork":
            mine, theirs = pairs[value % len(pairs)]
        pairs.append((mine, theirs))
    for mine, theirs in data.sample(pairs, min(3, len(pairs))):  # those that came before are what they were
        tokens = np.ones(len(theirs.lengths), np.int64)
        np.testing.assert_allclose(mine.step(genai, tokens)[0], theirs.step(plain, tokens)[0], atol=1e-4)


def test_going_back_costs_no_new_generator(genai) -> None:
    batch = read(genai, [6], 2)
    (reader,) = (row.reader for row in batch.cache.rows)
    for token in (5, 6, 7):  # the caches of earlier rounds are gone
        batch.step(genai, np.array([token]))
        assert len(reader.tokens) == 7
    kept = batch.step(genai, np.array([8]))[1]
    other = batch.step(genai, np.array([9]))[1]
    assert kept.cache.rows[0].reader is reader
    assert other.cache.rows[0].reader is not reader


def test_answers_of_the_server_are_the_same(bundle) -> None:
    """Greedy and sampled ones, several at once, more than there is room for, and some that end early."""
    answers = []
    for provider in ("cpu", "genai"):
        config = RuntimeConfig(provider=provider, threads=1, max_num_seqs=3, chunk_tokens=8)
        with load(bundle, config) as generator:
            params = [
                SamplingParams(max_tokens=12, temperature=0.0),
                SamplingParams(max_tokens=9, temperature=0.8, seed=7),
                SamplingParams(max_tokens=20, temperature=0.0, stop=("e",)),
            ]
            prompts = [f"word {i} and more"[: 6 + 3 * i] for i in range(7)]
            answers.append([completion.text for p in params for completion in generator.generate(prompts, p)])
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 7


def test_a_bundle_without_a_description_is_refused_in_plain_words(sparse_bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no genai_config\.json\.\nExport the bundle with --layout genai\."):
        open_session(sparse_bundle, SessionConfig(provider="genai"))


def test_a_graph_that_is_not_described_is_refused(tiny_sparse: Path, tmp_path: Path) -> None:
    out = tmp_path / "both"
    export(tiny_sparse, out, ExportConfig(layout="genai", forms=FORMS, max_length=LENGTH), compare=False)
    assert open_session(out, SessionConfig(provider="genai", threads=1)).graph.form == "cat"
    with pytest.raises(InputError, match=r"is for model\.onnx\.\nLeave --form out"):
        open_session(out, SessionConfig(provider="genai", form="gqa"))


def overwrite(path: Path, content: bytes) -> None:
    """Another content of the same size, which the manifest's sizes do not show."""
    path.write_bytes(content.ljust(path.stat().st_size))


def test_what_is_damaged_is_one_plain_error(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    overwrite(next(copy.glob("*.onnx")), b"no graph")
    with pytest.raises(FormatError, match=r"onnxruntime-genai cannot load .*\nExport the bundle again\."):
        open_session(copy, SessionConfig(provider="genai"))
    overwrite(copy / "genai_config.json", b"{}")
    with pytest.raises(FormatError, match="does not name a decoder's file"):
        open_session(copy, SessionConfig(provider="genai"))


def test_a_missing_library_names_its_extra(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.EXTRAS, "genai", ("no_such_module",))
    with pytest.raises(MissingExtraError, match=r"pip install 'maskpro-deploy\[genai\]'"):
        open_session(bundle, SessionConfig(provider="genai"))

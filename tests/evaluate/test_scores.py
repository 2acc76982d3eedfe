"""Laws of perplexity and of the distance to a reference."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from maskpro_deploy.data import load_text, load_tokenizer, separator_token
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.evaluate import EvalProtocol, WindowScore, compare, compare_all, log_probabilities, perplexity, score_windows
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.runtime import SessionConfig, open_session
from maskpro_deploy.torch_lm import TorchLM

Ints = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
VOCAB = 23


class TableLM:
    """The next token depends on the last one alone, by a table of logits.  # table (V, V)"""

    def __init__(self, table: npt.ArrayLike) -> None:
        self.table = np.asarray(table, np.float32)
        self.calls = 0

    def logits(self, tokens: Ints) -> Logits:
        self.calls += 1
        return self.table[tokens]


def random_lm(seed: int, scale: float = 2.0, vocab: int = VOCAB) -> TableLM:
    return TableLM(scale * np.random.default_rng(seed).standard_normal((vocab, vocab)))


def random_windows(seed: int, count: int = 5, length: int = 12, vocab: int = VOCAB) -> Ints:
    return np.random.default_rng(seed).integers(0, vocab, (count, length))


@given(st.integers(2, 300), st.integers(1, 4), st.integers(2, 9))
def test_uniform_logits_give_the_size_of_the_vocabulary(vocab: int, count: int, length: int) -> None:
    found = perplexity(TableLM(np.full((vocab, vocab), 1.7)), random_windows(0, count, length, vocab))
    assert found.perplexity == pytest.approx(vocab)
    assert found.bits_per_token == pytest.approx(math.log2(vocab))
    assert (found.windows, found.tokens) == (count, count * (length - 1))


def test_a_model_that_is_sure_and_right_has_perplexity_one() -> None:
    table = np.full((VOCAB, VOCAB), -50.0)
    table[np.arange(VOCAB), (np.arange(VOCAB) + 1) % VOCAB] = 50.0
    counting = (np.arange(12)[None] + np.arange(3)[:, None]) % VOCAB
    assert perplexity(TableLM(table), counting).perplexity == pytest.approx(1.0)


@given(st.integers(0, 2**31))
def test_perplexity_is_the_exponential_of_the_mean_negative_log_likelihood(seed: int) -> None:
    lm, windows = random_lm(seed), random_windows(seed)
    terms = []
    for window in windows:
        for given_token, target in pairwise(window):
            row = [math.exp(float(x)) for x in lm.table[given_token]]
            terms.append(-math.log(row[target] / math.fsum(row)))
    found = perplexity(lm, windows)
    assert found.nll == pytest.approx(math.fsum(terms) / len(terms), rel=1e-9)
    assert found.perplexity == pytest.approx(math.exp(math.fsum(terms) / len(terms)), rel=1e-9)
    per_window = np.asarray(terms).reshape(len(windows), -1).mean(axis=1)
    assert found.stderr == pytest.approx(found.perplexity * per_window.std(ddof=1) / math.sqrt(len(windows)))


@given(st.integers(0, 2**31), st.floats(-100, 100))
def test_a_constant_added_to_all_logits_changes_nothing(seed: int, constant: float) -> None:
    lm, windows = random_lm(seed), random_windows(seed)
    shifted = TableLM(lm.table + np.float32(constant))
    assert perplexity(shifted, windows).nll == pytest.approx(perplexity(lm, windows).nll, abs=1e-4)


@given(st.integers(0, 2**31))
def test_the_order_of_windows_does_not_matter(seed: int) -> None:
    lm, windows = random_lm(seed), random_windows(seed)
    assert perplexity(lm, windows[::-1]).perplexity == pytest.approx(perplexity(lm, windows).perplexity, rel=1e-12)


@given(st.integers(0, 2**31))
def test_a_model_is_at_no_distance_from_itself(seed: int) -> None:
    lm = random_lm(seed)
    found = compare(lm, lm, random_windows(seed))
    assert (found.kl, found.ratio, found.top1_agreement) == (0.0, 1.0, 1.0)
    assert found.ratio_stderr == 0.0


@given(st.integers(0, 2**31), st.floats(0.01, 20))
def test_kl_is_never_negative_and_agrees_with_its_definition(seed: int, scale: float) -> None:
    lm, reference, windows = random_lm(seed, scale), random_lm(seed + 1), random_windows(seed)
    found = compare(lm, reference, windows)
    assert found.kl >= 0.0
    given_tokens = windows[:, :-1].ravel()
    p = np.exp(reference.table.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    q = np.exp(lm.table.astype(np.float64))
    q /= q.sum(axis=1, keepdims=True)
    kl = (p * (np.log(p) - np.log(q))).sum(axis=1)[given_tokens]
    assert found.kl == pytest.approx(kl.mean(), rel=1e-9)
    same = (p.argmax(axis=1) == q.argmax(axis=1))[given_tokens]
    assert found.top1_agreement == pytest.approx(same.mean())
    assert found.ratio == pytest.approx(found.model.perplexity / found.reference.perplexity)


def test_long_windows_are_summed_over_all_their_pieces() -> None:
    lm, reference, windows = random_lm(0), random_lm(1), random_windows(0, 1, 301)
    found = compare(lm, reference, windows)
    pieces = [compare(lm, reference, windows[:, i : i + 2]) for i in range(300)]
    assert found.model.nll == pytest.approx(np.mean([p.model.nll for p in pieces]))
    assert found.kl == pytest.approx(np.mean([p.kl for p in pieces]))


@given(st.integers(0, 2**31), st.integers(1, 11))
def test_overlapping_windows_are_averaged_over_tokens(seed: int, stride: int) -> None:
    lm, reference, windows = random_lm(seed), random_lm(seed + 1), random_windows(seed)
    found = compare(lm, reference, windows, stride=stride)
    pairs = [(w, i) for w in range(len(windows)) for i in range(1 if w == 0 else 12 - stride, 12)]
    rows = log_probabilities(lm.table)
    nll = [-rows[windows[w, i - 1], windows[w, i]] for w, i in pairs]
    assert found.model.tokens == len(pairs)
    assert found.model.nll == pytest.approx(np.mean(nll))
    other = [-log_probabilities(reference.table)[windows[w, i - 1], windows[w, i]] for w, i in pairs]
    assert found.ratio == pytest.approx(math.exp(np.mean(nll) - np.mean(other)))


class Kept(dict[tuple[str, int], WindowScore]):
    """Scores in memory."""

    def get(self, model: str, window: int) -> WindowScore | None:  # type: ignore[override]
        return super().get((model, window))

    def put(self, model: str, window: int, score: WindowScore) -> None:
        self[model, window] = score


@given(st.integers(0, 2**31), st.sets(st.tuples(st.sampled_from(["a", "b", "r"]), st.integers(0, 4))))
def test_a_run_that_goes_on_gives_what_a_whole_run_gives(seed: int, done: set[tuple[str, int]]) -> None:
    lms = {"a": random_lm(seed), "b": random_lm(seed + 1), "r": random_lm(seed + 2)}
    windows = random_windows(seed)
    whole = Kept()
    expected = score_windows(lms, windows, reference="r", record=whole)
    kept = Kept({key: whole[key] for key in done})
    before = {name: lm.calls for name, lm in lms.items()}
    assert score_windows(lms, windows, reference="r", record=kept) == expected
    assert dict(kept) == dict(whole)
    for name in ("a", "b"):  # what was done is not done again (one call asks for the vocabulary)
        assert lms[name].calls - before[name] == 1 + sum((name, w) not in done for w in range(5))


def test_a_single_window_has_no_standard_error() -> None:
    found = compare(random_lm(0), random_lm(1), random_windows(0, count=1))
    assert found.model.stderr is None
    assert found.ratio_stderr is None
    assert found.kl_stderr is None


def test_the_reference_runs_once_per_window_however_many_models_there_are() -> None:
    reference = random_lm(9)
    lms = {f"m{i}": random_lm(i) for i in range(3)}
    windows = random_windows(0, count=4)
    own, found = compare_all(lms, reference, windows)
    assert reference.calls == 1 + 4  # and once to see its vocabulary
    assert list(found) == ["m0", "m1", "m2"]
    for name, lm in lms.items():
        assert found[name] == compare(lm, reference, windows)
        assert found[name].reference == own


def test_a_model_may_have_any_name() -> None:
    _, found = compare_all({"the reference": random_lm(1), "the reference_": random_lm(2)}, random_lm(0), random_windows(0))
    assert len(found) == 2


def test_tokens_ruled_out_by_both_count_as_equal() -> None:
    table = np.zeros((VOCAB, VOCAB))
    table[:, 3] = -np.inf
    windows = random_windows(0)
    windows[windows == 3] = 4
    found = compare(TableLM(table), TableLM(table), windows)
    assert found.kl == 0.0
    assert found.model.perplexity == pytest.approx(VOCAB - 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    table = np.zeros((VOCAB, VOCAB))
    table[5, 7] = bad
    with pytest.raises(CheckFailed, match="not numbers in window 1"):
        perplexity(TableLM(table), np.array([[1, 2, 3], [5, 6, 7]]))


def test_a_token_without_any_probability_is_an_error_not_infinity() -> None:
    table = np.zeros((VOCAB, VOCAB))
    table[5, 6] = -np.inf
    with pytest.raises(CheckFailed, match="no probability at all"):
        perplexity(TableLM(table), np.array([[1, 2, 3], [5, 6, 7]]))
    with pytest.raises(CheckFailed, match="KL is infinite"):
        compare(TableLM(table), TableLM(np.zeros((VOCAB, VOCAB))), np.array([[5, 7, 7]]))


def test_a_perplexity_beyond_all_bounds_is_an_error() -> None:
    table = np.zeros((VOCAB, VOCAB))
    table[:, 0] = 5000.0
    with pytest.raises(CheckFailed, match="the model is broken"):
        perplexity(TableLM(table), np.array([[1, 2, 3]]))


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(InputError, match="token 23 is not in the vocabulary"):
        perplexity(random_lm(0), np.array([[1, 23]]))


def test_different_vocabularies_are_an_error() -> None:
    with pytest.raises(InputError, match="vocabulary of 30, the reference one of 23"):
        compare(random_lm(0, vocab=30), random_lm(1), random_windows(0))


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)])
def test_windows_that_score_nothing_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="windows of 2 tokens or more"):
        perplexity(random_lm(0), np.zeros(shape, np.int64))


def test_log_probabilities_sum_to_one_even_for_huge_logits() -> None:
    rows = log_probabilities(np.array([[1e30, 1e30, -1e30], [-1e4, -1e4, -1e4]], np.float32))
    assert np.exp(rows).sum(axis=1) == pytest.approx([1.0, 1.0])


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


# -- real models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out(tiny_checkpoint: Path, tokenizer: Tokenizer) -> Ints:
    protocol = EvalProtocol(window=48, max_windows=6)
    return protocol.windows(
        load_text("builtin:heldout"), tokenizer, separator=separator_token(tiny_checkpoint, tokenizer), bos_token=None
    ).tokens


def test_perplexity_equals_an_independent_computation_in_torch(tiny_checkpoint: Path, held_out: Ints) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    tokens = torch.from_numpy(held_out)
    with torch.inference_mode():
        logits = model(tokens).logits[:, :-1].double()
        nll = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
    found = perplexity(TorchLM.open(tiny_checkpoint), held_out)
    assert found.perplexity == pytest.approx(float(nll.exp()), rel=1e-6)
    assert found.tokens == 6 * 47


def test_a_bundle_has_the_perplexity_of_its_checkpoint(tiny_checkpoint: Path, held_out: Ints, tmp_path: Path) -> None:
    export(tiny_checkpoint, tmp_path / "bundle", ExportConfig())
    bundle = open_session(tmp_path / "bundle", SessionConfig(provider="cpu", threads=1))
    found = compare(bundle, TorchLM.open(tiny_checkpoint), held_out)
    assert found.ratio == pytest.approx(1.0, abs=1e-5)
    assert found.kl < 1e-8
    assert found.top1_agreement == 1.0


def test_a_sparse_model_is_at_a_distance_from_its_dense_one(tiny_checkpoint: Path, tiny_sparse: Path, held_out: Ints) -> None:
    found = compare(TorchLM.open(tiny_sparse), TorchLM.open(tiny_checkpoint), held_out)
    assert found.kl > 0.01
    assert found.top1_agreement < 1.0

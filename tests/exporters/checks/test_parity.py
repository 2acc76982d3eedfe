"""`verify` must see differences of every kind, and only those that are there."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy_llama import NumpyLlama

from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.exporters import ExportConfig, export, verification_prompts, verify
from maskpro_deploy.exporters.checks.logit_figures import TOLERANCES, compare_logits, judge
from maskpro_deploy.manifest import Manifest

PROMPTS = [list(range(3, 30)), list(range(60, 80))]


class Changed(NumpyLlama):
    """The reference, but with its logits changed by a function."""

    def __init__(self, folder, change):
        super().__init__(folder)
        self._change = change

    def _forward(self, tokens):
        return self._change(super()._forward(tokens))


def test_figures_of_an_equal_model(sparse_bundle, tiny_sparse):
    reference = NumpyLlama(tiny_sparse)
    result = verify(sparse_bundle, reference, PROMPTS, greedy_tokens=8)
    assert result.passed
    assert result.tokens == 47
    assert result.top1_agreement == 1.0
    assert result.max_kl < 1e-8
    assert result.step_difference < 1e-4
    assert result.padding_difference < 1e-4
    nll = 0.0
    for prompt in PROMPTS:
        logits = reference.logits(np.asarray([prompt]))[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        nll -= sum(np.log(p[i, token]) for i, token in enumerate(prompt[1:]))
    assert result.reference_perplexity == pytest.approx(np.exp(nll / 45), rel=1e-6)
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=1e-4)
    json.dumps(result.to_json(), allow_nan=False)


def test_a_shift_of_all_logits_shows_in_the_difference_and_not_in_the_distribution(sparse_bundle, tiny_sparse):
    result = verify(sparse_bundle, Changed(tiny_sparse, lambda x: x + 0.5), PROMPTS, greedy_tokens=4)
    assert not result.passed
    assert result.max_logit_difference == pytest.approx(0.5, abs=1e-4)
    assert result.mean_logit_difference == pytest.approx(0.5, abs=1e-4)
    assert result.max_kl < 1e-8
    assert result.greedy_equal == 4


def test_a_wrong_token_order_shows_in_every_figure(sparse_bundle, tiny_sparse):
    result = verify(sparse_bundle, Changed(tiny_sparse, lambda x: -x), PROMPTS, greedy_tokens=4)
    assert not result.passed
    assert result.top1_agreement < 0.1
    assert result.mean_kl > 0.1
    assert result.greedy_equal == 0
    assert result.greedy_margin > 0
    assert result.perplexity != pytest.approx(result.reference_perplexity, rel=0.01)


def test_nan_never_passes(sparse_bundle, tiny_sparse):
    with np.errstate(invalid="ignore"):
        result = verify(sparse_bundle, Changed(tiny_sparse, lambda x: x * np.nan), PROMPTS, greedy_tokens=1)
    assert not result.passed


def test_a_bundle_of_other_weights_fails(sparse_bundle, tiny_checkpoint):
    result = verify(sparse_bundle, NumpyLlama(tiny_checkpoint), PROMPTS, greedy_tokens=2)
    assert not result.passed


def test_export_keeps_nothing_when_the_comparison_fails(tiny_sparse, tiny_checkpoint, tmp_path):
    with pytest.raises(CheckFailed, match="largest logit difference"):
        export(tiny_sparse, tmp_path / "out", reference=lambda: NumpyLlama(tiny_checkpoint))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_checkpoint_without_numbers_is_not_sent_to_another_dtype(tiny_sparse, tmp_path, dtype):
    broken = Changed(tiny_sparse, lambda x: np.full_like(x, np.nan))
    with pytest.raises(CheckFailed, match=r"The checkpoint itself gives logits that are NaN, in fp32: no --dtype") as caught:
        export(tiny_sparse, tmp_path / "out", ExportConfig(dtype=dtype), reference=lambda: broken)
    assert "Export it with" not in str(caught.value)


def test_export_writes_the_figures_into_the_manifest(tiny_sparse, tmp_path):
    export(tiny_sparse, tmp_path / "out", ExportConfig(max_length=32), reference=lambda: NumpyLlama(tiny_sparse))
    verification = Manifest.load(tmp_path / "out").verification
    assert verification["status"] == "passed"
    assert verification["greedy_equal"] == verification["greedy_tokens"] == 16
    assert verification["max_logit_difference"] < 1e-4


def test_prompts_are_held_out_text_that_fits_the_graph(sparse_bundle):
    prompts, greedy = verification_prompts(sparse_bundle, 256)
    assert (len(prompts), greedy) == (4, 64)
    assert {len(p) for p in prompts} == {96}
    short, greedy = verification_prompts(sparse_bundle, 16)
    assert {len(p) for p in short} == {8}
    assert greedy == 8


@pytest.mark.parametrize("prompts", [[], [[5]], [list(range(250))]])
def test_prompts_that_do_not_fit_are_refused(sparse_bundle, tiny_sparse, prompts):
    with pytest.raises(ConfigError):
        verify(sparse_bundle, NumpyLlama(tiny_sparse), prompts, greedy_tokens=8)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_compared_in_its_own_arithmetic(tiny_sparse, tmp_path, dtype):
    manifest = export(tiny_sparse, tmp_path / "out", ExportConfig(dtype=dtype), reference=lambda: NumpyLlama(tiny_sparse))
    figures = manifest.verification
    assert figures["status"] == "passed"
    assert figures["arithmetic"] == f"{dtype}, rounded after every node, accumulated in fp32"
    assert figures["max_logit_difference"] > (1e-3 if dtype == "fp16" else 1e-2)  # fp32 would be below 1e-4
    assert figures["range"]["layers"].keys() == {"layer 0", "layer 1", "head"}


def test_fp32_says_what_it_was_compared_in(sparse_bundle, tiny_sparse):
    figures = verify(sparse_bundle, NumpyLlama(tiny_sparse), PROMPTS, greedy_tokens=2).to_json()
    assert figures["arithmetic"] == "fp32"
    assert not figures.keys() & {"range", "warnings", "half_precision"}


@pytest.mark.parametrize(("margin", "passes"), [(0.2, True), (0.3, False), (float("nan"), False)])
def test_another_greedy_token_passes_at_a_near_tie_only(margin, passes):
    logits = np.random.default_rng(0).standard_normal((9, 20)).astype(np.float32)
    pairs = [compare_logits(logits, logits, np.arange(9))]
    found = judge(TOLERANCES["fp16"], pairs, steps=0.0, padding=0.0, greedy=8, equal=3, margin=margin)
    assert found.passed == passes

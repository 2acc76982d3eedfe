"""The model while it learns: its own logits, layers stored the other way round, shared weights, and what stays dense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_families import FAMILIES, write_family
from safetensors.numpy import load_file
from test_learn import CONFIG, PATTERN, run
from torch import nn

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.learn.loading import make_windows
from maskpro_deploy.learn.model.model import LearningModel, Windows, prunable_layers
from maskpro_deploy.learn.trainer import Trainer
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.runs.masks import compare_masks
from maskpro_deploy.torch_lm import load_causal_lm
from maskpro_deploy.validation.check import validate

WINDOWS = np.random.default_rng(0).integers(3, 300, (2, 24), dtype=np.int32)
FEW = replace(CONFIG, steps=2, evaluations=1, prior="sparsegpt")


def open_model(family: str, folder: Path) -> Any:
    return load_causal_lm(write_family(family, folder), torch.float32)


@pytest.mark.parametrize("family", ["phi", "gptj", "granite", "cohere", "gemma2", "mamba"])
def test_loss_and_gradient_are_those_of_the_models_own_logits(family: str, tmp_path: Path) -> None:
    model = open_model(family, tmp_path / "m")
    if family == "granite":
        model.config.logits_scaling = model.logits_scaling = 8.0
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        nn.init.normal_(model.get_output_embeddings().bias)
    tokens = torch.from_numpy(WINDOWS).long()
    learning = LearningModel(model)
    learning.check_head(WINDOWS)
    logits = model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())
    torch.testing.assert_close(learning.loss(WINDOWS, differentiable=False), expected, atol=1e-5, rtol=1e-5)
    gradients = []
    weight = next(layer.weight for name, layer in prunable_layers(model, PATTERN, None, None).items())
    weight.requires_grad_()
    for loss in (learning.loss(WINDOWS, differentiable=True), nn.functional.cross_entropy(
        model(tokens, use_cache=False).logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
    )):  # fmt: skip
        gradients.append(torch.autograd.grad(loss, weight)[0])
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-3)


def test_logits_that_do_not_follow_from_the_hidden_states_are_refused(tmp_path: Path) -> None:
    model = open_model("llama", tmp_path / "m")
    inner = model.forward

    def forward(tokens: torch.Tensor, **more: Any) -> Any:
        out = inner(tokens, **more)
        out.logits = out.logits + nn.functional.one_hot(tokens, out.logits.shape[-1]) * 9.0
        return out

    model.forward = forward
    with pytest.raises(InputError, match="do not follow from its last hidden states alone"):
        LearningModel(model).check_head(WINDOWS)


def test_layers_stored_the_other_way_round_get_masks_along_their_inputs(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("gpt2", tmp_path / "m"))
    result = run(dense, tmp_path / "out", text, heldout, FEW)
    name = "transformer.h.0.mlp.c_fc.weight"
    assert result.masks.shapes[name] == dense.shapes[name][::-1]
    assert result.masks.transposed == set(result.masks)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    for masked in result.masks:
        assert PATTERN.holds(weights[masked].T != 0)
        kept = result.masks.mask(masked).T
        np.testing.assert_array_equal(weights[masked], np.where(kept, dense.tensor(masked), 0))
    report = validate(tmp_path / "out", require="all")
    assert report.holds
    assert {t.axis for t in report.tensors if t.required} == {0}


def test_updated_weights_go_back_the_way_they_are_stored(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("gpt2", tmp_path / "m"))
    result = run(dense, tmp_path / "out", text, heldout, replace(FEW, steps=0, prior_update=True))
    name = "transformer.h.0.attn.c_proj.weight"  # square: a wrong order would not show in its shape
    updated, kept = load_file(tmp_path / "out" / "model.safetensors")[name], result.masks.stored_mask(name)
    original = dense.tensor(name)
    assert np.corrcoef(updated[kept], original[kept])[0, 1] > 0.9
    assert not np.array_equal(updated[kept], original[kept])


def test_a_mask_file_that_takes_a_weight_the_wrong_way_round_is_refused(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("gpt2", tmp_path / "m"))
    run(dense, tmp_path / "out", text, heldout, replace(FEW, prior="magnitude", include="attn.c_proj"))
    masks = MaskSet.load(tmp_path / "out" / MASKS_FILE)
    replace(masks, transposed=frozenset()).save(tmp_path / "other")
    (tmp_path / "other").replace(tmp_path / "out" / MASKS_FILE)
    report = validate(tmp_path / "out")
    assert not report.holds
    assert any("to be stored (out, in), it is (in, out)" in problem for problem in report.problems)


@pytest.mark.parametrize("family", ["zamba2, shared", "gpt2", "gptj", "nemotron_h", "mamba2", "qwen3_next", "gemma3n_text"])
def test_what_was_learned_is_what_transformers_reads_back(
    family: str, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {"layers_block_type": ["mamba", "hybrid"] * 2, "num_hidden_layers": 4}  # two blocks of the same weights
    shared = replace(FAMILIES["zamba2"], fields={**FAMILIES["zamba2"].fields, **blocks})
    monkeypatch.setitem(FAMILIES, "zamba2, shared", shared)
    dense = Checkpoint.open(write_family(family, tmp_path / "m"))
    result = run(dense, tmp_path / "out", text, heldout, replace(FEW, prior="wanda", learning_rate=1.0))
    windows = held_out_windows(dense, heldout)
    sparse = LearningModel(load_causal_lm(tmp_path / "out", torch.float32))
    sparse.check_head(windows)
    with torch.no_grad():
        loss = float(sparse.loss(windows, differentiable=False))
    assert loss == pytest.approx(min(point.heldout_loss for point in result.curve), abs=1e-4)
    assert abs(loss - result.dense_loss) > 1e-3


def held_out_windows(checkpoint: Checkpoint, heldout: Text) -> Windows:
    """Those that `learn` measures on."""
    every, count = make_windows(checkpoint, heldout, FEW.window), FEW.heldout_tokens // FEW.window
    return every[[i * len(every) // count for i in range(count)]]


@pytest.mark.parametrize("settings", [{"prior": "sparsegpt"}, {"prior": "magnitude", "objective": "block"}])
def test_blocks_that_take_more_than_hidden_states_are_refused_before_any_work(
    settings: dict[str, str], text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = Checkpoint.open(write_family("gemma4_text", tmp_path / "m"))
    monkeypatch.setattr(Trainer, "heldout_loss", lambda self: pytest.fail("the dense model was measured"))
    with pytest.raises(InputError, match="its blocks take more than hidden states from the tokens"):
        run(dense, tmp_path / "out", text, heldout, replace(FEW, **settings))


def test_masks_of_layers_stored_the_other_way_round_serve_as_a_prior(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("gpt2", tmp_path / "m"))
    first = run(dense, tmp_path / "out", text, heldout, FEW)
    again = run(dense, tmp_path / "again", text, heldout, replace(FEW, prior=f"file:{tmp_path / 'out'}", steps=0))
    assert again.masks.sha256() == first.masks.sha256()
    assert compare_masks(tmp_path / "out", tmp_path / "again")["groups_changed"] == 0


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("mamba", {"in_proj", "x_proj", "dt_proj", "out_proj"}),
        ("qwen2_moe", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("granitemoe", {"q_proj", "k_proj", "v_proj", "o_proj"}),
    ],
)
@pytest.mark.parametrize("objective", ["ce", "block"])
def test_what_can_be_masked_is_and_the_rest_stays_dense(
    family: str, kinds: set[str], objective: str, text: Text, heldout: Text, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = Checkpoint.open(write_family(family, tmp_path / "m"))
    config = replace(FEW, dtype="bfloat16", objective=objective)
    result = run(dense, tmp_path / "out", text, heldout, config)
    assert {name.split(".")[-2] for name in result.masks} == kinds
    assert validate(tmp_path / "out").holds
    assert validate(tmp_path / "out", require="all").holds == (family != "granitemoe")
    assert ("no tensor for each of its matrices" in caplog.text) == (family == "granitemoe")


def test_a_reward_for_every_layer_is_refused_for_experts(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = Checkpoint.open(write_family("mixtral", tmp_path / "m"))
    config = replace(FEW, estimator="maskpro", prior="magnitude")
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.experts sends them to other experts"):
        run(dense, tmp_path / "out", text, heldout, config)
    result = run(dense, tmp_path / "out", text, heldout, replace(config, exclude="experts"))
    assert validate(tmp_path / "out").holds
    assert len(result.masks) == 8

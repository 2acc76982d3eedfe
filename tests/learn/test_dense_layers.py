"""Layers that stay dense: chosen by what their masks cost, kept as they are, and said so by everything that follows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy_llama import NumpyLlama
from safetensors.numpy import load_file
from stopper import Stopper
from test_learn import CONFIG, PATTERN, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.commands.learn import command
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, Interrupted
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.learn import LearnConfig
from maskpro_deploy.learn.dense_layers import DenseChoice, Unit, choose, choose_dense, list_units
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.torch_lm import load_causal_lm
from maskpro_deploy.validation.check import validate

SHARE = replace(CONFIG, dense_share=0.2)


@pytest.fixture(scope="module")
def sparse(dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a fifth of its multiply-adds left dense."""
    out = tmp_path_factory.mktemp("dense-share") / "sparse"
    run(dense, out, text, heldout, SHARE)
    return out


def keep_pairs(layer: torch.nn.Linear) -> torch.Tensor:
    """A mask that keeps the first two of every four."""
    return torch.tensor([True, True, False, False]).repeat(layer.weight.numel() // 4).view(layer.weight.shape)


def test_a_units_divergence_is_that_of_the_model_with_its_mask_alone(dense: Checkpoint) -> None:
    model = LearningModel(load_causal_lm(dense.folder, torch.float32))
    layers = prunable_layers(model.model, PATTERN, None, None)
    before = {name: layer.weight.clone() for name, layer in layers.items()}
    batches = [torch.randint(3, 200, (2, 24), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    masks = {name: (lambda layer=layer: keep_pairs(layer)) for name, layer in layers.items()}
    choice = choose_dense(model, layers, masks, batches, 0.3)
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())

    def diverge(names: list[str]) -> float:
        plain = load_causal_lm(dense.folder, torch.float32)
        with torch.no_grad():
            logits = [plain(tokens).logits.log_softmax(-1) for tokens in batches]
            for name in names:
                plain.get_parameter(name).mul_(keep_pairs(layers[name]))
            parts = [(q.exp() * (q - plain(t).logits.log_softmax(-1))).sum(-1) for t, q in zip(batches, logits, strict=True)]
        return float(torch.cat(parts).mean())

    assert [unit.layers for unit in sorted(choice.units, key=lambda u: u.layers)] == sorted((name,) for name in layers)
    for unit in choice.units:
        assert unit.divergence == pytest.approx(diverge(list(unit.layers)), rel=1e-3, abs=1e-7)
    weights = sum(layer.weight.numel() for layer in layers.values())
    assert all(unit.work == pytest.approx(layers[unit.layers[0]].weight.numel() / weights) for unit in choice.units)
    share, divergence = choice.curve[0]
    assert (share, divergence) == (0.0, pytest.approx(diverge(list(layers)), rel=1e-3))


def test_what_fits_is_taken_by_what_a_multiply_add_buys() -> None:
    units = [
        Unit(layers=(name,), divergence=d, work=w)
        for name, d, w in (("a", 4, 0.2), ("b", 3, 0.25), ("c", 1, 0.1), ("d", 0, 0.45))
    ]
    units.sort(key=lambda unit: -unit.worth)
    assert [u.layers[0] for u in choose(units, 0.2)] == ["a"]
    assert [u.layers[0] for u in choose(units, 0.3)] == ["a", "c"]  # b does not fit any more
    assert [u.layers[0] for u in choose(units, 0.999)] == ["a", "b", "c"]  # nothing is bought by leaving d dense
    choice = DenseChoice(share=0.3, units=tuple(units), tokens=5, curve=((0.0, 1.0),))
    assert DenseChoice.from_json(json.loads(json.dumps(choice.to_json()))) == choice
    assert choice.taken == pytest.approx(0.3)


def test_experts_of_a_kind_go_together() -> None:
    names = [f"layers.{block}.experts.{i}.{kind}.weight" for block in (0, 1) for i in range(3) for kind in ("up", "down")]
    units = list_units(["layers.0.q.weight", *names])
    assert [len(unit) for unit in units] == [1, 3, 3, 3, 3]
    assert units[1] == tuple(f"layers.0.experts.{i}.up.weight" for i in range(3))


def test_chosen_layers_keep_their_weights_and_all_others_hold_the_pattern(sparse: Path, dense: Checkpoint) -> None:
    opened = Checkpoint.open(sparse)
    assert opened.masks is not None
    choice = opened.record["dense_choice"]
    written = load_file(sparse / "model.safetensors")
    assert 0 < choice["taken"] <= 0.2
    assert sorted(opened.masks.dense) == sorted(choice["dense"])
    for name in opened.masks.dense:
        assert name not in opened.masks
        assert np.array_equal(written[name], dense.tensor(name))
    assert opened.masks.dense_sha256 == dense.dense_sha256(opened.masks)
    report = validate(sparse)
    assert report.holds
    assert report.to_json()["left_dense"] == dict(opened.masks.dense)
    assert not validate(sparse, require="all").holds  # they are no less dense for having a reason


@pytest.mark.parametrize("forms", [("cat",), ("gqa",), ("cat", "gqa")])
def test_the_bundle_says_so_too(forms: tuple[str, ...], sparse: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    manifest = export(sparse, bundle, ExportConfig(forms=forms), reference=lambda: NumpyLlama(sparse))
    assert manifest.verification["status"] == "passed"
    opened = Checkpoint.open(sparse)
    assert opened.masks is not None
    assert Manifest.load(bundle).source["left_dense"] == dict(opened.masks.dense)
    report = validate(bundle)
    assert report.holds
    assert len(manifest.sparse_weights) == len(opened.masks)  # those of a product that is partly dense stand alone
    assert report.left_dense == dict(opened.masks.dense)


def test_transposable_masks_leave_layers_dense_too(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(SHARE, transposable=True, steps=2))
    assert result.masks.transposable
    assert result.masks.dense
    assert validate(tmp_path / "out", transposable=True).holds


@pytest.mark.parametrize("weights", ["frozen", "lora"])
def test_an_interrupted_run_comes_to_the_same_bits(
    weights: str, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = replace(SHARE, weights=weights)
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "parts", text, heldout, config, progress=Stopper(5))
    resumed = run(dense, tmp_path / "parts", text, heldout, config, resume=True)
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert resumed.choice == whole.choice
    assert resumed.masks.dense == whole.masks.dense
    ours, theirs = (load_file(tmp_path / part / "model.safetensors") for part in ("parts", "whole"))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_named_layers_stay_dense_and_are_listed(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=0, dense_layers=r"\.1\.mlp\."))
    assert len(result.masks.dense) == 3
    assert set(result.masks.dense.values()) == {r"--dense-layers \.1\.mlp\."}
    assert not [name for name in result.masks if ".1.mlp." in name]
    assert validate(tmp_path / "out").holds


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense_layers": "auto"}, "--dense-layers auto needs --dense-share"),
        ({"dense_share": 0.0}, "--dense-share"),
        ({"dense_share": 1.0}, "--dense-share"),
        ({"dense_share": 0.1, "dense_layers": "mlp"}, "Omit one"),
        ({"dense_share": 0.1, "prior": "sparsegpt", "prior_update": True}, "does not go with --prior-update"),
        ({"dense_share": 0.1, "prior": "file:x"}, "does not go with --prior file:x"),
        ({"dense_layers": "("}, "regular expression"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        LearnConfig(pattern=PATTERN, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dense_layers": "nothing"}, "matches no layer"),
        ({"dense_layers": "layers"}, "matches every layer"),
        ({"dense_share": 1e-6}, "less than the smallest layer"),
    ],
)
def test_what_leaves_nothing_to_do_is_refused(
    settings: dict[str, Any], message: str, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(dense, tmp_path / "out", text, heldout, replace(CONFIG, **settings))
    assert not (tmp_path / "out").exists()


def test_a_share_is_a_percentage_or_a_number(tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(tiny_checkpoint), "--steps", "0", "--json", "--out"]
    choices = []
    for share in ("30%", "0.3"):
        done = CliRunner().invoke(command, [*arguments, str(tmp_path / share), "--dense-share", share])
        assert done.exit_code == 0, done.output
        choices.append(json.loads(done.stdout)["dense_choice"])
    first, second = choices
    assert first["share"] == second["share"] == 0.3
    assert first["dense"] == second["dense"]
    refused = CliRunner().invoke(command, [*arguments, str(tmp_path / "no"), "--dense-share", "much"])
    assert isinstance(refused.exception, ConfigError)
    assert "--dense-share 'much' is not a share" in str(refused.exception)

"""Another N:M in some layers: learned, proven by name, carried into the bundle, and refused where it cannot be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy_llama import NumpyLlama
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stopper import Stopper
from test_learn import CONFIG, run

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, Interrupted, PatternError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.learn import LearnConfig, RecoverConfig, recover_checkpoint
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import LayerPatterns, NMPattern
from maskpro_deploy.runs.masks import describe_masks
from maskpro_deploy.validation.check import validate

PATTERNS = LayerPatterns.parse("2:4,down_proj=4:8,layers.0.*q_proj=1:4")
MIXED = replace(CONFIG, layer_patterns=PATTERNS.rules)
DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def sparse(dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mixed") / "sparse"
    run(dense, out, text, heldout, MIXED)
    return out


def test_every_layer_holds_its_own_pattern_and_the_proof_says_which(sparse: Path) -> None:
    masks = Checkpoint.open(sparse).masks
    assert masks is not None
    assert {name: masks.pattern_of(name) for name in masks} == {name: PATTERNS.of(name) for name in masks}
    assert masks.describe_patterns() == "2:4, 1:4 in 1, 4:8 in 2"
    assert not list(masks.find_broken())
    report = validate(sparse)
    assert report.holds
    assert "2:4, 1:4 in 1, 4:8 in 2 in all 14 required tensors" in report.verdict
    assert {t.name: t.pattern for t in report.tensors if t.required} == {name: masks.pattern_of(name) for name in masks}
    assert validate(sparse / MASKS_FILE).holds
    assert not validate(sparse, NMPattern(2, 4)).holds  # asked of all layers, it does not hold in three


def test_a_layer_that_breaks_its_own_pattern_is_found(sparse: Path, tmp_path: Path) -> None:
    masks = MaskSet.load(sparse / MASKS_FILE)
    mask = masks.mask(DOWN)
    assert not NMPattern(2, 4).holds(mask)  # else this would show nothing
    tensors = load_file(sparse / "model.safetensors")
    row, column = map(int, np.argwhere(~mask)[0])
    tensors[DOWN][row, column] = 1.0
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in sparse.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    report = validate(folder)
    assert [t.name for t in report.failed] == [DOWN]


@pytest.mark.parametrize("forms", [("cat",), ("gqa",)])
def test_a_bundle_lists_the_pattern_of_every_weight(forms: tuple[str, ...], sparse: Path, tmp_path: Path) -> None:
    manifest = export(sparse, tmp_path / "bundle", ExportConfig(forms=forms), reference=lambda: NumpyLlama(sparse))
    assert manifest.verification["status"] == "passed"
    assert manifest.sparsity == "2:4"
    listed = {weight.source: weight.pattern or manifest.sparsity for weight in manifest.sparse_weights}
    assert listed == {name: str(PATTERNS.of(name)) for name in listed}
    assert len(listed) == 14
    assert validate(tmp_path / "bundle").holds


def test_an_export_that_requires_one_pattern_refuses_others(sparse: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"holds .* asks for 2:4 in all layers"):
        export(sparse, tmp_path / "bundle", ExportConfig(require_sparsity=NMPattern(2, 4)))
    assert not (tmp_path / "bundle").exists()


def test_an_interrupted_run_comes_to_the_same_bits(
    sparse: Path, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        run(dense, tmp_path / "parts", text, heldout, MIXED, progress=Stopper(5))
    resumed = run(dense, tmp_path / "parts", text, heldout, MIXED, resume=True)
    assert resumed.masks.sha256() == MaskSet.load(sparse / MASKS_FILE).sha256()


@pytest.mark.parametrize("estimator", ["maskpro", "maskpro-paper"])
@pytest.mark.parametrize("prior", ["sparsegpt", "none"])
def test_other_estimators_and_priors_know_the_layers_own_pattern(
    estimator: str, prior: str, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    config = replace(MIXED, estimator=estimator, reward="loss", prior=prior, steps=2, learning_rate=None)
    result = run(dense, tmp_path / "out", text, heldout, config)
    assert not list(result.masks.find_broken())
    assert result.masks.pattern_of(DOWN) == NMPattern(4, 8)


@pytest.mark.parametrize("weights", ["train", "lora"])
def test_weights_are_trained_under_them(weights: str, dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    run(dense, tmp_path / "joint", text, heldout, replace(MIXED, weights=weights, steps=4))
    assert validate(tmp_path / "joint").holds
    config = RecoverConfig(steps=3, window=32, batch_tokens=64, heldout_tokens=128, evaluations=1, dtype="float32")
    recover_checkpoint(tmp_path / "joint", tmp_path / "recovered", text, heldout, config, device="cpu")
    report = validate(tmp_path / "recovered")
    assert report.holds
    assert report.to_json()["required_tensors"] == 14


def test_masks_say_so_to_readers(sparse: Path) -> None:
    facts = describe_masks(sparse)
    assert facts["sparsity"] == "2:4"
    assert facts["other_patterns"][DOWN] == "4:8"
    with safe_open(sparse / MASKS_FILE, "np") as file:
        assert file.metadata()["version"] == "3"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"patterns": "[]"}, "damaged metadata"),
        ({"patterns": '{"nothing": "4:8"}'}, "names nothing"),
        ({"patterns": json.dumps({DOWN: "8"})}, "damaged metadata"),
        ({"patterns": "{}"}, "go together"),
        ({"version": "1"}, "go together"),
        ({"dense": "[]"}, "`dense`"),
        ({"dense": json.dumps({DOWN: "why"})}, "is said to stay dense"),
    ],
)
def test_damaged_mask_files_are_refused(metadata: dict[str, str], message: str, sparse: Path, tmp_path: Path) -> None:
    with safe_open(sparse / MASKS_FILE, "np") as file:
        whole = file.metadata() | metadata
    save_file(load_file(sparse / MASKS_FILE), tmp_path / "masks.safetensors", metadata=whole)
    with pytest.raises(FormatError, match=message):
        MaskSet.load(tmp_path / "masks.safetensors")


def test_an_estimator_with_one_pattern_for_all_refuses() -> None:
    with pytest.raises(ConfigError, match="--estimator maskllm learns one pattern for all layers"):
        LearnConfig(pattern=NMPattern(2, 4), layer_patterns=PATTERNS.rules, estimator="maskllm")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2:4,down_proj", "'down_proj' is not LAYERS=N:M"),
        ("2:4,=4:8", "is not LAYERS=N:M"),
        ("2:4,(=4:8", "not a regular expression"),
        ("2:4,down_proj=8", "not an N:M pattern"),
        ("down_proj=4:8", "not an N:M pattern"),
    ],
)
def test_rules_that_cannot_be_read_are_refused(text: str, message: str) -> None:
    with pytest.raises(PatternError, match=message):
        LayerPatterns.parse(text)


def test_the_first_rule_that_matches_counts() -> None:
    patterns = LayerPatterns.parse("2:4, up_proj=4:8, proj=1:4")
    assert [str(patterns.of(name)) for name in ("a.up_proj.weight", "a.q_proj.weight", "a.fc1.weight")] == ["4:8", "1:4", "2:4"]
    assert LayerPatterns.parse(str(patterns)) == patterns

"""Channels of every kind of decoder change places, and its logits stay; what does not allow it is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from decoder_families import write_family

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.choices import TRANSFORMS, names_of
from maskpro_deploy.learn.model.model import LearningModel, prunable_layers
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.transforms import axes as axes_module
from maskpro_deploy.learn.transforms.axes import Axis, find_mlps, find_residual
from maskpro_deploy.learn.transforms.search import Found, Search
from maskpro_deploy.pattern import LayerPatterns, NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

ALL = names_of(TRANSFORMS)
PATTERN = NMPattern(2, 4)
TOKENS = (torch.arange(48) * 7 % 300 + 3)[None]


def open_search(folder: Path, dtype: torch.dtype = torch.float32, **changes: object) -> Search:
    checkpoint = Checkpoint.open(folder)
    model = LearningModel(load_causal_lm(folder, dtype))
    names = find_tensors(model, checkpoint)
    layers = prunable_layers(model.model, PATTERN, None, None, names)
    settings = {"patterns": LayerPatterns(PATTERN), "norms": None, **changes}
    return Search(model=model, layers=layers, names=names, **settings)  # type: ignore[arg-type]


def logits(search: Search) -> torch.Tensor:
    found: torch.Tensor = search.model.model(TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize(
    ("family", "axes"),
    [
        ("llama", (1, 2, 2)),
        ("llama, tied", (1, 2, 2)),
        ("llama, biases", (1, 2, 2)),
        ("llama, wide heads", (1, 2, 2)),
        ("llama, one key head", (1, 2, 2)),
        ("qwen2", (1, 2, 2)),
        ("qwen3", (1, 2, 2)),
        ("gemma2", (1, 2, 2)),
        ("gemma3_text", (1, 2, 2)),
        ("olmo2", (1, 2, 2)),
        ("phi3", (1, 2, 0)),  # value and query are one layer
        ("gpt2", (1, 2, 0)),  # and stored (in, out)
        ("opt", (1, 2, 2)),
        ("mixtral", (1, 8, 2)),  # a channel of each expert
        ("qwen3_moe", (1, 8, 2)),
        ("mamba", (0, 0, 0)),
        ("xglm", (0, 2, 2)),  # positions that are computed cannot move
        ("bitnet", (0, 0, 0)),  # weights are rounded in their order
    ],
)
def test_logits_stay_whatever_the_family(family: str, axes: tuple[int, int, int], tmp_path: Path) -> None:
    search = open_search(write_family(family, tmp_path / "model"))
    before = logits(search)
    found = search.run(ALL, TOKENS, required=False)
    kinds = found.transform.kinds()
    assert tuple(kinds.get(kind, 0) for kind in ALL) == axes
    assert set(found.refused) == {kind for kind, count in zip(ALL, axes, strict=True) if not count}
    assert float((logits(search) - before).abs().max() / before.abs().max()) < 1e-5
    assert found.difference < 1e-5
    assert all(gain > 0 for gain in found.gains.values())


def test_the_checkpoint_moves_as_the_model_did(tmp_path: Path) -> None:
    folder = write_family("llama, tied", tmp_path / "model")
    search, checkpoint = open_search(folder), Checkpoint.open(folder)
    found = search.run(ALL, TOKENS, required=True)
    moved = 0
    for own, parameter in search.model.model.named_parameters():
        tensor = checkpoint.tensor(search.names[own])
        expected = found.transform.apply(search.names[own], tensor)
        assert torch.equal(torch.from_numpy(expected.astype("float32")), parameter)
        moved += not (expected == tensor).all()
    assert moved == len(list(search.model.model.named_parameters()))


def test_norms_of_inputs_follow_their_channels(tmp_path: Path) -> None:
    folder = write_family("llama", tmp_path / "model")
    plain = open_search(folder)
    norms = {name: torch.rand(layer.in_features) for name, layer in plain.layers.items()}
    before = {name: (layer.weight.abs() * norms[name]).sum() for name, layer in plain.layers.items()}
    search = open_search(folder, norms=dict(norms))
    search.run(ALL, TOKENS, required=True)
    assert search.norms is not None
    for name, layer in search.layers.items():
        assert torch.allclose((layer.weight.abs() * search.norms[name]).sum(), before[name], rtol=1e-5)
        assert not torch.equal(search.norms[name], norms[name])


def test_a_change_that_changes_the_model_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = open_search(write_family("llama", tmp_path / "model"))
    true = find_mlps(search.model)[0]
    wrong = Axis(name=true.name, parts=1, size=true.size, places=true.places[-1:], readers=true.readers)  # only the last layer
    monkeypatch.setattr(axes_module, "find_mlps", lambda _: [wrong])
    before = [p.clone() for p in search.model.model.parameters()]
    found = search.run(("mlp",), TOKENS, required=False)
    assert "its logits change by" in found.refused["mlp"]
    assert not found.transform
    assert all(torch.equal(a, b) for a, b in zip(before, search.model.model.parameters(), strict=True))
    with pytest.raises(ConfigError, match="--transform mlp does not work for LlamaForCausalLM: its logits change"):
        search.run(("mlp",), TOKENS, required=True)


def test_in_bf16_small_mistakes_are_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = open_search(write_family("llama", tmp_path / "model"), torch.bfloat16)
    true = find_residual(search.model)[0]
    without = tuple(p for p in true.places if "layers.0.input_layernorm" not in p[0])
    wrong = Axis(name=true.name, parts=1, size=true.size, places=without, readers=true.readers)
    monkeypatch.setattr(axes_module, "find_residual", lambda _: [wrong])
    assert "residual" in search.run(("residual",), TOKENS, required=False).refused
    assert search.model.head.dtype == torch.bfloat16


def test_what_was_found_survives_json(tmp_path: Path) -> None:
    search = open_search(write_family("mamba", tmp_path / "model"))
    found = search.run(ALL, TOKENS, required=False)
    assert Found.from_json(found.to_json(), found.transform).to_json() == found.to_json()
    assert found.describe() == "nothing"

"""What a traced graph's weights hold is what transformers' model holds, under the names of the checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import make
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.exporters.frontends.base import TorchRows
from maskpro_deploy.system.extras import missing

pytestmark = pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")

KINDS = {
    "mixtral": {"num_local_experts": 4},  # a tensor for each expert, renamed
    "granitemoe": {"num_local_experts": 4},  # one tensor for all experts, renamed
    "bloom": {"tie_word_embeddings": True},  # a head that is stored once
}


@pytest.fixture
def opened(tiny_checkpoint, tmp_path):
    """Makes a checkpoint by kind, changes its tensors, and opens it and its model."""
    from maskpro_deploy.exporters.frontends.transformers_model import open_model

    def open_one(kind, change=lambda tensors: tensors):
        folder = make(kind, tmp_path / "checkpoint", tiny_checkpoint, num_hidden_layers=1, **KINDS[kind])
        model = open_model(Checkpoint.open(folder), "fp32")
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
        return Checkpoint.open(folder), model

    return open_one


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_its_values_under_the_names_of_the_checkpoint(kind, opened):
    from maskpro_deploy.exporters.frontends.experts import name_slice
    from maskpro_deploy.exporters.frontends.transformers_weights import map_weights

    checkpoint, model = opened(kind)
    weights = map_weights(checkpoint, model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        held = weights[name].rows[:] if name in weights else [weights[name_slice(name, i)].rows[:] for i in range(4)]
        np.testing.assert_array_equal(np.asarray(held), parameter.numpy(), err_msg=name)
    assert {source for weight in weights.values() for source in weight.sources} == set(checkpoint.names)
    if kind == "mixtral":
        experts = "model.layers.0.block_sparse_moe.experts.2"
        assert weights["model.layers.0.mlp.experts.gate_up_proj.2"].sources == (f"{experts}.w1.weight", f"{experts}.w3.weight")
    if kind == "granitemoe":
        whole = weights["model.layers.0.block_sparse_moe.experts.down_proj"]
        np.testing.assert_array_equal(whole.row(3).rows[:], whole.rows[3:4][0])


def test_names_without_the_first_part_are_found(opened):
    from maskpro_deploy.exporters.frontends.transformers_weights import map_weights

    checkpoint, model = opened("bloom", lambda tensors: {n.removeprefix("transformer."): t for n, t in tensors.items()})
    weights = map_weights(checkpoint, model)
    assert (
        weights["transformer.word_embeddings.weight"].sources == weights["lm_head.weight"].sources == ("word_embeddings.weight",)
    )


def test_a_missing_tensor_and_one_too_many_are_named(opened):
    from maskpro_deploy.exporters.frontends.transformers_weights import map_weights

    name = "model.layers.0.self_attn.q_proj.weight"
    with pytest.raises(FormatError, match=f"no tensor for {name!r}"):
        map_weights(*opened("mixtral", lambda tensors: {n: t for n, t in tensors.items() if n != name}))
    with pytest.raises(InputError, match=r"'extra\.weight'"):
        map_weights(*opened("mixtral", lambda tensors: tensors | {"extra.weight": np.ones(3, np.float32)}))


def test_a_way_of_joining_that_is_not_known_is_named():
    from maskpro_deploy.exporters.frontends.transformers_weights import _join

    with pytest.raises(InputError, match=r"makes 'p' of 'a' and others by Interleave 1"):
        _join("p", ("Interleave 1",), [["a", "b"]], {})


@pytest.mark.parametrize("rows", [slice(0, 9), slice(2, 3), slice(1, 7), slice(5, 5), slice(4, 9), slice(None)])
def test_rows_of_joined_tensors_are_those_of_the_whole(rows):
    import torch

    tensors = [torch.randn(4, 6), torch.randn(5, 6).bfloat16()]
    whole = np.concatenate([tensor.float().numpy() for tensor in tensors])
    joined = TorchRows(tensors)
    assert joined.shape == whole.shape
    assert np.array_equal(joined[rows], whole[rows])
    assert np.array_equal(joined[rows, 1:4], whole[rows, 1:4])

"""Checkpoints: every tensor of every shard is a weight, exempt by a rule, or unaccounted for, whatever its name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MASKS_FILE
from maskpro_deploy.validation import validate
from maskpro_deploy.validation.formats.names import Doubt, Matrix, reduction_axis, role_of
from maskpro_deploy.validation.source import Rule

UP = "model.layers.1.mlp.up_proj.weight"
LONGEST = 320


@pytest.fixture
def unlisted(tiny_sparse, tmp_path):
    """A sparse checkpoint without its mask file."""
    folder = shutil.copytree(tiny_sparse, tmp_path / "sparse")
    (folder / MASKS_FILE).unlink()
    return folder


@pytest.fixture
def listed(tiny_sparse, tmp_path):
    """A sparse checkpoint with its mask file."""
    return shutil.copytree(tiny_sparse, tmp_path / "listed")


def add(folder, drop=(), **tensors):
    found = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in found.items() if name not in drop}
    save_file(
        kept | {n.replace("__", "."): v for n, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"}
    )


def split(folder, names=("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), index=True):
    """Two shards of one file; returns the tensors of each."""
    tensors = load_file(folder / "model.safetensors")
    order = sorted(tensors)
    parts = {names[0]: order[: len(order) // 2], names[1]: order[len(order) // 2 :]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file)
    (folder / "model.safetensors").unlink()
    if index:
        write_index(folder, {n: file for file, part in parts.items() for n in part})
    return parts


def write_index(folder, places):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "role"),
    [
        ("model.layers.0.mlp.up_proj.weight", "F32", (64, 32), Matrix()),
        ("transformer.h.0.attn.in_proj_weight", "F32", (64, 32), Matrix()),
        ("norm1.linear.weight", "F32", (64, 32), Matrix()),
        ("embedder.embed_proj.weight", "F32", (64, 32), Matrix()),
        ("time_embedding.linear_1.weight", "F32", (64, 32), Matrix()),
        ("mlp.shared_expert_gate.weight", "F32", (1, 32), Rule.VECTOR),
        ("score.weight", "F32", (3, 32), Rule.HEAD),
        ("output.weight", "F32", (320, 32), Rule.HEAD),
        ("layers.0.output.weight", "F32", (32, 32), Matrix()),
        ("attn.q_proj_weight", "F32", (32, 32), Matrix()),
        ("mixer.A_log", "F32", (64, 16), Rule.ELEMENTWISE),
        ("vit.embeddings.position_embeddings", "F32", (1, 17, 32), Rule.POSITIONS),
        ("model.embed_tokens.weight", "BF16", (320, 32), Rule.TOKEN_TABLE),
        ("transformer.wpe.weight", "F32", (64, 32), Rule.TOKEN_TABLE),
        ("bert.embeddings.word_embeddings.weight", "F32", (320, 32), Rule.TOKEN_TABLE),
        ("model.embed_tokens_per_layer.weight", "F32", (320, 64), Rule.TOKEN_TABLE),
        ("lm_head.weight", "F32", (320, 32), Rule.HEAD),
        ("model.norm.weight", "F32", (32,), Rule.VECTOR),
        ("model.layers.0.mlp.up_proj.bias", "F32", (64,), Rule.VECTOR),
        ("layers.0.experts.gate_up_proj_bias", "F32", (4, 64), Rule.BIAS),
        ("h.0.attn.bias", "U8", (1, 1, 64, 64), Rule.POSITIONS),
        ("rotary_emb.inv_freq", "F32", (16,), Rule.POSITIONS),
        ("rotary_emb.cos_cached", "F32", (64, 32), Rule.POSITIONS),
        ("up_proj.weight_scale", "F32", (64, 2), Rule.QUANTISATION),
        ("up_proj.__weight_mma_mask", "BOOL", (64, 32), Rule.BOOLEAN),
        ("mixer.conv1d.weight", "F32", (64, 1, 4), Rule.NARROW),
        ("conv.conv.weight", "F32", (32, 1, 3), Rule.NARROW),
        ("model.layers.3.lm_head.weight", "F32", (320, 32), Matrix()),
        ("embed_state.weight", "F32", (64, 32), Matrix()),
        ("block.shared.weight", "F32", (64, 32), Matrix()),
        ("shared.weight", "F32", (320, 32), Rule.TOKEN_TABLE),
        ("position_ids", "I64", (1, 512), Rule.POSITIONS),
        ("num_batches_tracked", "I64", (), Rule.INDEX),
    ],
)
def test_what_a_tensor_is(name, dtype, shape, role):
    assert role_of(name, dtype, shape, LONGEST, partner=2048) == role


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [
        ("up_proj.weight_qdata", "I8", (64, 32)),
        ("up_proj.weight._data", "I8", (64, 32)),
        ("up_proj.qweight", "I32", (8, 32)),
        ("up_proj.weight_packed", "I32", (64, 4)),
        ("up_proj.W_q", "U8", (64, 32)),
        ("up_proj.codes", "I16", (64, 4, 1)),
        ("up_proj.trellis", "U16", (4, 4, 16)),
        ("block_sparse_moe.input_linear.weight", "F32", (4, 64, 32)),
        ("mlp.experts.gate_up_proj", "F32", (4, 64, 32)),
        ("ffn.w1", "F32", (64, 32)),
        ("patch_embed.proj.weight", "F32", (64, 3, 4, 4)),
        ("flat_param", "F32", (2048,)),
        ("up_proj.packed", "U8", (1024, 1)),
        ("feature_extractor.conv_layers.0.conv.weight", "F32", (512, 1, 10)),
        ("up_proj.scales", "F32", (64, 64)),
        ("up_proj.x_bias", "F32", (64, 32)),
        ("up_proj.weight", "BOOL", (64, 32)),
        ("patch_embed.proj.weight", "F32", (64, 1, 16, 16)),
    ],
)
def test_what_may_hide_a_weight_is_in_doubt(name, dtype, shape, unlisted):
    assert isinstance(role_of(name, dtype, shape, LONGEST), Doubt)


def test_a_tensor_in_doubt_forbids_a_pass_and_is_named(unlisted):
    assert validate(unlisted).holds
    add(unlisted, model__layers__0__experts__w1=np.ones((4, 8, 8), np.float32))
    report = validate(unlisted)
    assert not report.holds
    assert [(u.name, u.bytes) for u in report.unchecked] == [("model.layers.0.experts.w1", 1024)]
    assert report.account.unaccounted == 1024


@pytest.mark.parametrize("suffix", ["_qdata", "._data"])
def test_a_partly_packed_checkpoint_is_not_passed(unlisted, suffix):
    add(unlisted, drop=[UP], **{UP.replace(".", "__") + suffix.replace(".", "__"): np.zeros((64, 32), np.int8)})
    assert "unaccounted for" in validate(unlisted).verdict


@pytest.mark.parametrize(
    "extra",
    [
        *("lora_A__weight", "weight_scale_2d__codes", "weight___data", "x_bias", "emb__weight", "lm_head__weight", "cos_cached"),
        *("lora_embedding__weight", "scales"),
    ],
)
def test_what_stands_next_to_a_listed_weight_may_change_it(listed, extra):
    assert validate(listed).holds
    add(listed, **{UP.removesuffix("weight").replace(".", "__") + extra: np.ones((8, 32), np.float32)})
    report = validate(listed)
    assert not report.holds
    assert "which is listed" in report.unchecked[0].reason


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module."])
def test_an_adapter_under_another_prefix_is_not_passed(listed, prefix):
    add(listed, **{(prefix + UP.removesuffix("weight") + "lora_A.weight").replace(".", "__"): np.ones((8, 32), np.float32)})
    assert not validate(listed).holds


@pytest.mark.parametrize(
    "name", ["lycoris_model_layers_1_mlp_up_proj.lokr_w1", "layers.1.mlp.up_proj.diff", "model_layers_1_mlp_up_proj.res"]
)
def test_an_adapter_in_another_spelling_is_not_passed(listed, name):
    tensors = load_file(listed / "model.safetensors") | {name: np.ones((8, 32), np.float32)}
    save_file(tensors, listed / "model.safetensors")
    assert not validate(listed).holds


def test_the_same_layer_of_another_part_of_the_model_is_a_layer_of_its_own(listed):
    tensors = load_file(listed / "model.safetensors") | {"vision.layers.1.mlp.up_proj.weight": np.ones((8, 32), np.float32)}
    save_file(tensors, listed / "model.safetensors")
    assert validate(listed).holds


def test_an_adapter_file_is_a_contradiction(unlisted):
    (unlisted / "adapter_config.json").write_text("{}")
    assert "not merged" in validate(unlisted).verdict


def test_weights_of_inner_folders_are_named(unlisted):
    (unlisted / "2_Dense").mkdir()
    save_file({"w": np.ones((8, 8), np.float32)}, unlisted / "2_Dense" / "model.safetensors")
    assert "2_Dense/model.safetensors" in validate(unlisted).notes[0]


def test_a_router_is_known_by_its_name_and_the_number_of_experts(unlisted):
    add(unlisted, model__layers__0__mlp__gate__weight=np.ones((4, 32), np.float32))
    assert not validate(unlisted).holds
    config = json.loads((unlisted / "config.json").read_text()) | {"num_local_experts": 4}
    (unlisted / "config.json").write_text(json.dumps(config))
    report = validate(unlisted)
    assert report.holds
    assert report.account.exempt[Rule.ROUTER] == 512


@pytest.mark.parametrize(("scale_name", "zero_name"), [("weight_scale", "weight_zero_point"), ("SCB", "weight_zp")])
@pytest.mark.parametrize(("zero", "scale", "holds"), [(0, 1.0, True), (3, 1.0, False), (0, np.inf, False), (0, 0.0, False)])
def test_integers_count_with_their_zero_points_and_scales(unlisted, zero, scale, holds, scale_name, zero_name):
    weight = load_file(unlisted / "model.safetensors")[UP]
    module = UP.removesuffix("weight").replace(".", "__")
    extra = {
        module + "weight": (weight != 0).astype(np.int8) * 5,
        module + scale_name: np.full((len(weight), 1), scale, np.float32),
        module + zero_name: np.full((len(weight), 1), zero, np.int8),
    }
    add(unlisted, **extra)
    assert validate(unlisted).holds == holds


@pytest.mark.parametrize(
    ("config", "axis"),
    [
        ({"model_type": "gpt2"}, 0),
        ({"model_type": "llama"}, None),
        ({"model_type": "gpt_bigcode"}, 1),
        ({"model_type": ["gpt2"]}, None),
        ({"decoder": {"model_type": "gpt2"}}, 0),
        ({}, None),
    ],
)
def test_the_axis_of_layers_that_one_family_transposes(config, axis):
    assert reduction_axis("h.0.attn.c_attn.weight", config) == axis
    assert reduction_axis("score.weight", config) == 1


def test_what_masks_leave_out_is_declared_dense(listed):
    add(listed, model__experts__w1=np.ones((4, 8, 8), np.float32))
    report = validate(listed)
    assert report.holds
    assert report.account.exempt[Rule.UNLISTED] == 1024
    assert not validate(listed, require="all").holds


@pytest.mark.parametrize("folder", ["listed", "unlisted"])
def test_bytes_add_up_to_the_files(folder, request):
    path = request.getfixturevalue(folder)
    account = validate(path).account
    assert account.total == sum(t.nbytes for t in load_file(path / "model.safetensors").values())
    assert account.total == account.proven + account.broken + account.unaccounted + sum(account.exempt.values())
    header = int.from_bytes((path / "model.safetensors").read_bytes()[:8], "little") + 8
    assert (path / "model.safetensors").stat().st_size == account.total + header
    assert account.unaccounted == account.broken == 0


class TestShards:
    def test_whole_ones_hold(self, unlisted):
        split(unlisted)
        assert validate(unlisted).holds

    def test_one_outside_the_index_is_read_too(self, unlisted):
        split(unlisted)
        save_file({"more.up_proj.weight": np.ones((8, 8), np.float32)}, unlisted / "model-00003-of-00003.safetensors")
        assert [t.name for t in validate(unlisted).failed] == ["more.up_proj.weight"]

    @pytest.mark.parametrize("number", [0, 1])
    def test_one_that_the_numbering_calls_for_is_missed(self, unlisted, number):
        parts = split(unlisted, index=False)
        missing = sorted(parts)[number]
        (unlisted / missing).unlink()
        with pytest.raises(FormatError, match=f"{missing} is missing"):
            validate(unlisted)

    def test_a_tensor_of_the_index_that_is_nowhere_is_a_contradiction(self, unlisted):
        parts = split(unlisted)
        first = sorted(parts)[0]
        write_index(unlisted, {n: f for f, names in parts.items() for n in names} | {"gone.weight": first})
        assert any("gone.weight, which is in no file" in p for p in validate(unlisted).problems)

    def test_a_tensor_in_another_shard_than_the_index_says_is_a_contradiction(self, unlisted):
        parts = split(unlisted)
        first, second = sorted(parts)
        places = {n: f for f, names in parts.items() for n in names}
        moved = parts[first][0]
        write_index(unlisted, places | {moved: second})
        assert any(moved in p and first in p for p in validate(unlisted).problems)

    def test_a_tensor_in_two_shards_is_a_contradiction(self, unlisted):
        parts = split(unlisted)
        first, second = sorted(parts)
        again = load_file(unlisted / second) | {parts[first][0]: load_file(unlisted / first)[parts[first][0]]}
        save_file(again, unlisted / second)
        assert any("two files" in p for p in validate(unlisted).problems)


@pytest.mark.parametrize(("last", "holds"), [("bias", True), ("up_proj_bias", True), ("up_proj_gain", False)])
def test_a_vector_of_a_listed_layer_is_harmless_if_it_is_a_bias(listed, last, holds):
    module = UP.removesuffix(".weight")
    name = f"{module}.bias" if last == "bias" else f"{module.rpartition('.')[0]}.{last}"
    add(listed, **{name: np.ones(64, np.float32)})
    assert validate(listed).holds is holds

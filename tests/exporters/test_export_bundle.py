"""What `export` writes, read back without the exporters' own code."""

from __future__ import annotations

import json
import shutil

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy_llama import NumpyLlama
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError
from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

PROMPTS = [list(range(3, 40)), list(range(100, 120))]
Q0 = "model.layers.0.self_attn.q_proj.weight"


def stored(bundle, name):
    """An initializer's values, through onnx's own loader."""
    model = onnx.load(bundle / "model.onnx")
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


# -- the graph computes what the model computes ---------------------------------------------------------------------------


def untied(config, weights):
    config["tie_word_embeddings"] = False
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"][::-1]


def linear_rope_in_old_fields(config, weights):
    del config["rope_parameters"]
    config |= {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}}


def llama3_rope(config, weights):
    config["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 1000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }


def biases(config, weights):
    config |= {"attention_bias": True, "mlp_bias": True}
    rng = np.random.default_rng(1)
    for name in [n for n in weights if "_proj" in n]:
        weights[name.replace("weight", "bias")] = rng.standard_normal(len(weights[name])).astype(np.float32) / 4


def mistral(config, weights):
    config |= {"model_type": "mistral", "sliding_window": None}


def without_head_dim(config, weights):
    del config["head_dim"]


def stored_in_bf16(config, weights):
    weights |= {name: w.astype(ml_dtypes.bfloat16) for name, w in weights.items()}


def with_a_copy_of_the_tied_head(config, weights):
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]


VARIANTS = [
    untied,
    linear_rope_in_old_fields,
    llama3_rope,
    biases,
    mistral,
    without_head_dim,
    stored_in_bf16,
    with_a_copy_of_the_tied_head,
]


@pytest.mark.parametrize("change", VARIANTS, ids=lambda f: f.__name__)
def test_every_variant_agrees_with_numpy(variant, tmp_path, change):
    checkpoint = variant(change)
    export(checkpoint, tmp_path / "out")
    result = verify(tmp_path / "out", NumpyLlama(checkpoint), PROMPTS, greedy_tokens=8)
    assert result.passed, result
    assert result.max_logit_difference < 1e-4
    assert result.greedy_equal == 8


def test_fp16_agrees_within_its_tolerance_and_gives_fp32_logits(half_bundle, tiny_sparse):
    result = verify(half_bundle, NumpyLlama(tiny_sparse), PROMPTS, greedy_tokens=4)
    assert result.passed
    assert 1e-3 < result.max_logit_difference < 0.2
    model = onnx.load(half_bundle / "model.onnx", load_external_data=False)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert types["logits"] == onnx.TensorProto.FLOAT
    assert types["past_key_values.1.value"] == types["present.0.key"] == onnx.TensorProto.FLOAT16


def test_agrees_with_transformers(sparse_bundle, tiny_sparse):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from maskpro_deploy.torch_lm import TorchLM

    result = verify(sparse_bundle, TorchLM.open(tiny_sparse), PROMPTS, greedy_tokens=16)
    assert result.max_logit_difference < 1e-4
    assert result.greedy_equal == 16


# -- names, shapes, sizes -------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_are_those_of_the_contract(sparse_bundle):
    model = onnx.load(sparse_bundle / "model.onnx", load_external_data=False)

    def dims(value):
        return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    inputs = {v.name: dims(v) for v in model.graph.input}
    outputs = {v.name: dims(v) for v in model.graph.output}
    kv = {f"{i}.{kind}" for i in range(2) for kind in ("key", "value")}
    assert inputs.keys() == {"input_ids", "attention_mask", "position_ids", *(f"past_key_values.{x}" for x in kv)}
    assert outputs.keys() == {"logits", *(f"present.{x}" for x in kv)}
    assert inputs["input_ids"] == inputs["position_ids"] == ["batch", "new"]
    assert inputs["attention_mask"] == ["batch", "total"]
    assert inputs["past_key_values.0.key"] == ["batch", 2, "past", 8]
    assert outputs["present.0.key"] == ["batch", 2, "total", 8]
    assert outputs["logits"] == ["batch", "new", 320]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 23)]


def test_graph_is_small_and_a_tied_head_is_stored_once(sparse_bundle):
    assert (sparse_bundle / "model.onnx").stat().st_size < 1 << 20
    model = onnx.load(sparse_bundle / "model.onnx", load_external_data=False)
    big = [t.name for t in model.graph.initializer if list(t.dims) in ([320, 32], [32, 320])]
    assert big == ["model.embed_tokens.weight"]


def test_manifest_describes_the_bundle_and_no_path_of_this_machine(sparse_bundle, tiny_sparse):
    manifest = Manifest.load(sparse_bundle)
    manifest.check_hashes(sparse_bundle)
    assert {f.path for f in manifest.files} == {f.name for f in sparse_bundle.iterdir()} - {"manifest.json"}
    assert (manifest.model.num_heads, manifest.model.num_kv_heads, manifest.model.head_dim) == (4, 2, 8)
    assert manifest.model.eos_token_ids == (2,)
    assert manifest.verification["status"] == "not verified"
    masks = Checkpoint.open(tiny_sparse).masks
    assert manifest.source["masks_sha256"] == masks.sha256()
    assert manifest.source["dense_sha256"] == masks.dense_sha256
    for file in ("manifest.json", "model.onnx"):
        assert str(tiny_sparse.parent).encode() not in (sparse_bundle / file).read_bytes()


def test_metadata_of_the_graph_says_what_it_is(sparse_bundle):
    model = onnx.load(sparse_bundle / "model.onnx", load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    assert props["maskpro.sparsity"] == "2:4"
    assert props["maskpro.sparsity_axis"] == "0"
    assert props["maskpro.kv_form"] == "cat"
    hashes = {f.path: f.sha256 for f in Manifest.load(sparse_bundle).files}
    assert props["maskpro.data_sha256"] == hashes["model.onnx.data"]


def test_dense_twin_shares_the_hash_of_the_dense_weights(tiny_checkpoint, sparse_bundle, tmp_path):
    dense = export(tiny_checkpoint, tmp_path / "out")
    assert dense.sparsity is None
    assert dense.sparse_weights == ()
    assert dense.source["dense_sha256"] == Manifest.load(sparse_bundle).source["dense_sha256"]


def test_changed_weights_have_a_hash_of_their_own(tiny_sparse, sparse_bundle, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(tiny_sparse, changed)
    weights = load_file(changed / "model.safetensors")
    save_file({**weights, Q0: weights[Q0] * np.float32(1.5)}, changed / "model.safetensors", metadata={"format": "pt"})
    (changed / "learn.json").write_text(json.dumps({"weights_changed": True}))
    before, after = Manifest.load(sparse_bundle).source, export(changed, tmp_path / "out").source
    assert "weights_sha256" not in before
    assert after["weights_changed"] is True
    assert after["dense_sha256"] == before["dense_sha256"]  # those that the masks were made for
    assert after["weights_sha256"] == Checkpoint.open(changed).dense_sha256(Checkpoint.open(tiny_sparse).masks)


def test_same_checkpoint_gives_the_same_bytes(tiny_sparse, sparse_bundle, tmp_path):
    export(tiny_sparse, tmp_path / "again")
    for file in sparse_bundle.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_max_length_bounds_the_rotary_tables(tiny_checkpoint, tmp_path):
    manifest = export(tiny_checkpoint, tmp_path / "out", ExportConfig(max_length=100))
    assert manifest.model.max_length == 100
    assert stored(tmp_path / "out", "rope.cos").shape == (100, 4)


def test_end_tokens_come_from_all_places(variant, tmp_path):
    def change(config, weights):
        config["eos_token_id"] = [5, 9]

    checkpoint = variant(change)
    (checkpoint / "generation_config.json").write_text(json.dumps({"eos_token_id": 7}))
    manifest = export(checkpoint, tmp_path / "out")
    assert manifest.model.eos_token_ids == (2, 5, 7, 9)  # 2 is the <|end|> that tokenizer_config.json names


# -- sparsity -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_pattern_holds_along_axis_0_of_the_written_bytes(tiny_sparse, tmp_path, dtype):
    manifest = export(tiny_sparse, tmp_path / "out", ExportConfig(dtype=dtype, require_sparsity=NMPattern(2, 4)))
    assert manifest.sparsity == "2:4"
    assert len(manifest.sparse_weights) == 14
    masks = Checkpoint.open(tiny_sparse).masks
    for weight in manifest.sparse_weights:
        values = stored(tmp_path / "out", weight.initializer).astype(np.float32)
        assert values.shape == weight.shape
        assert ((values.reshape(-1, 4, values.shape[1]) != 0).sum(axis=1) == 2).all()
        np.testing.assert_array_equal(values != 0, masks.mask(weight.source).T)
        assert not np.signbit(values[values == 0]).any()


def test_weights_that_break_their_mask_are_refused(variant, tiny_sparse, tmp_path):
    def change(config, weights):
        weights[Q0][3, :4] = 1.0

    with pytest.raises(CheckFailed, match=r"q_proj.weight has 1 of 256 groups with more than 2"):
        export(variant(change, tiny_sparse), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_required_sparsity_refuses_dense_and_other_patterns(tiny_checkpoint, tiny_sparse, tmp_path):
    with pytest.raises(CheckFailed, match="does not hold 2:4"):
        export(tiny_checkpoint, tmp_path / "out", ExportConfig(require_sparsity=NMPattern(2, 4)))
    with pytest.raises(CheckFailed, match="pattern 2:4"):
        export(tiny_sparse, tmp_path / "out", ExportConfig(require_sparsity=NMPattern(1, 4)))


def test_required_sparsity_accepts_zeros_of_another_tool_and_mends_negative_zeros(variant, tiny_sparse, tmp_path):
    masks = Checkpoint.open(tiny_sparse).masks

    def change(config, weights):
        for name in masks:
            weights[name] = np.where(masks.mask(name), weights[name], np.float32(-0.0))

    checkpoint = variant(change)
    manifest = export(checkpoint, tmp_path / "out", ExportConfig(require_sparsity=NMPattern(2, 4)))
    assert {w.source for w in manifest.sparse_weights} == set(masks)
    assert not np.signbit(stored(tmp_path / "out", Q0)[~masks.mask(Q0).T]).any()


@pytest.mark.parametrize("quantize", [None, "int4"])
def test_a_pruned_folder_without_masks_is_exported_as_sparse(variant, tiny_sparse, tmp_path, caplog, quantize):
    masks = Checkpoint.open(tiny_sparse).masks

    def change(config, weights):
        for name in masks:
            weights[name] = np.where(masks.mask(name), weights[name], np.float32(-0.0))

    manifest = export(variant(change), tmp_path / "out", ExportConfig(quantize=quantize, block_size=16 if quantize else None))
    assert (manifest.sparsity, manifest.source["masks_inferred"]) == ("2:4", True)
    assert manifest.source["masks_sha256"] == masks.sha256()
    assert {w.source for w in manifest.sparse_weights} == set(masks)
    assert "holds in 14 of 14 projections: it is exported as sparse" in caplog.text
    assert validate(tmp_path / "out").holds


def test_only_projections_that_hold_a_pattern_are_claimed_and_short_groups_are_lawful(variant, tiny_sparse, tmp_path):
    column = int(np.flatnonzero(Checkpoint.open(tiny_sparse).masks.mask(Q0)[0])[0])

    def change(config, weights):
        weights[Q0][0, column] = 0
        weights[Q0.replace("q_proj", "o_proj")][:] = 1

    checkpoint = variant(change, tiny_sparse)
    (checkpoint / "masks.safetensors").unlink()
    manifest = export(checkpoint, tmp_path / "out")
    assert (len(manifest.sparse_weights), manifest.source["groups_below_n"]) == (13, 1)
    report = validate(tmp_path / "out")
    assert report.holds
    assert report.to_json()["short_groups"] == 1
    with pytest.raises(CheckFailed, match=r"does not hold 2:4: .*o_proj"):  # without a list, all are meant
        export(checkpoint, tmp_path / "none", ExportConfig(require_sparsity=NMPattern(2, 4)))


def test_a_few_sparse_projections_do_not_make_a_model_sparse(variant, tiny_sparse, tmp_path):
    pruned = Checkpoint.open(tiny_sparse)

    def change(config, weights):
        weights |= {name: pruned.tensor(name) for name in pruned.masks if "q_proj" in name}
        weights[Q0.replace("q_proj", "o_proj")][:] = 0

    manifest = export(variant(change), tmp_path / "out")
    assert manifest.sparsity is None
    assert "masks_inferred" not in manifest.source


def test_a_kept_weight_that_becomes_zero_in_the_cast_is_counted_not_refused(variant, tiny_sparse, tmp_path):
    masks = Checkpoint.open(tiny_sparse).masks
    column = int(np.flatnonzero(masks.mask(Q0)[0])[0])

    def change(config, weights):
        weights[Q0][0, column] = -1e-12  # below the smallest fp16 number

    manifest = export(variant(change, tiny_sparse), tmp_path / "out", ExportConfig(dtype="fp16"))
    assert manifest.source["groups_below_n"] == 1
    assert not np.signbit(stored(tmp_path / "out", Q0)[column, 0])


# -- bad input: one plain error, nothing kept -----------------------------------------------------------------------------


def drop(field):
    return lambda config, weights: config.pop(field)


def put(field, value):
    return lambda config, weights: config.update({field: value})


def wrong_shape(config, weights):
    weights[Q0] = weights[Q0][:-8]


def missing_tensor(config, weights):
    del weights["model.norm.weight"]


def extra_tensor(config, weights):
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)


def smaller_vocabulary(config, weights):
    config["vocab_size"] = 300
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300]


def nan(config, weights):
    weights[Q0][0, 0] = np.nan


def infinite(config, weights):
    weights[Q0][0, 0] = -np.inf


def quantised(config, weights):
    weights[Q0] = weights[Q0].astype(np.int8)


BAD = {
    "no vocab_size": (drop("vocab_size"), FormatError, "vocab_size"),
    "no rms_norm_eps": (drop("rms_norm_eps"), FormatError, "rms_norm_eps"),
    "activation": (put("hidden_act", "riddle"), InputError, r"'riddle' is not supported. Supported: silu"),
    "rope kind": (put("rope_parameters", {"rope_type": "spiral", "rope_theta": 1e4}), InputError, r"rope_type 'spiral' is not"),
    "yarn without a length": (
        put("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2}),
        FormatError,
        "original_max_position_embeddings",
    ),
    "two rope kinds": (put("rope_scaling", {"rope_type": "linear", "factor": 2}), FormatError, "Remove one"),
    "rope field": (put("rope_parameters", {"rope_type": "linear", "rope_theta": 1e4}), FormatError, "factor"),
    "rope object": (put("rope_scaling", "linear"), FormatError, "rope_scaling must be an object"),
    "heads": (put("num_key_value_heads", 3), FormatError, "no multiple"),
    "not a number": (put("hidden_size", "32"), FormatError, "whole number"),
    "odd head": (put("head_dim", 7), FormatError, "odd"),
    "no end token": (put("eos_token_id", "x"), FormatError, "token id"),
    "wrong size": (put("intermediate_size", 128), FormatError, r"shape \(64, 32\).* calls for \(128, 32\)"),
    "wrong shape": (wrong_shape, FormatError, r"q_proj.weight has shape \(24, 32\)"),
    "missing tensor": (missing_tensor, FormatError, "no tensor 'model.norm.weight'"),
    "extra tensor": (extra_tensor, InputError, "q_norm.weight"),
    "smaller vocabulary": (smaller_vocabulary, FormatError, "320 tokens, the model knows 300"),
    "nan": (nan, FormatError, r"q_proj.weight has NaN values.\nThe checkpoint is damaged"),
    "infinite": (infinite, FormatError, r"q_proj.weight has infinite values.\nThe checkpoint is damaged"),
    "quantised": (quantised, FormatError, "packed by a tool that it does not name .I8."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints_give_one_plain_error_and_no_bundle(variant, tmp_path, case):
    change, error, message = BAD[case]
    checkpoint = variant(change)
    with pytest.raises(error, match=message) as caught:
        export(checkpoint, tmp_path / "out")
    assert len(str(caught.value).splitlines()) <= 4  # a line for each that was asked
    assert [p.name for p in tmp_path.iterdir()] == ["variant"]


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_a_damaged_weight_is_not_called_too_large_for_fp16(variant, tmp_path, damage):
    def change(config, weights):
        weights[Q0][0, 0] = damage

    with pytest.raises(FormatError, match="damaged") as caught:
        export(variant(change), tmp_path / "out", ExportConfig(dtype="fp16"))
    assert "--dtype" not in str(caught.value)


def test_values_beyond_fp16_are_refused(variant, tmp_path):
    def change(config, weights):
        weights[Q0][0, 0] = -1e6

    checkpoint = variant(change)
    words = (
        r"q_proj.weight has values up to 1e\+06; the largest fp16 number is 65504.\nExport it with --dtype bf16 \(wider range\)"
    )
    with pytest.raises(FormatError, match=words):
        export(checkpoint, tmp_path / "out", ExportConfig(dtype="fp16"))
    assert not (tmp_path / "out").exists()
    export(checkpoint, tmp_path / "out", ExportConfig(dtype="bf16"))


def test_values_beyond_fp32_are_sent_to_no_other_type(variant, tmp_path):
    def change(config, weights):
        weights[Q0] = weights[Q0].astype(np.float64)
        weights[Q0][0, 0] = 1e40

    checkpoint = variant(change)
    for dtype in ("fp32", "bf16"):
        with pytest.raises(FormatError, match=r"values up to 1e\+40; the largest") as caught:
            export(checkpoint, tmp_path / "out", ExportConfig(dtype=dtype))
        assert "No --dtype holds them" in str(caught.value)


def test_a_checkpoint_without_tokenizer_is_refused(tiny_checkpoint, tmp_path):
    folder = tmp_path / "bare"
    shutil.copytree(tiny_checkpoint, folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer.json"):
        export(folder, tmp_path / "out")


def test_an_existing_folder_is_kept_unless_forced(tiny_checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="--force"):
        export(tiny_checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"
    export(tiny_checkpoint, tmp_path / "out", force=True)
    assert Manifest.load(tmp_path / "out")


def test_the_checkpoint_itself_is_never_replaced(variant):
    checkpoint = variant(lambda config, weights: None)
    for out in (checkpoint, checkpoint.parent):
        with pytest.raises(InputError, match="replace the checkpoint"):
            export(checkpoint, out, force=True)
    assert Checkpoint.open(checkpoint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"dtype": "fp8"}, "--dtype fp8"), ({"max_length": 3}, "--max-length 3"), ({"forms": ("cat", "paged")}, "--forms paged")],
)
def test_settings_out_of_range_name_the_flag(settings, message):
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**settings)


def test_a_length_beyond_the_models_is_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="--max-length 257"):
        export(tiny_checkpoint, tmp_path / "out", ExportConfig(max_length=257))

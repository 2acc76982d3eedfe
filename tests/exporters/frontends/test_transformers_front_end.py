"""Architectures that neither a template nor mobius-onnx builds go through transformers' own exporter and pass the same checks."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import pytest
from architectures import make
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import InputError
from maskpro_deploy.exporters import ExportConfig, bundle, export, verify
from maskpro_deploy.exporters.architectures.registry import TEMPLATES
from maskpro_deploy.exporters.frontends.templates import use_template
from maskpro_deploy.exporters.graph.cache_forms.base import make_form
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.exporters.plan import _limit_length
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.extras import missing
from maskpro_deploy.validation import validate

pytestmark = pytest.mark.skipif(
    bool(missing("learn") or missing("architectures")), reason="the extras learn and architectures are not installed"
)

PROMPTS = [list(range(3, 63)), list(range(100, 150))]
LAYERS = {"num_hidden_layers": 2}
LLAMA = {
    "model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 9,
    "intermediate_size": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
DECODERS = {
    "bloom": {"seq_length": 512, **LAYERS},  # a slope of each head in place of positions; fused q, k, v
    "gptj": {"rotary_dim": 4, "n_inner": 64, **LAYERS},  # parts in parallel; a head with a bias; heads turned in pairs
    # keys and values of different size; experts, one tensor each; a first layer without them
    "deepseek_v2": {
        "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
        "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "first_k_dense_replace": 1, **LAYERS,
    },
}  # fmt: skip


@pytest.fixture
def made(tiny_checkpoint, tmp_path):
    """Makes a checkpoint by kind."""
    return lambda kind, **fields: make(kind, tmp_path / "checkpoint", tiny_checkpoint, **{**DECODERS.get(kind, {}), **fields})


def sparse(folder, out):
    """The checkpoint with the largest half of each group of its layers' matrices."""
    dense, pattern = Checkpoint.open(folder), NMPattern(2, 4)
    names = [n for n in dense.names if len(dense.shapes[n]) == 2 and (".h." in n or ".layers." in n)]
    masks = MaskSet.from_arrays(pattern, {n: pattern.top(np.abs(dense.tensor(n))) for n in names}, dense.dense_sha256(names))
    save_sparse(dense, masks, out, {})
    return out


@pytest.mark.parametrize("kind", DECODERS)
def test_a_sparse_checkpoint_agrees_with_transformers_and_keeps_its_pattern(kind, made, tmp_path, monkeypatch):
    from maskpro_deploy.torch_lm import TorchLM

    made_by = []  # a trace takes long, so its template serves twice
    monkeypatch.setattr(
        bundle, "use_template", lambda source, use, *_, **__: use_template(source, lambda t: use(made_by.append(t) or t))
    )
    checkpoint = sparse(made(kind), tmp_path / "sparse")
    manifest = export(checkpoint, tmp_path / "out", ExportConfig(require_sparsity=NMPattern(2, 4)))
    result = verify(tmp_path / "out", TorchLM.open(checkpoint), PROMPTS, greedy_tokens=256)
    assert result.passed, result
    assert max(result.max_logit_difference, result.step_difference, result.padding_difference) < 1e-4
    assert result.greedy_equal == 256
    assert manifest.source["front_end"].startswith("transformers ")
    assert manifest.sparsity == "2:4"
    assert {w.source for w in manifest.sparse_weights} == set(Checkpoint.open(checkpoint).masks)
    report = validate(tmp_path / "out")
    assert report.holds, report.verdict
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    cache = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in cache)]
    assert [value.name for value in model.graph.input] == inputs
    assert {value.name for value in model.graph.output} == {"logits", *(f"present.{c}" for c in cache)}
    constants = {t.name: tuple(t.dims) for t in model.graph.initializer}
    turned = [n.name for n in model.graph.node if n.op_type == "Transpose" and len(constants.get(n.input[0], ())) == 2]
    assert turned == (["/lm_head/tied"] if kind == "bloom" else [])
    (template,) = made_by
    config = template.read(Checkpoint.open(checkpoint).config)
    for form in ("static", "gqa"):
        with pytest.raises(InputError, match=r"traces its own cache, which grows by Concat.*\n.*--forms cat"):
            template.build(Layers(config, make_form(form, 64), "fp32"))


def test_half_precision_and_integers_have_logits_in_fp32(made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made("persimmon", num_hidden_layers=1)
    config = ExportConfig(dtype="fp16", quantize="int8")
    manifest = export(checkpoint, tmp_path / "out", config, reference=lambda: TorchLM.open(checkpoint))
    assert manifest.verification["status"] == "passed"
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert types["logits"] == TensorProto.FLOAT
    assert types["past_key_values.0.key"] == types["present.0.key"] == TensorProto.FLOAT16
    stored = {t.name: t.data_type for t in model.graph.initializer}
    assert stored["model.layers.0.self_attn.query_key_value.weight"] == TensorProto.INT8


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_is_a_product_and_a_sum(turned, bias):
    from maskpro_deploy.exporters.frontends.transformers_trace import split_gemm

    rng = np.random.default_rng(0)
    x, w, c = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3), (4, 3) if turned else (3, 4), (4,)))
    inputs = ["x", "w", "c"] if bias else ["x", "w"]
    gemm = helper.make_node("Gemm", inputs, ["y"], name="gemm", transB=turned)
    nodes = split_gemm(gemm, {"w", "c"})
    assert "Gemm" not in {node.op_type for node in nodes}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    given = dict(zip(inputs, (x, w, c), strict=False))
    ours, theirs = (
        ReferenceEvaluator(helper.make_model(helper.make_graph(n, "g", values, out))).run(None, given)[0] for n in (nodes, [gemm])
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_bf16_values_are_computed_in_fp32_and_rounded():
    import ml_dtypes
    import onnxruntime

    from maskpro_deploy.exporters.frontends.transformers_trace import widen

    nodes = [
        helper.make_node("Cast", ["x"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["narrow", "narrow"], ["square"], name="square"),
        helper.make_node("Cast", ["square"], ["y"], to=TensorProto.FLOAT),
    ]
    wide = [made for node in nodes for made in widen(node, {"narrow", "square"})]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    model = helper.make_model(helper.make_graph(wide, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    values = np.asarray([1 / 3, 3.14159, 1000.5], np.float32)
    (computed,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": values})
    rounded = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(computed, (rounded * rounded).astype(np.float32))
    assert not np.array_equal(computed, values * values)


def test_a_gemm_of_two_values_stays():
    from maskpro_deploy.exporters.frontends.transformers_trace import split_gemm

    gemm = helper.make_node("Gemm", ["x", "y"], ["z"], name="gemm")
    assert split_gemm(gemm, {"w"}) == [gemm]


# -- refusals -------------------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(made, tmp_path):
    folder = made("bloom")
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.h.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"(?s)mobius-onnx: .*\ntransformers: .*no tensor for 'transformer.h.1.mlp.dense_h_to_4h"
    ):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_too_many_is_named(made, tmp_path):
    folder = made("gptj")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.adapter.weight"] = np.ones((4, 4), np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"(?s)mobius-onnx.*'transformer.h.0.adapter.weight'"):
        export(folder, tmp_path / "out")


STATES = {
    "rwkv": ({"attention_hidden_size": 32}, True),
    "mamba": ({}, True),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, True),
    "granitemoehybrid": ({"layer_types": ["mamba", "attention"]}, True),
    "granitemoehybrid, attention alone": ({"layer_types": ["attention", "attention"]}, False),
    "gemma3_text": ({"layer_types": ["sliding_attention", "full_attention"]}, False),
    "bloom": ({}, False),
    "no such kind": ({}, False),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_is_not_keys_and_values_is_refused_before_any_work(case, tmp_path):
    from maskpro_deploy.exporters.frontends.transformers_model import check_stateless

    fields, refused = STATES[case]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": case.partition(",")[0], "num_hidden_layers": 2, **fields}))
    source = Checkpoint(folder=tmp_path, config=json.loads((tmp_path / "config.json").read_text()), shard_of={})
    if not refused:
        check_stateless(source)
        return
    with pytest.raises(InputError, match=r"cannot be exported: model_type '\w+' keeps a state"):
        check_stateless(source)


@pytest.mark.parametrize(("asked", "given"), [(None, 2048), (5000, 5000)])
def test_a_model_that_names_no_length_has_the_one_that_is_asked_for(asked, given):
    from maskpro_deploy.exporters.frontends.base import read_length

    assert read_length({"hidden_size": 8}) == 0
    unlimited = dataclasses.replace(TEMPLATES["llama"].read(LLAMA), max_length=0)
    assert _limit_length(unlimited, asked).max_length == given

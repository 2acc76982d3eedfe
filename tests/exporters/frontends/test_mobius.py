"""Architectures without a template go through mobius-onnx and pass the same checks."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from architectures import make
from onnx import TensorProto, helper
from packed_folders import VESTIGIAL, compress, repack, say
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import CheckFailed, ConfigError, FormatError, InputError, MissingExtraError
from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.exporters.frontends import templates
from maskpro_deploy.exporters.frontends.mobius_graph import MobiusGraph, is_causal
from maskpro_deploy.exporters.frontends.templates import blame_graph, use_template
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system import extras
from maskpro_deploy.system.extras import missing
from maskpro_deploy.validation import validate

pytestmark = pytest.mark.skipif(
    bool(missing("learn") or missing("architectures")), reason="the extras learn and architectures are not installed"
)

PROMPTS = [list(range(3, 63)), list(range(100, 150))]
DECODERS = {
    "granite": {},  # factors on embeddings, residuals, logits
    "olmo2": {},  # norms behind the projections, and over all heads
    "stablelm": {},  # LayerNorm, part of a head turned
    "gpt_neox": {},  # fused q, k, v, head by head; parallel parts
    "starcoder2": {"sliding_window": 24},  # biases; a window that mobius leaves out
    "mixtral": {"sliding_window": None},  # experts
}


@pytest.fixture
def made(tiny_checkpoint, tmp_path):
    """Makes a checkpoint by kind and changes its config and weights."""

    def make_one(kind, change=lambda config, weights: None, **fields):
        folder = make(kind, tmp_path / "checkpoint", tiny_checkpoint, **{**DECODERS.get(kind, {}), **fields})
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        change(config, weights)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make_one


@pytest.mark.parametrize("kind", DECODERS)
def test_every_form_agrees_with_transformers(kind, made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made(kind)
    manifest = export(checkpoint, tmp_path / "out", ExportConfig(forms=("cat", "static", "gqa"), max_length=400))
    result = verify(tmp_path / "out", TorchLM.open(checkpoint), PROMPTS, greedy_tokens=256)
    assert result.passed, result
    assert result.max_logit_difference < 1e-3
    assert result.greedy_equal == 256
    assert all(figures["status"] == "passed" for figures in manifest.verification["forms"].values())
    assert manifest.source["front_end"].startswith("mobius-onnx ")
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    constants = {t.name: tuple(t.dims) for t in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    assert all(node.name.startswith("/") for node in products)
    turned = [n.name for n in model.graph.node if n.op_type == "Transpose" and len(constants.get(n.input[0], ())) == 2]
    assert turned == (["/lm_head/tied"] if kind == "starcoder2" else [])


def sparse(folder, out):
    """The checkpoint with the largest half of each group of its layers' matrices."""
    dense, pattern = Checkpoint.open(folder), NMPattern(2, 4)
    names = [n for n in dense.names if len(dense.shapes[n]) == 2 and ".layers." in n]
    masks = MaskSet.from_arrays(pattern, {n: pattern.top(np.abs(dense.tensor(n))) for n in names}, dense.dense_sha256(names))
    save_sparse(dense, masks, out, {})
    return out


@pytest.mark.parametrize(("kind", "quantize"), [("gpt_neox", None), ("granite", "int4"), ("granite", "int8")])
def test_the_pattern_is_proven_on_what_was_cut_renamed_and_quantised(kind, quantize, made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = sparse(made(kind), tmp_path / "sparse")
    config = ExportConfig(quantize=quantize, block_size=16 if quantize else None, require_sparsity=NMPattern(2, 4))
    manifest = export(checkpoint, tmp_path / "out", config, reference=lambda: TorchLM.open(checkpoint))
    assert manifest.verification["status"] == "passed"
    assert manifest.sparsity == "2:4"
    sources = [w.source for w in manifest.sparse_weights]
    assert set(sources) == set(Checkpoint.open(checkpoint).masks)
    if kind == "gpt_neox":  # q, k and v from one tensor
        assert sources.count("gpt_neox.layers.0.attention.query_key_value.weight") == 3
    report = validate(tmp_path / "out")
    assert report.holds, report.verdict


def test_what_config_json_says_of_quantisation_is_not_built_into_the_graph_of_plain_weights(made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = say(made("stablelm"), VESTIGIAL["dense with a sparsity_config"])
    behind_bitmask = repack(sparse(checkpoint, tmp_path / "sparse"), tmp_path / "bitmask", compress, {"quant_method": "x"})
    for number, folder in enumerate((checkpoint, behind_bitmask)):
        manifest = export(folder, tmp_path / str(number), reference=lambda folder=folder: TorchLM.open(folder))
        assert manifest.source["front_end"].startswith("mobius-onnx ")
        assert manifest.verification["status"] == "passed"


def test_half_precision_has_logits_in_fp32(made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made("granite")
    manifest = export(checkpoint, tmp_path / "out", ExportConfig(dtype="fp16"), reference=lambda: TorchLM.open(checkpoint))
    assert manifest.verification["status"] == "passed"
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    assert types["logits"] == TensorProto.FLOAT
    assert types["past_key_values.0.key"] == types["present.0.key"] == TensorProto.FLOAT16


def test_a_norm_whose_scale_is_computed_stays_behind_its_sum(made, tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "MOBIUS_AGREES", {"gemma"})
    manifest = export(made("gemma"), tmp_path / "out", ExportConfig(forms=("cat", "gqa")))  # it scales by 1 + weight
    assert manifest.verification["forms"]["gqa"]["status"] == "passed"


def test_the_same_checkpoint_gives_the_same_bytes(made, tmp_path):
    checkpoint = made("olmo2")
    first, second = (export(checkpoint, tmp_path / name) for name in "ab")
    assert [f for f in first.files if f.path.startswith("model")] == [f for f in second.files if f.path.startswith("model")]
    assert first.graph == second.graph == Manifest.load(tmp_path / "b").graph


# -- refusals -------------------------------------------------------------------------------------------------------------


def drop(config, weights):
    del weights["model.layers.1.mlp.up_proj.weight"]


def cut(config, weights):
    weights["model.layers.1.mlp.up_proj.weight"] = weights["model.layers.1.mlp.up_proj.weight"][:32].copy()


def add(config, weights):
    weights["model.layers.0.adapter.weight"] = np.ones((4, 4), np.float32)


BAD = {
    "unknown": (
        "granite",
        lambda c, w: c.update(model_type="no_such_model"),
        InputError,
        "(?s)no_such_model.*mobius-onnx: it .* only a comparison.*transformers: it does not know",
    ),
    "no type": ("granite", lambda c, w: c.pop("model_type"), InputError, "names no model_type"),
    "an encoder": ("granite", lambda c, w: c.update(model_type="vit"), InputError, "does not know this model_type as a causal"),
    "a tensor is missing": ("granite", drop, FormatError, "no tensor for 'model.layers.1.mlp.up_proj.weight'"),
    "a tensor is too short": ("granite", cut, FormatError, r"has shape \(32, 32\), its config.json calls for \(64, 32\)"),
    "a tensor too many": ("granite", add, InputError, "adapter.weight"),
    "no sizes": (
        "granite",
        lambda c, w: c.update(hidden_size=0),
        FormatError,
        "(?s)mobius-onnx: it cannot build.*other shapes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_exported_is_one_plain_error(case, made, tmp_path):
    kind, change, error, message = BAD[case]
    with pytest.raises(error, match=message) as caught:
        export(made(kind, change), tmp_path / "out")
    assert len(str(caught.value).splitlines()) <= 3
    assert not (tmp_path / "out").exists()


def test_biased_attention_is_refused(made):
    checkpoint = Checkpoint.open(made("mpt"))
    with pytest.raises(InputError, match="its attention adds a bias to scores"):
        MobiusGraph(checkpoint).read(checkpoint.config)


def test_a_graph_that_computes_something_else_gives_way_to_the_next(made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made("cohere", num_hidden_layers=1)  # mobius 0.1.0 turns its heads the other way
    config = ExportConfig(max_length=64)
    manifest = export(checkpoint, tmp_path / "out", config, reference=lambda: TorchLM.open(checkpoint))
    assert manifest.source["front_end"].startswith("transformers ")
    assert manifest.verification["status"] == "passed"
    # the last front end has no other form: the error has what both said, and nothing is kept
    config = ExportConfig(forms=("gqa",))
    with pytest.raises(InputError, match=r"(?s)\nmobius-onnx: .*does not agree.*\ntransformers: the form 'gqa'") as caught:
        export(checkpoint, tmp_path / "gqa", config, reference=lambda: TorchLM.open(checkpoint))
    assert len(str(caught.value).splitlines()) == 3
    assert not (tmp_path / "gqa").exists()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((CheckFailed, CheckFailed), CheckFailed),
        ((FormatError, FormatError), FormatError),
        ((CheckFailed, FormatError), InputError),
    ],
)
def test_all_refusals_are_one_error(kinds, expected, made, monkeypatch):
    source = Checkpoint.open(made("granite"))
    monkeypatch.setattr(templates, "_translate_mobius", lambda *_: "mobius-onnx")
    monkeypatch.setattr(templates, "_trace_transformers", lambda *_: "transformers")
    errors = dict(zip(("mobius-onnx", "transformers"), kinds, strict=True))

    def use(template):
        with blame_graph():
            raise errors[template](f"{source.folder}: what {template} says.\nand more.\nand what is too much.")

    def refuse(template):
        with blame_graph():
            raise kinds[0]("the same of both")

    with pytest.raises(expected) as caught:
        use_template(source, use)
    assert type(caught.value) is expected
    assert str(caught.value).splitlines() == [
        f"{source.folder} (model_type 'granite') cannot be exported.",
        *(f"{name}: what {name} says. and more." for name in errors),
    ]
    with pytest.raises(kinds[0], match=r"^the same of both$"):
        use_template(source, refuse)
    with pytest.raises(ConfigError, match="a setting"), blame_graph():  # the user's, whoever builds the graph
        raise ConfigError("a setting")


def test_without_the_front_end_the_error_names_the_extra(made, tmp_path, monkeypatch):
    checkpoint = made("granite")
    monkeypatch.setitem(extras.EXTRAS, "architectures", ("no_such_module",))
    with pytest.raises(MissingExtraError, match=r"'granite', which has no template here, needs no_such_module") as caught:
        export(checkpoint, tmp_path / "out")
    assert "maskpro-deploy[architectures]" in str(caught.value)


# -- masks ----------------------------------------------------------------------------------------------------------------


def slots():
    """Nodes that number the tokens: `columns` (T,), `rows` (S, 1)."""
    return [
        helper.make_node("Shape", ["input_ids"], ["new"], start=1, end=2),
        helper.make_node("Shape", ["attention_mask"], ["total"], start=1, end=2),
        helper.make_node("Squeeze", ["total"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["columns"]),
        helper.make_node("Sub", ["total", "new"], ["past"]),
        helper.make_node("Slice", ["columns", "past", "total"], ["late"]),
        helper.make_node("Unsqueeze", ["late", "last"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["flags"], to=TensorProto.BOOL),
        helper.make_node("Unsqueeze", ["flags", "middle"], ["counts"]),
        helper.make_node("GreaterOrEqual", ["rows", "columns"], ["before"]),
    ]


CONSTANTS = {
    "zero": np.asarray(0),
    "one": np.asarray(1),
    "last": np.asarray([1]),
    "middle": np.asarray([1, 2]),
    "low": np.float32(-1e38),
    "none": np.float32(0),
    "window": np.asarray(4),
}
BOTH = helper.make_node("And", ["before", "counts"], ["both"])
ADDED = helper.make_node("Where", ["both", "none", "low"], ["added"])
DISTANCE = [
    helper.make_node("Sub", ["rows", "columns"], ["distance"]),
    helper.make_node("Less", ["distance", "window"], ["near"]),
]
NEAR = helper.make_node("And", ["both", "near"], ["windowed"])
SLOPED = [
    helper.make_node("Cast", ["distance"], ["slope"], to=TensorProto.FLOAT),
    helper.make_node("Sub", ["added", "slope"], ["sloped"]),
]
MASKS = {
    "padding alone, with a causal operator": ("counts", True, [], True),
    "padding alone": ("counts", False, [], False),
    "causal without padding": ("before", False, [], False),
    "both": ("both", False, [BOTH], True),
    "both, added to scores": ("added", False, [BOTH, ADDED], True),
    "a window": ("windowed", False, [BOTH, *DISTANCE, NEAR], True),
    "a slope": ("sloped", False, [BOTH, ADDED, *DISTANCE, *SLOPED], False),
    "what weights decide": ("learned", False, [helper.make_node("Add", ["weight", "weight"], ["learned"])], False),
}


@pytest.mark.parametrize("case", MASKS)
def test_a_mask_is_known_by_what_it_hides(case):
    value, causal, nodes, expected = MASKS[case]
    assert is_causal([*slots(), *nodes], CONSTANTS, value, causal=causal, opset=23) is expected

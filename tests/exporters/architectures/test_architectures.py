"""Every architecture computes what transformers computes, in every form of the cache."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import pytest
from architectures import DECODERS, make
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import CheckFailed, FormatError, InputError
from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.exporters.architectures.registry import TEMPLATES
from maskpro_deploy.exporters.checks.ort_model import open_model
from maskpro_deploy.exporters.frontends import templates
from maskpro_deploy.exporters.frontends.templates import use_template
from maskpro_deploy.manifest import Manifest
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system import extras
from maskpro_deploy.system.extras import missing
from maskpro_deploy.validation import validate

pytestmark = pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")

PROMPTS = [list(range(3, 63)), list(range(100, 150))]
ALL_FORMS = ExportConfig(forms=("cat", "static", "gqa"))


@pytest.mark.parametrize("name", DECODERS)
def test_every_form_agrees_with_transformers(name, tiny_checkpoint, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = make(name, tmp_path / "checkpoint", tiny_checkpoint)
    manifest = export(checkpoint, tmp_path / "out", ALL_FORMS)
    result = verify(tmp_path / "out", TorchLM.open(checkpoint), PROMPTS, greedy_tokens=256)
    assert result.passed, result
    assert result.max_logit_difference < 1e-3
    assert result.greedy_equal == 256
    for form in ("static", "gqa"):
        figures = manifest.verification["forms"][form]
        assert figures["status"] == "passed"
        assert figures["greedy_equal"] == figures["greedy_tokens"] == 64
        assert max(figures["max_logit_difference"], figures["padding_difference"]) < 1e-3


WIDE = {"hidden_size": 64, "head_dim": 16}  # wide enough for onnxruntime's rotary embedding inside attention
PACKED = {  # name -> nodes of its graph alone: products, rotary embeddings by themselves
    "llama with yarn": (13, 0),
    "qwen2 with windows": (13, 0),
    "qwen3": (19, 0),  # q and k are normed before they are turned
    "smollm3": (13, 0),
    "gemma2": (13, 0),
    "phi3": (13, 0),
    "phi4 with longrope": (19, 6),  # two tables
    "opt": (13, 0),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_gqa_graph_alone_packs_its_products_and_agrees(name, tiny_checkpoint, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = make(name, tmp_path / "checkpoint", tiny_checkpoint, **({} if name in ("opt", "phi4 with longrope") else WIDE))
    export(checkpoint, tmp_path / "out", ExportConfig(forms=("gqa",)))
    nodes = [n.op_type for n in onnx.load(tmp_path / "out" / "model_gqa.onnx", load_external_data=False).graph.node]
    assert (nodes.count("MatMul"), nodes.count("RotaryEmbedding")) == PACKED[name]
    assert nodes.count("SkipSimplifiedLayerNormalization") == (0 if name == "opt" else 6)
    result = verify(tmp_path / "out", TorchLM.open(checkpoint), PROMPTS, greedy_tokens=64)
    assert result.passed, result
    assert result.greedy_equal == 64


# -- what checkpoints do otherwise ----------------------------------------------------------------------------------------


@pytest.fixture
def made(tiny_checkpoint, tmp_path):
    """Makes a checkpoint by name and changes its config and weights."""

    def make_one(name, change=lambda config, weights: None, **fields):
        folder = make(name, tmp_path / "checkpoint", tiny_checkpoint, **fields)
        config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        change(config, weights)
        (folder / "config.json").write_text(json.dumps(config))
        save_file(
            {k: np.ascontiguousarray(v) for k, v in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"}
        )
        return folder

    return make_one


def assert_agrees(checkpoint, out, greedy=32):
    from maskpro_deploy.torch_lm import TorchLM

    export(checkpoint, out)
    result = verify(out, TorchLM.open(checkpoint), PROMPTS, greedy_tokens=greedy)
    assert result.passed, result
    assert result.greedy_equal == greedy


def test_gpt2_without_the_first_part_of_its_names_and_with_stored_masks(made, tmp_path):
    def as_on_the_hub(config, weights):
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        for i in range(3):
            weights[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 512, 512), np.float32))

    assert_agrees(made("gpt2", as_on_the_hub), tmp_path / "out")


def test_a_learned_table_of_positions_is_cut_to_the_length(made, tmp_path):
    checkpoint = made("opt")
    export(checkpoint, tmp_path / "out", ExportConfig(max_length=100))
    model = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert [list(t.dims) for t in model.graph.initializer if "positions" in t.name] == [[102, 32]]


def test_gemma3_with_the_older_fields(made, tmp_path):
    def older(config, weights):
        del config["rope_parameters"], config["layer_types"]
        config |= {"rope_theta": 5e5, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2}
        config["rope_scaling"] = {"rope_type": "linear", "factor": 4.0}

    assert_agrees(made("gemma3", older), tmp_path / "out")


def test_yarn_with_every_field(made, tmp_path):
    fields = {"mscale": 0.9, "mscale_all_dim": 0.7, "beta_fast": 8.0, "beta_slow": 2.0, "truncate": False}
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64, **fields}
    assert_agrees(made("llama with yarn", rope_parameters=rope), tmp_path / "out")


@pytest.mark.parametrize("length", [399, 401, 450])
def test_longrope_reads_its_second_table_beyond_the_original_length(made, tmp_path, length):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made("phi4 with longrope")
    export(checkpoint, tmp_path / "out")
    prompt = [(7 * i) % 300 + 3 for i in range(length)]
    shorter = prompt[: length // 3]  # a row of its own batch reads the table of its own length
    result = verify(tmp_path / "out", TorchLM.open(checkpoint), [prompt[:390], shorter], greedy_tokens=4)
    assert result.passed
    tokens = np.asarray([prompt])
    ours = open_model(tmp_path / "out", Manifest.load(tmp_path / "out")).logits(tokens)
    np.testing.assert_allclose(ours, TorchLM.open(checkpoint).logits(tokens), atol=1e-3)


def test_parts_of_a_fused_weight_are_proven_one_by_one(made, tmp_path):
    def prune(config, weights):
        for name in [n for n in weights if "_proj" in n]:
            groups = weights[name].reshape(len(weights[name]), -1, 4)
            groups[..., :2] = 0

    checkpoint = made("phi3", prune)
    manifest = export(checkpoint, tmp_path / "out", ExportConfig(require_sparsity=NMPattern(2, 4)))
    parts = Counter(w.source.split(".")[-2] for w in manifest.sparse_weights)
    assert parts == {"qkv_proj": 3 * 3, "o_proj": 3, "gate_up_proj": 3 * 2, "down_proj": 3}
    assert all(w.axis == 0 for w in manifest.sparse_weights)


def test_layers_stored_with_their_inputs_first_are_recognised_as_sparse(made, tmp_path):
    def prune(config, weights):
        for name in [n for n in weights if ".c_" in n and n.endswith(".weight")]:
            weights[name].reshape(-1, 4, weights[name].shape[1])[:, 2:] = 0  # (in, out): groups lie down the columns

    manifest = export(made("gpt2", prune), tmp_path / "out")
    assert (manifest.sparsity, len(manifest.sparse_weights)) == ("2:4", 3 * 6)
    assert validate(tmp_path / "out").holds


BAD = {
    "a field is missing": ("gpt2", lambda c, w: c.pop("n_embd"), FormatError, "n_embd"),
    "kind of layer": ("gemma2", lambda c, w: c.update(layer_types=["chunked_attention"] * 3), InputError, "chunked_attention"),
    "too few kinds": ("gemma2", lambda c, w: c.update(layer_types=["full_attention"]), FormatError, "3 layers"),
    "rope lists": ("phi4 with longrope", lambda c, w: c["rope_parameters"].update(long_factor=[1.0]), FormatError, "long_factor"),
    "no_rope_layers": ("smollm3", lambda c, w: c.update(no_rope_layers=[1]), FormatError, "no_rope_layers"),
    "odd part of a head": (
        "llama with yarn",
        lambda c, w: c["rope_parameters"].update(partial_rotary_factor=0.4),
        FormatError,
        "would turn 3 of head_dim 8",
    ),
    "window": ("gemma2", lambda c, w: c.update(sliding_window=-1), FormatError, "sliding_window"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_configs_give_one_plain_error_and_no_bundle(made, tmp_path, case):
    name, change, error, message = BAD[case]
    checkpoint = made(name, change)
    with pytest.raises(error, match=message) as caught:
        export(checkpoint, tmp_path / "out")
    assert len(str(caught.value).splitlines()) <= 4  # a line for each that was asked
    assert not (tmp_path / "out").exists()


VARIANTS = {
    "norms after": ("opt", {"do_layer_norm_before": False}),
    "projected embeddings": ("opt", {"word_embed_proj_dim": 16}),
    "unscaled attention": ("gpt2", {"scale_attn_weights": False}),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_a_variant_that_a_template_does_not_know_is_left_to_the_front_ends(made, monkeypatch, case):
    name, fields = VARIANTS[case]
    checkpoint = Checkpoint.open(made(name, **fields))
    field = next(iter(fields))
    with pytest.raises(InputError, match=f"{field} {fields[field]}"):
        TEMPLATES[name].read(checkpoint.config)
    asked = []
    monkeypatch.setattr(templates, "_trace_transformers", lambda source, *_: asked.append(source))
    use_template(checkpoint, lambda template: template)
    assert asked == [checkpoint]
    monkeypatch.setitem(extras.EXTRAS, "architectures", ("no_such_module",))
    with pytest.raises(InputError, match=f"{field} {fields[field]}"):
        use_template(checkpoint, lambda template: template)


def test_heads_that_gqa_cannot_take_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="--forms gqa: onnxruntime's operator takes heads of a multiple of 8"):
        export(made("qwen3", head_dim=12), tmp_path / "out", ALL_FORMS)


def test_a_failed_comparison_names_the_first_layer_that_differs(made, tmp_path):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made("qwen3")
    other = TorchLM.open(checkpoint)
    other._model.model.layers[1].mlp.up_proj.weight.data *= 1.5
    with pytest.raises(CheckFailed, match=r"The first layer whose output differs is layer 1 of 3 \(/model/layers.1/add_mlp\)"):
        export(checkpoint, tmp_path / "out", reference=lambda: other)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi3"])
def test_calibration_runs_on_every_kind_of_graph(made, tmp_path, name):
    from maskpro_deploy.torch_lm import TorchLM

    checkpoint = made(name)
    config = ExportConfig(quantize="int8", block_size=16, method="calibrated", max_length=128)
    manifest = export(checkpoint, tmp_path / "out", config, reference=lambda: TorchLM.open(checkpoint))
    assert manifest.graph.quantization == "int8 block 16, calibrated"
    assert manifest.verification["status"] == "passed"
    assert manifest.verification["mean_kl"] < 0.1

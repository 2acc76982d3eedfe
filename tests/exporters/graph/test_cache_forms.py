"""Three forms of the cache over one data file: what each graph looks like, and that all give the same tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy_llama import NumpyLlama

from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.errors import CheckFailed, ConfigError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.exporters.checks.ort_model import open_model
from maskpro_deploy.exporters.graph.cache_forms import static
from maskpro_deploy.manifest import Manifest

FORMS = tuple(CACHE_FORMS)
PROMPT = list(range(3, 40))


@pytest.fixture(scope="module")
def bundle(tiny_sparse, tmp_path_factory):
    out = tmp_path_factory.mktemp("forms") / "out"
    export(tiny_sparse, out, ExportConfig(forms=FORMS, max_length=128))
    return out


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def graph(bundle, form):
    manifest = Manifest.load(bundle)
    entry = next(g for g in (manifest.graph, *manifest.siblings) if g.form == form)
    return onnx.load(bundle / entry.file, load_external_data=False), entry


def test_siblings_are_listed_and_share_the_data_file(bundle):
    manifest = Manifest.load(bundle)
    manifest.check_hashes(bundle)
    assert manifest.graph.file == "model.onnx"
    assert [(g.form, g.file, g.opset, g.length) for g in manifest.siblings] == [
        ("static", "model_static.onnx", 24, 128),
        ("gqa", "model_gqa.onnx", 23, None),
    ]
    assert [f.path for f in manifest.files if f.path.endswith(".data")] == ["model.onnx.data"]
    places = []
    for form in FORMS:
        model, entry = graph(bundle, form)
        assert (bundle / entry.file).stat().st_size < 1 << 20
        places.append({t.name: [(e.key, e.value) for e in t.external_data] for t in model.graph.initializer if t.external_data})
    assert places[0] == places[1] == places[2]


def test_a_single_form_needs_no_cat(tiny_checkpoint, tmp_path):
    manifest = export(tiny_checkpoint, tmp_path / "out", ExportConfig(forms=("gqa",)))
    assert (manifest.graph.form, manifest.graph.file, manifest.siblings) == ("gqa", "model_gqa.onnx", ())


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_tokens_of_the_model(bundle, tiny_sparse, form):
    manifest = Manifest.load(bundle)
    entry = graph(bundle, form)[1]
    model, reference = open_model(bundle, manifest, entry), NumpyLlama(tiny_sparse)
    assert model.greedy(PROMPT, 24) == reference.greedy(PROMPT, 24)
    shorter = PROMPT[5:20]
    for ours, prompt in zip(model.logits_together(PROMPT, shorter), (PROMPT, shorter), strict=True):
        np.testing.assert_allclose(ours, reference.logits(np.asarray([prompt]))[0], atol=1e-4)


def test_static_graph_writes_a_cache_of_fixed_length_under_an_explicit_additive_mask(bundle):
    model, _ = graph(bundle, "static")
    dims = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    assert dims["past_key_values.1.key"] == ["batch", 2, 128, 8]
    assert dims["write_indices"] == ["batch"]
    assert "attention_mask" not in dims
    nodes = {n.op_type: n for n in model.graph.node}
    assert nodes["TensorScatter"].output[0] in {o.name for o in model.graph.output}
    attention = nodes["Attention"]
    assert len(attention.input) == 4  # no past, no nonpad_kv_seqlen
    assert {a.name: a.i for a in attention.attribute}["is_causal"] == 0
    mask = next(n for n in model.graph.node if attention.input[3] in n.output)
    assert mask.op_type == "Where"
    assert not {"Concat", "GroupQueryAttention"} & nodes.keys()


def test_static_cache_can_be_one_buffer_for_input_and_output(bundle, tiny_sparse):
    """The way a runtime keeps it: bound once, updated in place, rows of different lengths side by side."""
    manifest = Manifest.load(bundle)
    sess = session(bundle / "model_static.onnx")
    rows = [PROMPT, PROMPT[:9]]
    kv = {
        f"{i}.{kind}": onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((2, 2, 128, 8), np.float32))
        for i in range(manifest.model.num_layers)
        for kind in ("key", "value")
    }

    def step(tokens, starts):
        binding = sess.io_binding()
        binding.bind_cpu_input("input_ids", tokens)
        binding.bind_cpu_input("position_ids", starts[:, None] + np.arange(tokens.shape[1])[None])
        binding.bind_cpu_input("write_indices", starts)
        for name, value in kv.items():
            binding.bind_ortvalue_input(f"past_key_values.{name}", value)
            binding.bind_ortvalue_output(f"present.{name}", value)
        binding.bind_output("logits")
        sess.run_with_iobinding(binding)
        return binding.get_outputs()[[o.name for o in sess.get_outputs()].index("logits") and -1].numpy()

    padded = np.asarray([rows[0], rows[1] + [0] * (len(rows[0]) - len(rows[1]))], dtype=np.int64)
    logits = step(padded, np.zeros(2, np.int64))
    lengths = np.asarray([len(r) for r in rows])
    found = [[int(logits[i, lengths[i] - 1].argmax())] for i in range(2)]
    for _ in range(7):
        logits = step(np.asarray([[f[-1]] for f in found], dtype=np.int64), lengths.astype(np.int64))
        lengths = lengths + 1
        for i in range(2):
            found[i].append(int(logits[i, 0].argmax()))
    reference = NumpyLlama(tiny_sparse)
    assert found == [reference.greedy(row, 8) for row in rows]


def test_comparison_of_forms_is_written_into_the_manifest(bundle):
    forms = Manifest.load(bundle).verification["forms"]
    assert {form: f["status"] for form, f in forms.items()} == {"static": "passed", "gqa": "passed"}


def test_a_form_that_computes_something_else_is_refused(tiny_sparse, tmp_path, monkeypatch):
    class OffByOne(static.Form):
        """Sees one token less than it should."""

        def begin(self, graph, config):
            super().begin(graph, dataclasses.replace(config, windows=(2,) * config.num_layers))
            self._config = config
            self._masks[None] = self._masks[2]

    monkeypatch.setattr(static, "Form", OffByOne)
    with pytest.raises(CheckFailed, match="'static' does not agree with 'cat'"):
        export(tiny_sparse, tmp_path / "out", ExportConfig(forms=("cat", "static")))
    assert list(tmp_path.iterdir()) == []


def test_forms_over_bf16_are_compared_in_bf16(tiny_sparse, tmp_path):
    manifest = export(tiny_sparse, tmp_path / "out", ExportConfig(dtype="bf16", forms=("cat", "static")))
    figures = manifest.verification["forms"]["static"]
    assert (figures["status"], figures["arithmetic"]) == ("passed", "bf16, rounded after every node, accumulated in fp32")
    assert manifest.verification["half_precision"] == "bf16 not verified: not asked for"


@pytest.mark.parametrize("forms", [(), ("cat", "cat"), ("static", "ring")])
def test_forms_that_make_no_sense_name_the_flag(forms):
    with pytest.raises(ConfigError, match="--forms"):
        ExportConfig(forms=forms)

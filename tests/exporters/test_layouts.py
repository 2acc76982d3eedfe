"""Other tools' conventions: where files lie, what they are called, and that onnxruntime-genai generates with them."""

from __future__ import annotations

import json

import onnx
import pytest
from numpy_llama import NumpyLlama

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.manifest import Manifest

PROMPT = list(range(3, 40))
HUB_NAMES = [
    ("fp32", None, "model"),
    ("fp16", None, "model_fp16"),
    ("fp32", "int8", "model_int8"),
    ("fp32", "int4", "model_q4"),
    ("fp16", "int4", "model_q4f16"),
]


@pytest.mark.parametrize(("dtype", "quantize", "stem"), HUB_NAMES)
def test_hub_layout_has_the_usual_names_in_a_subfolder(tiny_sparse, tmp_path, dtype, quantize, stem):
    out = tmp_path / "out"
    manifest = export(tiny_sparse, out, ExportConfig(dtype=dtype, quantize=quantize, layout="hub"))
    assert {p.name for p in (out / "onnx").iterdir()} == {f"{stem}.onnx", f"{stem}.onnx_data"}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in out.iterdir()}
    assert manifest.graph.file == f"onnx/{stem}.onnx"
    places = {
        e.value
        for t in onnx.load(out / manifest.graph.file, load_external_data=False).graph.initializer
        for e in t.external_data
        if e.key == "location"
    }
    assert places == {f"{stem}.onnx_data"}
    Manifest.load(out).check_hashes(out)


def test_a_hub_folder_is_a_bundle_too(tiny_sparse, tmp_path):
    export(tiny_sparse, tmp_path / "out", ExportConfig(layout="hub", forms=("cat", "gqa")))
    assert (tmp_path / "out" / "onnx" / "model_gqa.onnx").is_file()
    assert verify(tmp_path / "out", NumpyLlama(tiny_sparse), [PROMPT], greedy_tokens=8).passed
    from maskpro_deploy.runtime.sessions.session import open_session

    assert open_session(tmp_path / "out").greedy(PROMPT, 8) == NumpyLlama(tiny_sparse).greedy(PROMPT, 8)


@pytest.mark.parametrize(("forms", "shared"), [(("cat",), False), (("gqa", "cat"), True)])
def test_genai_config_names_what_the_graph_has(tiny_sparse, tmp_path, forms, shared):
    out = tmp_path / "out"
    export(tiny_sparse, out, ExportConfig(layout="genai", forms=forms))
    config = json.loads((out / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    model = onnx.load(out / decoder["filename"], load_external_data=False)
    inputs = {v.name for v in model.graph.input}
    for name in decoder["inputs"].values():
        assert (name % 1 if "%" in name else name) in inputs
    assert config["search"]["past_present_share_buffer"] is shared
    assert config["model"]["eos_token_id"] == 2
    assert (config["model"]["vocab_size"], decoder["num_key_value_heads"], decoder["head_size"]) == (320, 2, 8)
    assert "genai_config.json" in {f.path for f in Manifest.load(out).files}


@pytest.mark.parametrize(("forms", "quantize"), [(("cat",), None), (("gqa",), None), (("gqa",), "int4")])
def test_onnxruntime_genai_generates_the_same_tokens(tiny_sparse, tmp_path, forms, quantize):
    genai = pytest.importorskip("onnxruntime_genai")
    from maskpro_deploy.exporters.checks.ort_model import open_model

    out = tmp_path / "out"
    manifest = export(tiny_sparse, out, ExportConfig(layout="genai", forms=forms, quantize=quantize))
    config = json.loads((out / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = 319  # generate all the way
    (out / "genai_config.json").write_text(json.dumps(config))
    model = genai.Model(str(out))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(PROMPT) + 24, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(t) for t in generator.get_sequence(0)][len(PROMPT) :]
    assert tokens == open_model(out, manifest).greedy(PROMPT, 24)
    if quantize is None:
        assert tokens == NumpyLlama(tiny_sparse).greedy(PROMPT, 24)


def test_genai_refuses_a_form_that_it_cannot_drive():
    with pytest.raises(ConfigError, match=r"--layout genai runs the first of --forms, static"):
        ExportConfig(layout="genai", forms=("static", "cat"))


def test_an_unknown_layout_is_refused():
    with pytest.raises(ConfigError, match="--layout folder"):
        ExportConfig(layout="folder")

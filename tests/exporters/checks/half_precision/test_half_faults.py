"""Models that break in half precision only are refused, and every sound one passes."""

from __future__ import annotations

import numpy as np
import pytest
from architectures import DECODERS, make
from half_models import MODELS
from safetensors.numpy import load_file, save_file

from maskpro_deploy.errors import CheckFailed, FormatError
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.system.extras import missing

pytestmark = pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")

LENGTH = 96


@pytest.fixture
def exported(tmp_path):
    """Exports a checkpoint folder with torch as the reference and gives the verification."""
    from maskpro_deploy.torch_lm import TorchLM

    def run(checkpoint, **settings):
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        config = ExportConfig(**{"max_length": LENGTH, **settings})
        return export(checkpoint, out, config, reference=lambda: TorchLM.open(checkpoint)).verification

    return run


def broken(name, folder, tokenizer_from):
    """The checkpoint of a model in `MODELS`."""
    bad = MODELS[name]
    if bad.family == "granite" and missing("architectures"):
        pytest.skip("the architectures extra is not installed")
    checkpoint = make(bad.family, folder, tokenizer_from, **bad.fields)
    weights = load_file(checkpoint / "model.safetensors")
    bad.change(weights)
    weights = {name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_breaks_in_half_precision_only_is_refused(name, exported, tiny_checkpoint, tmp_path):
    bad = MODELS[name]
    checkpoint = broken(name, tmp_path / "checkpoint", tiny_checkpoint)
    assert exported(checkpoint)["status"] == "passed"
    before = sorted(tmp_path.iterdir())
    with pytest.raises((CheckFailed, FormatError), match=bad.words) as caught:
        exported(checkpoint, dtype=bad.dtype, **bad.settings)
    assert sorted(tmp_path.iterdir()) == before
    text = str(caught.value)
    assert len(text.splitlines()) <= 3
    assert "--dtype fp32" in text
    assert ("--dtype bf16" in text) == (bad.dtype == "fp16")


@pytest.mark.parametrize("name", ["output of the MLP", "queries before their norm", "scaled embedding"])
def test_the_way_out_that_an_overflow_in_fp16_names_is_one(name, exported, tiny_checkpoint, tmp_path):
    found = exported(broken(name, tmp_path / "checkpoint", tiny_checkpoint), dtype="bf16")
    assert found["status"] == "passed"
    assert found["range"]["largest"] > 65504


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_sound_model_passes_in_every_form(name, dtype, exported, tiny_checkpoint, tmp_path):
    found = exported(make(name, tmp_path / "checkpoint", tiny_checkpoint), dtype=dtype, forms=("cat", "static", "gqa"))
    for figures in (found, *found["forms"].values()):
        assert figures["status"] == "passed"
        assert figures["arithmetic"].startswith(f"{dtype}, rounded after every node")
        assert figures["range"]["layers"].keys() >= {"layer 0", "layer 1", "layer 2", "head"}
        assert figures["warnings"] == []
    # far from the bounds, or the bounds are of no use
    assert found["mean_kl"] < {"fp16": 5e-4, "bf16": 0.03}[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_demo_model_passes(dtype, exported):
    from maskpro_deploy.models import DEMO, resolve

    found = exported(resolve(DEMO), dtype=dtype, max_length=None)
    assert found["status"] == "passed"
    assert found["range"]["margin"] > 2
    assert found["warnings"] == []

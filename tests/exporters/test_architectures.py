"""Every architecture computes what transformers computes, in every form of the cache."""

from __future__ import annotations

import pytest
from architectures import DECODERS, make

from maskpro_deploy.exporters import ExportConfig, export, verify
from maskpro_deploy.extras import missing

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

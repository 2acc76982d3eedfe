"""Experts run for every token are the experts that the router chose; each one's rows are a weight of its own."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from maskpro_deploy.system.extras import missing

pytestmark = pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed")

KINDS = {
    "gate above up": ("mixtral", {"num_local_experts": 4}),
    "turned, interleaved, with biases": ("gpt_oss", {"num_local_experts": 4, "head_dim": 8}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_expert_gives_what_the_chosen_ones_give(kind):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from maskpro_deploy.exporters.frontends.experts import use_every_expert

    model_type, fields = KINDS[kind]
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **sizes, **fields, num_key_value_heads=2, num_experts_per_tok=2)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
        tokens = torch.arange(2 * 7).reshape(2, 7)
        expected = model(tokens).logits
        use_every_expert(model)
        np.testing.assert_allclose(model(tokens).logits, expected, atol=1e-5)


def test_a_fixed_row_of_a_parameter_is_a_parameter():
    from maskpro_deploy.exporters.frontends.experts import take_apart

    nodes = [
        helper.make_node("Gather", ["w", "two"], ["row"], axis=0),
        helper.make_node("Gather", ["w", "ids"], ["rows"], axis=0),  # an embedding
        helper.make_node("Gather", ["w", "two"], ["column"], axis=1),
        helper.make_node("Gather", ["x", "two"], ["other"], axis=0),  # not a parameter
        helper.make_node("MatMul", ["x", "row"], ["y"]),
    ]
    parameters = {"w": (4, 6, 8)}
    kept = take_apart(nodes, {"two": np.asarray(2), "ids": np.asarray([2, 3])}, parameters)
    assert parameters == {"w": (4, 6, 8), "w.2": (6, 8)}
    assert [node.output[0] for node in kept] == ["rows", "column", "other", "y"]
    assert list(kept[-1].input) == ["x", "w.2"]

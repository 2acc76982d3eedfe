"""Which layers stay dense: routers by their name and width, and layers of one output; nothing else."""

from __future__ import annotations

import pytest

from maskpro_deploy.linear_layers import read_expert_counts, stays_dense

NESTED = {"hidden_size": 64, "ffn_config": {"moe_num_experts": 8}, "num_experts": 4}


def test_the_numbers_of_experts_are_found_in_inner_configs_too() -> None:
    assert read_expert_counts(NESTED) == {4, 8}
    assert read_expert_counts({"num_experts": None, "text_config": [4]}) == frozenset()


@pytest.mark.parametrize(
    ("name", "outputs", "dense"),
    [
        ("model.layers.0.mlp.gate.weight", 4, True),
        ("transformer.blocks.0.ffn.router.layer.weight", 8, True),
        ("model.layers.0.mlp.router.weight", 16, False),  # as wide as no number of experts
        ("model.layers.0.mlp.gate_proj.weight", 4, False),
        ("model.layers.0.mlp.shared_expert_gate.weight", 1, True),
        ("model.layers.0.mlp.up_proj.weight", 128, False),
    ],
)
def test_routers_and_layers_of_one_output_stay_dense(name: str, outputs: int, dense: bool) -> None:
    assert stays_dense(name, outputs, read_expert_counts(NESTED)) is dense

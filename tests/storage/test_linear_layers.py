"""Which layers stay dense: routers by their name and width, and layers of one output; nothing else."""

from __future__ import annotations

import pytest

from maskpro_deploy.storage.linear_layers import read_route_counts, stays_dense

NESTED = {"hidden_size": 64, "ffn_config": {"moe_num_experts": 8}, "altup_num_inputs": 4}


def test_the_numbers_of_experts_and_streams_are_found_in_inner_configs_too() -> None:
    assert read_route_counts(NESTED) == {4, 8}
    assert read_route_counts({"num_experts": None, "text_config": [4]}) == frozenset()


@pytest.mark.parametrize(
    ("name", "shape", "dense"),
    [
        ("model.layers.0.mlp.gate.weight", (4, 64), True),
        ("transformer.blocks.0.ffn.router.layer.weight", (8, 64), True),
        ("model.layers.0.mlp.router.weight", (16, 64), False),  # as wide as no number of experts
        ("model.layers.0.mlp.gate_proj.weight", (4, 64), False),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 64), True),
        ("model.layers.0.mlp.up_proj.weight", (128, 64), False),
        ("model.layers.0.altup.modality_router.weight", (4, 64), True),
        ("model.layers.0.altup.prediction_coefs.weight", (16, 4), True),
        ("model.layers.0.altup.prediction_coefs.weight", (16, 64), False),
    ],
)
def test_routers_and_layers_of_one_output_stay_dense(name: str, shape: tuple[int, int], dense: bool) -> None:
    assert stays_dense(name, shape, read_route_counts(NESTED)) is dense

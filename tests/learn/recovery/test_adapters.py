"""Adapter folders: every setting that is read, everything that is refused, and the way back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_cases import PATTERN, draw, make_factors, start, start_tiny, write_adapter, write_sparse
from safetensors.numpy import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError, MaskProError
from maskpro_deploy.learn.model.low_rank import LowRank
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.recovery.adapters import read_adapter, save_adapter
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.torch_lm import load_causal_lm

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SHAPES: dict[str, tuple[int, ...]] = {Q: (32, 32), DOWN: (32, 64)}
FACTORS = make_factors(SHAPES)


@pytest.fixture(scope="module")
def sparse(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse(tiny_checkpoint, tmp_path_factory.mktemp("adapters") / "sparse")


@pytest.mark.parametrize("name", ["", "default", "my-adapter"])
def test_factors_are_read_with_and_without_the_name_of_the_adapter(tmp_path: Path, name: str) -> None:
    deltas = read_adapter(write_adapter(tmp_path / "a", FACTORS, name=name)).deltas
    assert deltas.keys() == FACTORS.keys()
    for module, (a, b) in FACTORS.items():
        assert np.array_equal(deltas[module].a.numpy(), a)
        assert np.array_equal(deltas[module].b.numpy(), b)
        assert deltas[module].scale == 8 / 4


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({"use_rslora": True}, (8 / 2, 8 / 2)),
        ({"lora_alpha": 3}, (3 / 4, 3 / 4)),
        ({"alpha_pattern": {"q_proj": 4}}, (4 / 4, 8 / 4)),
        ({"alpha_pattern": {"proj": 4}}, (8 / 4, 8 / 4)),  # of whole parts of names
        ({"alpha_pattern": {r"layers\.\d+\.mlp\.down_proj": 5, DOWN: 6}}, (8 / 4, 5 / 4)),  # the first one counts
        ({"r": 9, "rank_pattern": {"q_proj": 4, r"^model\.layers\.1\.mlp\.down_proj": 4}}, (8 / 4, 8 / 4)),
        ({"init_lora_weights": "gaussian", "velora_config": {"rank": 1}, "use_dora": None}, (8 / 4, 8 / 4)),
        ({"target_modules": r".*\.(q|down)_proj"}, (8 / 4, 8 / 4)),
        ({"target_modules": "all-linear"}, (8 / 4, 8 / 4)),
        ({"target_modules": [Q, "mlp.down_proj"]}, (8 / 4, 8 / 4)),
        ({"target_modules": None}, (8 / 4, 8 / 4)),
    ],
)
def test_scales_follow_the_settings(tmp_path: Path, settings: dict[str, Any], scales: tuple[float, float]) -> None:
    deltas = read_adapter(write_adapter(tmp_path / "a", FACTORS, **settings)).deltas
    assert (deltas[Q].scale, deltas[DOWN].scale) == scales


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "is an adapter of type LOHA"),
        ({"peft_type": None}, "is an adapter of type None"),
        ({"use_dora": True}, "is a DoRA adapter"),
        ({"bias": "lora_only"}, r"has biases \(bias: lora_only\)"),
        ({"lora_bias": True}, "is an adapter with biases"),
        ({"modules_to_save": ["lm_head"]}, r"is an adapter with whole modules \(modules_to_save"),
        ({"trainable_token_indices": [3]}, "has trainable_token_indices set"),
        ({"target_parameters": ["experts.down_proj"]}, "has target_parameters set"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "has layer_replication set"),
        ({"alora_invocation_tokens": [1]}, "has alora_invocation_tokens set"),
        ({"use_qalora": True}, "has use_qalora set"),
        ({"kasa_config": {"beta": 1}}, "has kasa_config set"),
        ({"what_comes_next": {"a": 1}}, "has what_comes_next set"),  # a setting of a later PEFT
        ({"init_lora_weights": "pissa_niter_4"}, "was started by pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
        ({"r": 8}, rf"factors of {Q} are \(4, 32\) and \(32, 4\), its adapter_config.json says rank 8"),
        ({"rank_pattern": {"down_proj": 2}}, f"factors of {DOWN} .* says rank 2"),
        ({"r": None}, r"is not PEFT's configuration of a LoRA adapter: KeyError \('r'\)"),
        ({"r": 0}, "a rank is 0"),
        ({"lora_alpha": "8"}, "an alpha is '8'"),
        ({"lora_alpha": math.nan}, "an alpha is nan"),
        ({"rank_pattern": {"(": 4}}, "is not PEFT's configuration"),
        ({"target_modules": "("}, "is not PEFT's configuration"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": ["q_proj"]}, f"a delta of {DOWN}, which its target_modules leave out"),
        ({"target_modules": "q_proj|down_proj"}, f"a delta of {Q}, which its target_modules leave out"),  # whole names only
    ],
)
def test_what_is_not_a_plain_low_rank_delta_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        read_adapter(write_adapter(tmp_path / "a", FACTORS, **settings))
    assert str(tmp_path / "a") in str(error.value)


def rename_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def add_tensor(name: str, *shape: int, dtype: Any = np.float32) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        file = folder / "adapter_model.safetensors"
        save_file({**load_file(file), name: np.ones(shape, dtype)}, file)

    return add


def drop_factor(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name: x for name, x in load_file(file).items() if not name.endswith(f"{Q}.lora_B.weight")}, file)


def cut_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def empty_weights(folder: Path) -> None:
    save_file({}, folder / "adapter_model.safetensors")


BASE = "base_model.model."


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (rename_weights, InputError, r"keeps its weights as a pickle \(adapter_model.bin\).\nSave it as safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), InputError, "has no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), InputError, "is not a PEFT adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), FormatError, "holds no JSON object"),
        (cut_weights, FormatError, "is not a complete safetensors file"),
        (empty_weights, FormatError, "holds 0 adapters"),
        (drop_factor, FormatError, f"has lora_A of {Q} alone"),
        (add_tensor(f"{BASE}{Q}.lora_magnitude_vector", 32), FormatError, f"holds {BASE}{Q}.lora_magnitude_vector"),
        (add_tensor(f"{BASE}{Q}.lora_B.bias", 32), FormatError, r"lora_B.bias, which is not a factor"),
        (add_tensor(f"{BASE}model.embed_tokens.lora_embedding_A", 4, 320), FormatError, "lora_embedding_A"),
        (add_tensor(f"{BASE}lm_head.weight", 320, 32), FormatError, f"holds {BASE}lm_head.weight"),
        (add_tensor(f"{BASE}conv.lora_A.weight", 4, 2, 3), FormatError, "conv.lora_A.weight"),
        (add_tensor(f"{BASE}{Q}.lora_A.weight", 4, 32, dtype=np.int8), FormatError, f"{Q}.lora_A.weight"),
        (add_tensor(f"{BASE}{Q}.lora_A.second.weight", 4, 32), FormatError, "holds 2 adapters"),
    ],
)
def test_damaged_and_other_files_are_refused(
    tmp_path: Path, damage: Callable[[Path], None], kind: type[MaskProError], message: str
) -> None:
    folder = write_adapter(tmp_path / "a", FACTORS)
    damage(folder)
    with pytest.raises(kind, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({Q: (32, 32), "lm_head": (320, 32)}, "has a delta for lm_head, which is not a masked layer"),
        (
            {"model.layers.7.mlp.up_proj": (64, 32), "model.layers.8.mlp.up_proj": (64, 32)},
            r"layers.7.mlp.up_proj \(and 1 more\)",
        ),
        ({Q: (64, 32)}, f"has a delta of 64 x 32 for {Q}, whose weight is 32 x 32"),
        ({DOWN: (32, 32)}, f"has a delta of 32 x 32 for {DOWN}, whose weight is 32 x 64"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    sparse: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    adapter = write_adapter(tmp_path / "a", make_factors(shapes))
    with pytest.raises(InputError, match=message):
        start_tiny(sparse, adapter=str(adapter))


def test_a_shared_weight_takes_one_delta_for_all_its_modules(sparse: Path, tmp_path: Path) -> None:
    first, second = (f"model.layers.{i}.self_attn.q_proj" for i in range(2))
    masks = Checkpoint.open(sparse).masks
    assert masks is not None
    pair, other = FACTORS[Q], (FACTORS[Q][0], 2 * FACTORS[Q][1])

    def merge(name: str, factors: dict[str, tuple[Any, Any]]) -> tuple[Any, ...]:
        model = load_causal_lm(sparse, torch.float32)
        model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
        adapter = write_adapter(tmp_path / name, factors)
        return start(LearningModel(model), masks.only([f"{first}.weight"]), adapter=str(adapter))

    for name, factors in {"one": {first: pair}, "two": {first: pair, second: other}}.items():
        with pytest.raises(InputError, match=f"does not have one delta for {first} and {second}, which share a weight"):
            merge(name, factors)
    _, method = merge("same", {first: pair, second: pair})
    method.save_more(method.values(), tmp_path / "out", "base")
    assert read_adapter(tmp_path / "out" / "adapter").deltas.keys() == {first, second}


@pytest.mark.parametrize("fan_in_fan_out", [True, False])  # PEFT goes by the layer's type and changes the setting
def test_layers_stored_the_other_way_round_are_merged_as_linear_layers(tmp_path: Path, fan_in_fan_out: bool) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64)).eval()
    module = "transformer.h.0.attn.c_attn"
    stored = torch.round(model.get_submodule(module).weight.detach() * 256) / 256  # (C, O)
    model.get_submodule(module).weight.data.copy_(stored)
    weight = stored.t().contiguous().numpy()
    masks = MaskSet.from_arrays(PATTERN, {f"{module}.weight": PATTERN.top(np.abs(weight))}, "0" * 64)
    factors = make_factors({module: weight.shape})
    adapter = write_adapter(tmp_path / "a", factors, fan_in_fan_out=fan_in_fan_out)
    _, method = start(LearningModel(model), masks, adapter=str(adapter))
    (merged,) = method.weights_of(method.values()).values()
    expected = np.where(masks.mask(f"{module}.weight"), weight + 2 * (factors[module][1] @ factors[module][0]), np.float32(0))
    assert np.array_equal(merged.numpy(), expected)
    method.save_more(method.values(), tmp_path / "out", "base")
    written = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert written["fan_in_fan_out"] is True
    assert np.array_equal(read_adapter(tmp_path / "out" / "adapter").deltas[module].a.numpy(), factors[module][0])


def test_what_is_saved_is_read_as_it_was(sparse: Path, tmp_path: Path) -> None:
    def make(seed: int, alpha: float, rank: int) -> LowRank:
        return LowRank(torch.from_numpy(draw(seed, rank, 32)), torch.from_numpy(draw(seed + 1, 32, rank)), alpha, stabilised=True)

    model = LearningModel(load_causal_lm(sparse, torch.float32))
    deltas = {f"model.layers.{i}.self_attn.q_proj": make(i, alpha, rank) for i, (alpha, rank) in enumerate(((8.0, 4), (1.5, 2)))}
    save_adapter(deltas, tmp_path / "a", "base", model)
    again = read_adapter(tmp_path / "a").deltas
    assert again.keys() == deltas.keys()
    assert all(again[module].same(delta) for module, delta in deltas.items())
    assert all(again[module].stabilised and again[module].alpha == delta.alpha for module, delta in deltas.items())


@pytest.mark.parametrize(
    ("modules", "targets"),
    [
        (["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"], ["up_proj"]),
        (["model.layers.0.mlp.up_proj"], ["model.layers.0.mlp.up_proj"]),  # "up_proj" would be the other one, too
    ],
)
def test_target_modules_name_the_layers_with_a_delta_and_no_other(
    sparse: Path, tmp_path: Path, modules: list[str], targets: list[str]
) -> None:
    deltas = {m: LowRank(torch.zeros(4, 32), torch.zeros(64, 4), 8.0) for m in modules}
    save_adapter(deltas, tmp_path / "a", "base", LearningModel(load_causal_lm(sparse, torch.float32)))
    written = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert written["target_modules"] == targets
    assert written["base_model_name_or_path"] == "base"
    assert (written["peft_type"], written["task_type"], written["bias"]) == ("LORA", "CAUSAL_LM", "none")
    assert (written["r"], written["lora_alpha"], written["use_rslora"]) == (4, 8, False)
    names = set(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert names == {f"base_model.model.{m}.lora_{side}.weight" for m in modules for side in "AB"}


def test_a_saved_adapter_says_what_was_merged(sparse: Path, tmp_path: Path) -> None:
    """W + M ∘ (s B A) by the written folder alone is the weight of the result."""
    trainer, _, masks = start_tiny(sparse, steps=4, learning_rate=0.01, rslora=True, rank=4)
    trainer.run()
    trainer.save_more(tmp_path, "sparse")
    tensors, config = (
        load_file(tmp_path / "adapter" / "adapter_model.safetensors"),
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text()),
    )
    scale, before = config["lora_alpha"] / math.sqrt(config["r"]), load_file(sparse / "model.safetensors")
    merged = trainer.collect_weights()
    assert merged.keys() == set(masks)
    for name, weight in merged.items():
        a, b = (tensors[f"base_model.model.{name.removesuffix('weight')}lora_{side}.weight"] for side in "AB")
        expected = np.where(masks.mask(name), before[name] + scale * (b @ a), 0)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)
        assert np.abs(weight.numpy() - before[name]).max() > 1e-3


def test_deltas_of_experts_are_merged_and_a_warning_says_that_peft_leaves_them_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = LearningModel(MixtralForCausalLM(config).eval())
    expert, other = "model.layers.0.mlp.experts.3.down_proj", "model.layers.0.self_attn.o_proj"
    weights = {name: model.model.get_submodule(name).weight.detach().clone() for name in (expert, other)}
    kept = {f"{name}.weight": PATTERN.top(weight.abs().numpy()) for name, weight in weights.items()}
    masks = MaskSet.from_arrays(PATTERN, kept, "0" * 64)
    factors = make_factors({name: tuple(weight.shape) for name, weight in weights.items()})
    _, method = start(model, masks, adapter=str(write_adapter(tmp_path / "a", factors)))
    merged = method.weights_of(method.values())
    for name, (a, b) in factors.items():
        expected = (weights[name].numpy() + 2 * (b @ a)) * kept[f"{name}.weight"]
        np.testing.assert_allclose(merged[f"{name}.weight"].numpy(), expected, rtol=1e-6, atol=1e-6)
    method.save_more(method.values(), tmp_path / "out", "base")
    assert [record.args[1] for record in caplog.records if "leaves out" in record.msg] == [expert]

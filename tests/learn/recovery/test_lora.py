"""Low-rank deltas: what they start as, their gradients, the merge under the mask, resume to the same bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_cases import PATTERN, SMALL, WINDOWS, draw, make_factors, start, start_tiny, write_adapter, write_sparse
from safetensors.numpy import load_file
from stopper import Stopper
from torch import Tensor

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import ConfigError, Interrupted
from maskpro_deploy.learn import RecoverConfig, recover_checkpoint
from maskpro_deploy.learn.kernels.exact_adam import ExactAdam
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.recovery.lora import LoraRecovery
from maskpro_deploy.torch_lm import load_causal_lm
from maskpro_deploy.validation import validate

CONFIG = RecoverConfig(method="lora", objective="ce", steps=6, learning_rate=0.01, calibration_tokens=128, **SMALL)
SHAPES = {"model.layers.0.self_attn.k_proj": (16, 32), "model.layers.1.mlp.down_proj": (32, 64)}


@pytest.fixture(scope="module")
def sparse(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sparse(tiny_checkpoint, tmp_path_factory.mktemp("lora") / "sparse")


@pytest.fixture(scope="module")
def trained(sparse: Path, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    recover_checkpoint(sparse, out, text, heldout, replace(CONFIG, steps=20, evaluations=4), device="cpu")
    return out


def tensors(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_deltas_that_start_at_zero_change_no_bit(sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    recover_checkpoint(sparse, tmp_path / "out", text, heldout, replace(CONFIG, steps=0), device="cpu")
    before, after = tensors(sparse), tensors(tmp_path / "out")
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_masks_stay_and_what_they_drop_is_plus_zero(sparse: Path, trained: Path) -> None:
    before, after = Checkpoint.open(sparse), Checkpoint.open(trained)
    assert before.masks is not None
    assert after.masks is not None
    assert after.masks.sha256() == before.masks.sha256()
    for name in after.masks:
        weight, kept = after.tensor(name), after.masks.stored_mask(name)
        assert not weight[~kept].view(np.uint32).any()
        assert (weight[kept] != before.tensor(name)[kept]).mean() > 0.9
    unmasked = set(before.names) - set(after.masks)
    assert all(np.array_equal(before.tensor(name), after.tensor(name)) for name in unmasked)
    assert validate(trained, PATTERN).holds  # the adapter's folder inside does no harm


def test_the_loss_falls(trained: Path) -> None:
    (run,) = json.loads((trained / "learn.json").read_text())["recovered"]
    losses = [point["heldout_loss"] for point in run["curve"]]
    assert losses[-1] < losses[0] - 0.05
    assert 0 < run["moved"] < 1


@pytest.mark.parametrize("stabilised", [False, True])
def test_no_step_merges_an_adapter_as_numpy_does(
    sparse: Path, text: Text, heldout: Text, tmp_path: Path, stabilised: bool
) -> None:
    factors = make_factors(SHAPES)
    adapter = write_adapter(tmp_path / "given", factors, use_rslora=stabilised)
    run = {"text": text, "heldout": heldout, "device": "cpu"}
    config = replace(CONFIG, steps=0, adapter=str(adapter))
    recover_checkpoint(sparse, tmp_path / "out", config=config, **run)  # type: ignore[arg-type]
    before, after, masks = tensors(sparse), tensors(tmp_path / "out"), Checkpoint.open(sparse).masks
    assert masks is not None
    scale = np.float32(8 / 2 if stabilised else 8 / 4)
    for name, weight in before.items():
        pair = factors.get(name.removesuffix(".weight"))
        expected = weight if pair is None else np.where(masks.mask(name), weight + scale * (pair[1] @ pair[0]), np.float32(0))
        assert after[name].tobytes() == expected.tobytes()


def test_bfloat16_weights_are_merged_in_float32_and_measured_rounded_once(sparse: Path, tmp_path: Path) -> None:
    factors = make_factors(SHAPES)
    trainer, method, masks = start_tiny(sparse, dtype="bfloat16", adapter=str(write_adapter(tmp_path / "given", factors)))
    merged = method.weights_of(method.values())
    assert merged.keys() == {f"{module}.weight" for module in SHAPES}
    for module, (a, b) in factors.items():
        weight = torch.from_numpy(tensors(sparse)[f"{module}.weight"]).bfloat16().float()
        expected = (weight + 2 * torch.from_numpy(b @ a)) * torch.from_numpy(masks.mask(f"{module}.weight"))
        assert merged[f"{module}.weight"].dtype == torch.float32
        torch.testing.assert_close(merged[f"{module}.weight"], expected, rtol=1e-6, atol=1e-7)
        layer = next(x for x in trainer.masked if x.name == f"{module}.weight")
        assert torch.equal(layer.masked_weight(), merged[f"{module}.weight"].bfloat16())


def test_what_is_written_is_what_was_measured(sparse: Path, trained: Path) -> None:
    """A merged model has the held-out loss that the run measured with its deltas apart."""
    (run,) = json.loads((trained / "learn.json").read_text())["recovered"]
    masks = Checkpoint.open(trained).masks
    assert masks is not None
    windows = np.array(WINDOWS)
    with torch.no_grad():
        merged = LearningModel(load_causal_lm(trained, torch.float32)).loss(windows, differentiable=False)
        trainer, _, _ = start_tiny(sparse, adapter=str(trained / "adapter"))
        apart = trainer.model.loss(windows, differentiable=False)
    assert torch.equal(merged, apart)
    assert run["best_step"] > 0


def gather_gradients(method: LoraRecovery, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The gradients of a step that moves nothing."""
    taken: dict[str, Tensor] = {}

    def add(adam: ExactAdam, key: str, grad: Tensor) -> None:
        taken[key] = taken[key] + grad if key in taken else grad

    monkeypatch.setattr(ExactAdam, "add", add)
    method.step(WINDOWS, 0, 0.5)
    return taken


def compute_gradients(model: Any, method: LoraRecovery, layers: dict[str, list[str]], scale: float) -> dict[str, Tensor]:
    """Autograd's, of the loss under W + M ∘ (s B A); `layers` are the weights of the model that each delta is added to."""
    factors = {key: x.requires_grad_() for key, x in method.values().items()}
    parameters, weights = dict(model.named_parameters(remove_duplicate=False)), {}
    for name, places in layers.items():
        delta = scale * (factors[f"lora_B/{name}"] @ factors[f"lora_A/{name}"])
        weight = parameters[name].detach()
        weights |= dict.fromkeys(places, weight + (weight != 0) * delta)
    tokens = torch.from_numpy(WINDOWS.astype(np.int64))
    logits = torch.func.functional_call(model, weights, (tokens,), {"use_cache": False}).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    return dict(zip(factors, torch.autograd.grad(loss, list(factors.values())), strict=True))


@pytest.mark.parametrize("settings", [{}, {"rslora": True, "rank": 3, "target_modules": r"1\.mlp|k_proj$"}])
def test_gradients_are_those_of_autograd(sparse: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    _, method, masks = start_tiny(sparse, steps=1, **settings)
    method.restore_values({key: torch.from_numpy(draw(i, *x.shape)) / 4 for i, (key, x) in enumerate(method.values().items())})
    taken = gather_gradients(method, monkeypatch)
    names = [key.removeprefix("lora_A/") for key in method.values() if key.startswith("lora_A/")]
    assert len(names) == (5 if settings else len(masks))
    scale = 32 / math.sqrt(3) if settings else 32 / 16
    expected = compute_gradients(load_causal_lm(sparse, torch.float32), method, {name: [name] for name in names}, scale)
    assert taken.keys() == expected.keys()  # no gradient is taken where there is no delta
    for key, grad in expected.items():
        assert float(grad.abs().max()) > 0
        torch.testing.assert_close(taken[key], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_gradients_of_layers_that_share_a_weight_add_up(sparse: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in range(2))

    def load() -> Any:
        model = load_causal_lm(sparse, torch.float32)
        model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
        return model

    masks = Checkpoint.open(sparse).masks
    assert masks is not None
    _, method = start(LearningModel(load()), masks.only([first]), steps=1)
    method.restore_values({key: torch.from_numpy(draw(i, *x.shape)) / 4 for i, (key, x) in enumerate(method.values().items())})
    taken = gather_gradients(method, monkeypatch)
    for key, grad in compute_gradients(load(), method, {first: [first, second]}, 2.0).items():
        torch.testing.assert_close(taken[key], grad, rtol=1e-3, atol=1e-4 * float(grad.abs().max()))


def test_a_starts_as_peft_starts_it_and_by_seed_and_layer_alone(sparse: Path) -> None:
    values = start_tiny(sparse, rank=64)[1].values()
    few = start_tiny(sparse, rank=64, target_modules="down_proj")[1].values()
    other = start_tiny(sparse, rank=64, seed=1)[1].values()
    for key, x in values.items():
        if key.startswith("lora_B/"):
            assert not x.any()
            continue
        bound = 1 / math.sqrt(x.shape[1])
        assert 0.98 * bound < float(x.abs().max()) <= bound
        assert abs(float(x.var()) / (bound**2 / 3) - 1) < 0.1  # uniform
        assert not torch.equal(x, other[key])
    assert len(few) == 4
    assert all(torch.equal(x, values[key]) for key, x in few.items())
    assert not torch.equal(*(x for key, x in few.items() if key.startswith("lora_A/")))


@pytest.mark.parametrize(("dtype", "given"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_resume_comes_to_the_same_bits(dtype: str, given: bool, sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    adapter = str(write_adapter(tmp_path / "given", make_factors(SHAPES))) if given else None
    config = replace(CONFIG, dtype=dtype, weight_decay=0.1, adapter=adapter)
    recover_checkpoint(sparse, tmp_path / "whole", text, heldout, config, device="cpu")
    with pytest.raises(Interrupted, match="after step 3"):
        recover_checkpoint(sparse, tmp_path / "parts", text, heldout, config, device="cpu", progress=Stopper(3))
    recover_checkpoint(sparse, tmp_path / "parts", text, heldout, config, device="cpu", resume=True)
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes()


def test_weight_decay_shrinks_the_factors(sparse: Path) -> None:
    plain, decayed = (start_tiny(sparse, steps=4, learning_rate=0.01, weight_decay=d)[0] for d in (0.0, 5.0))
    sizes = []
    for trainer in (plain, decayed):
        trainer.run()
        sizes.append(sum(float(x.square().sum()) for key, x in trainer.method.values().items() if key.startswith("lora_A/")))
    assert sizes[1] < 0.95 * sizes[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "--rank 0 is out of range"),
        ({"alpha": 0.0}, "--alpha 0 is out of range"),
        ({"target_modules": "("}, "--target-modules .* is not a regular expression"),
        ({"train": "all"}, "--train all goes with --method full"),
        ({"adapter": "x", "rank": 8}, "--rank belongs to deltas that start at zero"),
        ({"adapter": "x", "target_modules": "q_proj"}, "--target-modules belongs"),
        ({"method": "full", "adapter": "x"}, "--adapter belongs to --method lora"),
        ({"method": "full", "rslora": True}, "--rslora belongs to --method lora"),
    ],
)
def test_bad_settings_are_refused_with_their_flag(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecoverConfig(**{"method": "lora", **settings})


def test_target_modules_that_name_nothing_are_refused(sparse: Path) -> None:
    with pytest.raises(ConfigError, match=r"--target-modules lm_head names no masked layer, such as model\.layers"):
        start_tiny(sparse, target_modules="lm_head")

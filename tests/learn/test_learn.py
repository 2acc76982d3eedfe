"""Learning end to end on a tiny model: strict masks, a falling loss, resume to the same bits, plain errors."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from stopper import Stopper
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from maskpro_deploy import learn_masks
from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, Interrupted, MachineError, PatternError
from maskpro_deploy.learn import LearnConfig, LearnResult, learn_checkpoint
from maskpro_deploy.learn import trainer as trainer_module
from maskpro_deploy.learn.kernels.optimizer import Moments, move
from maskpro_deploy.learn.model.model import LearningModel, without_waiting
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.torch_lm import load_causal_lm

PATTERN = NMPattern(2, 4)
CONFIG = LearnConfig(
    pattern=PATTERN,
    weights="frozen",
    steps=12,
    window=32,
    batch_tokens=128,
    objective="ce",
    learning_rate=0.1,
    calibration_tokens=128,
    heldout_tokens=512,
    evaluations=3,
    dtype="float32",
    transform="none",
)


def run(dense: Checkpoint, out: Path, text: Text, heldout: Text, config: LearnConfig = CONFIG, **kwargs: object) -> LearnResult:
    return learn_checkpoint(dense.folder, out, text, heldout, config, device="cpu", **kwargs)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[0.0, 0.5], ids=["argmax", "sampled"])
def learned(
    request: pytest.FixtureRequest, dense: Checkpoint, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, LearnResult]:
    out = tmp_path_factory.mktemp("learned") / "sparse"
    return out, run(dense, out, text, heldout, replace(CONFIG, steps=60, temperature=request.param))


def test_every_weight_of_the_result_holds_the_pattern_and_has_no_negative_zero(learned: tuple[Path, LearnResult]) -> None:
    out, result = learned
    weights = load_file(out / "model.safetensors")
    assert len(result.masks) == 14
    for name in result.masks:
        assert PATTERN.holds(weights[name] != 0)
        assert not np.signbit(weights[name][weights[name] == 0]).any()


def test_kept_weights_are_the_dense_ones_bit_for_bit(learned: tuple[Path, LearnResult], dense: Checkpoint) -> None:
    out, result = learned
    for name, weight in load_file(out / "model.safetensors").items():
        original = dense.tensor(name)
        expected = np.where(result.masks.mask(name), original, 0) if name in result.masks else original
        assert np.array_equal(weight, expected)


def test_the_learned_mask_is_better_than_its_prior_on_held_out_text(learned: tuple[Path, LearnResult]) -> None:
    _, result = learned
    assert result.curve[-1].heldout_loss < result.curve[0].heldout_loss - 0.05
    assert result.curve[0].flips == 0.0
    assert 0.0 < result.curve[-1].flips < 1.0
    best = min(result.curve, key=lambda p: p.heldout_loss)
    assert result.masks.flips(result.prior_masks) == pytest.approx(best.flips)
    assert result.summary()["heldout_perplexity"]["learned"] == pytest.approx(math.exp(best.heldout_loss))


def test_a_run_that_only_makes_it_worse_returns_the_prior(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uphill(logits: torch.Tensor, moments: Moments, grad: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        return move(logits, moments, -grad, *more, **named)

    monkeypatch.setattr("maskpro_deploy.learn.kernels.contract.move", uphill)
    monkeypatch.setattr("maskpro_deploy.learn.kernels.site_step.native_step", lambda pattern, otherwise: otherwise)
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=30))
    assert min(p.heldout_loss for p in result.curve[1:]) > result.curve[0].heldout_loss
    assert result.masks.sha256() == result.prior_masks.sha256()


def test_learning_leaves_the_arithmetic_of_the_process_as_it_was(dense: Checkpoint, text: Text, heldout: Text) -> None:
    smallest = np.float32(1e-45)  # denormal: it vanishes where denormals are flushed
    learn_masks(dense.folder, text, replace(CONFIG, steps=1), heldout=heldout)
    assert smallest * np.float32(1) != 0


def test_provenance_says_how_the_mask_was_made(learned: tuple[Path, LearnResult], dense: Checkpoint, text: Text) -> None:
    out, result = learned
    record = json.loads((out / "learn.json").read_text())
    assert record["settings"]["steps"] == 60
    assert (record["device"], record["dtype"], record["logits_moved_by"]) == ("cpu", "float32", result.moved_by)
    assert record["weights_moved_by"] is None
    assert record["text"]["sha256"] == text.sha256
    assert record["dense_sha256"] == dense.dense_sha256(result.masks) == Checkpoint.open(out).masks.dense_sha256  # type: ignore[union-attr]
    assert record["heldout_perplexity"]["learned"] < record["heldout_perplexity"]["prior"]
    assert len(record["curve"]) >= 3


def test_transformers_opens_the_result(learned: tuple[Path, LearnResult]) -> None:
    from maskpro_deploy.torch_lm import TorchLM

    out, _ = learned
    logits = TorchLM.open(out, torch.float32).logits(np.arange(8)[None])
    assert np.isfinite(logits).all()


def test_the_same_seed_gives_the_same_masks_and_another_seed_others(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    hashes = [
        run(dense, tmp_path / str(i), text, heldout, replace(CONFIG, seed=seed)).masks.sha256()
        for i, seed in enumerate((0, 0, 1))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["argmax", "sampled"])
def test_an_interrupted_run_resumes_to_the_same_bits(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, temperature: float
) -> None:
    config = replace(CONFIG, temperature=temperature)
    whole = run(dense, tmp_path / "whole", text, heldout, config)
    out = tmp_path / "parts"
    with pytest.raises(Interrupted, match="--resume"):
        run(dense, out, text, heldout, config, progress=Stopper(5))
    assert not out.exists()
    with pytest.raises(InputError, match="interrupted run"):
        run(dense, out, text, heldout, config)
    with pytest.raises(InputError, match="other settings"):
        run(dense, out, text, heldout, replace(config, learning_rate=0.2), resume=True)
    resumed = run(dense, out, text, heldout, config, resume=True)
    assert resumed.masks.sha256() == whole.masks.sha256()
    assert [p.heldout_loss for p in resumed.curve] == [p.heldout_loss for p in whole.curve]
    assert not (tmp_path / "parts.learning").exists()


def test_a_state_is_saved_at_every_interval(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # power loss between two steps: whatever the last interval saved is enough to go on to the same bits
    whole = run(dense, tmp_path / "whole", text, heldout)
    out, step = tmp_path / "cut", trainer_module.Trainer._step

    def fail_at_seven(self: trainer_module.Trainer) -> None:
        if self.counters.step == 7:
            raise RuntimeError("power loss")
        step(self)

    monkeypatch.setattr(trainer_module.Trainer, "_step", fail_at_seven)
    with pytest.raises(RuntimeError, match="power loss"):
        run(dense, out, text, heldout, replace(CONFIG, checkpoint_every_s=1e-9))
    monkeypatch.setattr(trainer_module.Trainer, "_step", step)
    assert run(dense, out, text, heldout, resume=True).masks.sha256() == whole.masks.sha256()


def test_there_is_nothing_to_resume(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to resume"):
        run(dense, tmp_path / "out", text, heldout, resume=True)


def test_layers_can_be_chosen_by_name(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=1, include=r"mlp\.", exclude="down_proj"))
    assert sorted(n.split(".")[-2] for n in result.masks) == ["gate_proj", "gate_proj", "up_proj", "up_proj"]


def test_nothing_left_to_prune_is_an_error(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        run(dense, tmp_path / "out", text, heldout, replace(CONFIG, include="nothing"))


def test_a_pattern_that_does_not_divide_names_the_layer(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(PatternError, match=r"2:3 does not fit layer model\.layers\.0\.self_attn\.q_proj"):
        run(dense, tmp_path / "out", text, heldout, replace(CONFIG, pattern=NMPattern(2, 3)))
    assert list(tmp_path.iterdir()) == []


def test_text_shorter_than_a_window_is_an_error(dense: Checkpoint, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="less than one window"):
        run(dense, tmp_path / "out", Text(name="short", documents=("one two",)), heldout)


def test_an_existing_output_is_kept(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="--force"):
        run(dense, tmp_path / "out", text, heldout)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_sparse_checkpoint_is_not_learned_on_again(tiny_sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sparse checkpoint already"):
        learn_checkpoint(tiny_sparse, tmp_path / "out", text, heldout, CONFIG)


def test_a_loss_that_is_no_number_stops_the_run(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = trainer_module.LearningModel.loss

    def broken(self: trainer_module.LearningModel, windows: trainer_module.Windows, *, differentiable: bool) -> torch.Tensor:
        return real(self, windows, differentiable=differentiable) * (float("nan") if differentiable else 1.0)

    monkeypatch.setattr(trainer_module.LearningModel, "loss", broken)
    with pytest.raises(CheckFailed, match="loss became nan at step 0"):
        run(dense, tmp_path / "out", text, heldout)
    assert not (tmp_path / "out").exists()


def test_memory_that_does_not_suffice_is_one_plain_error(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: trainer_module.Trainer) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(trainer_module.Trainer, "_step", full)
    with pytest.raises(MachineError, match="memory of cpu does not suffice"):
        run(dense, tmp_path / "out", text, heldout)


def test_a_state_of_another_dtype_is_not_resumed(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(dense, out, text, heldout, progress=Stopper(2))
    with pytest.raises(InputError, match="other settings"):
        run(dense, out, text, heldout, replace(CONFIG, dtype="bfloat16"), resume=True)


def test_learn_masks_returns_what_the_checkpoint_would_hold(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    masks = learn_masks(dense.folder, text, CONFIG, heldout=heldout)
    assert masks.sha256() == run(dense, tmp_path / "out", text, heldout).masks.sha256()


def test_other_patterns_and_the_magnitude_prior_work_too(dense: Checkpoint, text: Text, heldout: Text) -> None:
    for pattern in (NMPattern(1, 4), NMPattern(4, 8)):
        masks = learn_masks(dense.folder, text, replace(CONFIG, pattern=pattern, steps=2, prior="magnitude"), heldout=heldout)
        assert all(pattern.holds(masks.mask(name)) for name in masks)


def test_no_steps_write_the_prior_itself(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=0, prior="ria"))
    assert result.masks.sha256() == result.prior_masks.sha256()
    assert [p.step for p in result.curve] == [0]
    assert json.loads((tmp_path / "out" / "learn.json").read_text())["weights_changed"] is False


def test_magnitude_masks_are_refined_too(dense: Checkpoint, text: Text, heldout: Text) -> None:
    plain, refined = (
        learn_masks(dense.folder, text, replace(CONFIG, steps=0, prior="magnitude", refine=refine), heldout=heldout)
        for refine in (False, True)
    )
    assert plain.sha256() != refined.sha256()


def test_the_weight_update_is_saved_masked(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    config = replace(CONFIG, steps=0, prior="sparsegpt", prior_update=True)
    updated = run(dense, tmp_path / "updated", text, heldout, config)
    weights = load_file(tmp_path / "updated" / "model.safetensors")
    changed = 0
    for name in dense.names:
        if name in updated.masks:
            assert PATTERN.holds(weights[name] != 0)
            changed += int((weights[name][updated.masks.mask(name)] != dense.tensor(name)[updated.masks.mask(name)]).sum())
        else:
            assert np.array_equal(weights[name], dense.tensor(name))
    assert changed > 0
    assert json.loads((tmp_path / "updated" / "learn.json").read_text())["weights_changed"] is True


@pytest.mark.parametrize("objective", ["kl", "ce+kl"])
def test_other_objectives_learn_too(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path, objective: str) -> None:
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=40, objective=objective))
    assert result.curve[-1].sample_loss is not None
    assert min(p.heldout_loss for p in result.curve) < result.curve[0].heldout_loss - 0.02


def test_a_mask_file_is_a_prior(dense: Checkpoint, tiny_sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    given = MaskSet.load(tiny_sparse / "masks.safetensors")
    result = run(dense, tmp_path / "out", text, heldout, replace(CONFIG, steps=1, prior=f"file:{tiny_sparse}"))
    assert result.prior_masks.flips(given) == 0


def test_a_pruned_folder_without_masks_is_a_prior(
    dense: Checkpoint, tiny_sparse: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    given = MaskSet.load(tiny_sparse / "masks.safetensors")
    foreign = shutil.copytree(tiny_sparse, tmp_path / "foreign", ignore=shutil.ignore_patterns("masks.safetensors"))
    config = replace(CONFIG, steps=1, prior=f"file:{foreign}")
    assert run(dense, tmp_path / "out", text, heldout, config).prior_masks.flips(given) == 0
    weights = load_file(foreign / "model.safetensors")
    first = next(iter(given))
    save_file({**weights, first: weights[first] * np.float32(1.01)}, foreign / "model.safetensors")
    with pytest.raises(InputError, match=rf"1 of 14 layers differ where they are not zero, such as {first}.\n.*--other-weights"):
        run(dense, tmp_path / "updated", text, heldout, config)
    updated = run(dense, tmp_path / "updated", text, heldout, replace(config, other_weights=True))
    assert updated.prior_masks.flips(given) == 0
    assert updated.masks.dense_sha256 == dense.dense_sha256(given)
    save_file({**weights, first: dense.tensor(first)}, foreign / "model.safetensors")
    with pytest.raises(InputError, match=f"has no weight {first} that holds 2:4"):
        run(dense, tmp_path / "partly", text, heldout, config)


def test_a_mask_file_that_does_not_fit_is_one_plain_error(
    dense: Checkpoint, tiny_sparse: Path, text: Text, heldout: Text, tmp_path: Path
) -> None:
    own = MaskSet.load(tiny_sparse / "masks.safetensors")
    arrays = {name: own.mask(name) for name in own}
    first = next(iter(arrays))
    cases = {
        "the hashes differ": MaskSet.from_arrays(PATTERN, arrays, "0" * 64),
        "holds 2:4 masks, --sparsity is 1:4": own,
        f"has no mask for {first}": MaskSet.from_arrays(PATTERN, {n: m for n, m in arrays.items() if n != first}),
        "do not belong to": MaskSet.from_arrays(PATTERN, {**arrays, first: arrays[first][:4]}),
    }
    for i, (message, masks) in enumerate(cases.items()):
        masks.save(tmp_path / f"{i}.safetensors")
        pattern = NMPattern(1, 4) if "1:4" in message else PATTERN
        with pytest.raises(InputError, match=message):
            run(
                dense,
                tmp_path / "out",
                text,
                heldout,
                replace(CONFIG, pattern=pattern, prior=f"file:{tmp_path / f'{i}.safetensors'}"),
            )
    with pytest.raises(InputError, match="does not exist"):
        run(dense, tmp_path / "out", text, heldout, replace(CONFIG, prior=f"file:{tmp_path / 'none'}"))


def test_a_weight_that_is_no_number_is_named(dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path) -> None:
    class Poison(Stopper):
        def __init__(self, trainer: list[trainer_module.Trainer]) -> None:
            self.trainer = trainer

        def update(self, done: float, total: float, note: str = "") -> None:
            self.trainer[0].sites[3].weight[0, :4] = float("nan")

    held: list[trainer_module.Trainer] = []
    model = trainer_module.LearningModel(load_causal_lm(dense.folder, torch.float32))
    windows = np.random.default_rng(0).integers(0, 320, (8, 32)).astype(np.int32)
    held.append(trainer_module.Trainer(model, windows, windows, replace(CONFIG, prior="magnitude"), progress=Poison(held)))
    held[0].prepare()
    with pytest.raises(CheckFailed, match=r"loss became nan at step 1, first in model\.layers\.0\.self_attn\.o_proj"):
        held[0].run()


def test_logits_that_are_no_numbers_never_replace_a_good_state(
    dense: Checkpoint, text: Text, heldout: Text, tmp_path: Path
) -> None:
    model = trainer_module.LearningModel(load_causal_lm(dense.folder, torch.float32))
    windows = np.random.default_rng(0).integers(0, 320, (8, 32)).astype(np.int32)
    store = StateStore(tmp_path / "state", "x")
    trainer = trainer_module.Trainer(model, windows, windows, replace(CONFIG, prior="magnitude"), store)
    trainer.prepare()
    trainer.save()
    good = store.path.read_bytes()
    trainer.sites[5].logits[0, 0] = float("nan")
    with pytest.raises(CheckFailed, match=f"logits of {trainer.sites[5].name} are not finite"):
        trainer.save()
    assert store.path.read_bytes() == good


@pytest.mark.parametrize("kind", ["llama", "sliding"])
def test_a_cache_that_keeps_nothing_changes_nothing(kind: str) -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 50,
    }
    torch.manual_seed(0)
    config = LlamaConfig(**sizes) if kind == "llama" else Gemma3TextConfig(**sizes, sliding_window=8, head_dim=16)
    base = AutoModelForCausalLM.from_config(config).eval().base_model
    embedded = torch.randn(3, 32, 32)
    more = without_waiting(base)
    assert len(more) == 1
    for _ in range(2):
        expected = base(inputs_embeds=embedded, use_cache=False).last_hidden_state
        assert torch.equal(base(inputs_embeds=embedded, use_cache=False, **more).last_hidden_state, expected)


class Unordered(torch.autograd.Function):
    """Its backward pass has no deterministic form: torch refuses `put_` in that mode."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return torch.zeros(()).put_(torch.tensor(0), grads[0])


def test_an_operation_without_a_deterministic_form_is_told_once_and_allowed(
    dense: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    learning = LearningModel(load_causal_lm(dense.folder, torch.float32))
    monkeypatch.setattr(learning, "head", learning.head.to("meta"))  # as on any device but a CPU
    x = torch.ones((), requires_grad=True)
    monkeypatch.setattr(learning, "loss", lambda *args, **kwargs: Unordered.apply(x))
    learning.check_backward(np.zeros((2, 8), dtype=np.int32))
    assert x.grad is None
    assert "put_ does not have a deterministic implementation" in caplog.text
    learning.backward(Unordered.apply(x))
    assert x.grad == 1
    assert not torch.are_deterministic_algorithms_enabled()

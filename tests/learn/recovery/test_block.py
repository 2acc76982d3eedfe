"""Block by block: which weights move when, what the error is, that it falls, and that it is the same with blocks on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoder_families import write_family
from safetensors.numpy import load_file
from stopper import Stopper
from test_recover import MASKS, SMALL, same_bits

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.data import Text
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError, Interrupted
from maskpro_deploy.learn import RecoverConfig, RecoverResult, learn_checkpoint, recover_checkpoint
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.paged_blocks import PagedModel, open_paged
from maskpro_deploy.learn.recovery import api
from maskpro_deploy.learn.recovery.block_trainer import BlockTrainer
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.torch_lm import load_causal_lm

CONFIG = RecoverConfig(method="block", refit=True, steps=12, learning_rate=2e-3, calibration_tokens=512, **SMALL)
WINDOWS = np.random.default_rng(0).integers(0, 320, (64, 32)).astype(np.int32)
BLOCKS = 2


@pytest.fixture(scope="module")
def sparse(tiny_checkpoint: Path, text: Text, heldout: Text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sparse") / "one-shot"
    learn_checkpoint(tiny_checkpoint, out, text, heldout, MASKS, device="cpu")
    return out


def run(sparse: Path, out: Path, text: Text, heldout: Text, config: RecoverConfig = CONFIG, **more: Any) -> RecoverResult:
    return recover_checkpoint(sparse, out, text, heldout, config, device="cpu", **more)


def trainer_for(sparse: Path, dense: Path, config: RecoverConfig = CONFIG) -> BlockTrainer:
    ours, theirs = (LearningModel(load_causal_lm(folder, torch.float32)) for folder in (sparse, dense))
    masks = Checkpoint.open(sparse).masks
    assert isinstance(masks, MaskSet)
    trainer = BlockTrainer(ours, WINDOWS, WINDOWS[:8], config, masks, theirs)
    trainer.prepare()
    return trainer


def block_errors(ours: torch.nn.Module, dense: Path, batches: list[torch.Tensor]) -> list[float]:
    """Relative error of every block by whole forward passes, independent of the method."""
    states: list[list[torch.Tensor]] = []
    for model in (ours, load_causal_lm(dense, torch.float32)):
        layers, found = model.model.layers, [[] for _ in range(BLOCKS + 1)]
        handles = [layers[0].register_forward_pre_hook(lambda _, args, found=found: found[0].append(args[0].clone()))]
        handles += [
            y.register_forward_hook(lambda _, a, out, f=found[i + 1]: f.append(out.clone())) for i, y in enumerate(layers)
        ]
        with torch.no_grad():
            for tokens in batches:
                model(tokens, use_cache=False)
        for handle in handles:
            handle.remove()
        states.append([torch.cat(x) for x in found])
    sparse, dense_states = states
    return [
        float(((sparse[i] - dense_states[i]).square().sum(-1) / dense_states[i].square().sum(-1)).mean())
        for i in range(1, BLOCKS + 1)
    ]


@pytest.mark.parametrize(("refit", "share"), [(True, 0.8), (False, 0.97)])
def test_the_error_of_every_block_falls(sparse: Path, tiny_checkpoint: Path, refit: bool, share: float) -> None:
    trainer = trainer_for(sparse, tiny_checkpoint, replace(CONFIG, steps=60, refit=refit))
    before = block_errors(trainer.model.model, tiny_checkpoint, trainer._batches)
    assert trainer.run()
    after = block_errors(trainer.model.model, tiny_checkpoint, trainer._batches)
    assert all(b < share * a for a, b in zip(before, after, strict=True)), (before, after)
    assert trainer.method.finish() == pytest.approx(after[-1], rel=1e-3)


def test_only_the_block_whose_turn_it_is_moves(sparse: Path, tiny_checkpoint: Path) -> None:
    trainer = trainer_for(sparse, tiny_checkpoint)
    names = list(trainer.masks)
    for moving in ("model.layers.0.", "model.layers.1."):
        before = {n: trainer.model.model.get_submodule(n.removesuffix(".weight")).weight.clone() for n in names}
        for _ in range(6):
            trainer._step()
        after = {n: trainer.model.model.get_submodule(n.removesuffix(".weight")).weight for n in names}
        for name in names:
            assert torch.equal(before[name], after[name]) != name.startswith(moving), name


def test_masks_stay_and_what_they_drop_is_plus_zero(sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    result = run(sparse, tmp_path / "out", text, heldout)
    masks = Checkpoint.open(tmp_path / "out").masks
    assert masks is not None
    before, after = load_file(sparse / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in after.items():
        if name not in masks:
            assert np.array_equal(weight, before[name])
            continue
        assert not weight[~masks.mask(name)].view(np.uint32).any()  # +0.0 to the bit
        assert not np.array_equal(weight, before[name])
    assert min(p.heldout_loss for p in result.curve) < result.curve[0].heldout_loss
    assert result.curve[-1].moved > 0


def test_an_interrupted_run_resumes_to_the_same_bits(sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    whole = run(sparse, tmp_path / "whole", text, heldout)
    for at in (3, 9):  # in the middle of the first block, and of the second
        out = tmp_path / f"{at}"
        with pytest.raises(Interrupted):
            run(sparse, out, text, heldout, progress=Stopper(at))
        files = {path.name for path in StateStore.folder_for(out).iterdir()}
        assert files == {"state.safetensors"} | ({"block-0.safetensors"} if at > 6 else set())
        resumed = run(sparse, out, text, heldout, resume=True)
        assert same_bits(tmp_path / "whole", out)
        assert [p.heldout_loss for p in resumed.curve] == [p.heldout_loss for p in whole.curve]
        assert [p.moved for p in resumed.curve] == [p.moved for p in whole.curve]
        assert resumed.tokens == whole.tokens
        assert not StateStore.folder_for(out).exists()


def test_blocks_on_disk_and_in_memory_give_the_same_bits(
    sparse: Path, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[LearningModel] = []
    monkeypatch.setattr(api, "open_paged", lambda *given: opened.append(open_paged(*given)) or opened[-1])
    run(sparse, tmp_path / "paged", text, heldout)
    assert [type(model) for model in opened] == [PagedModel, PagedModel]
    monkeypatch.setattr(api, "open_paged", lambda c, dtype, place, _: LearningModel(load_causal_lm(c.folder, dtype)))
    run(sparse, tmp_path / "whole", text, heldout)
    assert same_bits(tmp_path / "paged", tmp_path / "whole")


def test_tokens_are_counted_as_if_they_went_through_the_whole_model(sparse: Path, tiny_checkpoint: Path) -> None:
    trainer = trainer_for(sparse, tiny_checkpoint)
    trainer.run()
    refitted = 512  # the calibration text once through every block
    assert trainer.counters.tokens == refitted + 12 * 128 // BLOCKS
    assert trainer.counters.curve[-1].epochs == trainer.counters.tokens / 512
    limited = trainer_for(sparse, tiny_checkpoint, replace(CONFIG, steps=None, tokens=2048))
    limited.run()
    assert 2048 <= limited.counters.tokens < 2048 + 128


def test_every_block_has_its_turn_and_no_steps_change_nothing(sparse: Path, tiny_checkpoint: Path) -> None:
    for steps, changed in ((0, set()), (1, {0, 1})):
        trainer = trainer_for(sparse, tiny_checkpoint, replace(CONFIG, steps=steps))
        trainer.run()
        start = load_causal_lm(sparse, torch.float32)
        moved = {
            int(n.split(".")[2])
            for n in trainer.masks
            if not torch.equal(trainer.model.model.get_submodule(n.removesuffix(".weight")).weight, start.get_parameter(n))
        }
        assert moved == changed


def test_a_run_that_only_makes_it_worse_gives_what_it_started_from(
    sparse: Path, text: Text, heldout: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(layer: Any) -> None:
        layer.weight.mul_(3.0)

    monkeypatch.setattr(
        "maskpro_deploy.learn.recovery.block.refit_block", lambda block, layers, *_: [spoil(y) for y in layers.values()]
    )
    result = run(sparse, tmp_path / "out", text, heldout, replace(CONFIG, learning_rate=1e-9))
    assert all(p.heldout_loss > result.curve[0].heldout_loss for p in result.curve[1:])
    assert same_bits(sparse, tmp_path / "out")


def test_weights_that_are_no_numbers_end_the_run(sparse: Path, text: Text, heldout: Text, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--refit belongs to --method block"):
        replace(CONFIG, method="full")
    with pytest.raises(CheckFailed, match="--learning-rate"):
        run(sparse, tmp_path / "out", text, heldout, replace(CONFIG, learning_rate=1e38))


def test_a_model_that_does_not_run_block_by_block_is_refused(text: Text, heldout: Text, tmp_path: Path) -> None:
    dense = write_family("gemma4_text", tmp_path / "dense")
    learn_checkpoint(dense, tmp_path / "sparse", text, heldout, MASKS, device="cpu")
    with pytest.raises(InputError, match=r"does not run block by block: .*from the tokens\.\n.*--method full"):
        run(tmp_path / "sparse", tmp_path / "out", text, heldout)


def test_stored_the_other_way_round_is_loaded_whole(
    text: Text, heldout: Text, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = write_family("gpt2", tmp_path / "dense")
    learn_checkpoint(dense, tmp_path / "sparse", text, heldout, MASKS, device="cpu")
    result = run(tmp_path / "sparse", tmp_path / "out", text, heldout)
    assert "the whole model is loaded into memory" in caplog.text
    assert result.curve[-1].moved > 0

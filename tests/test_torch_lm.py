"""The torch reference: logits, greedy tokens, masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.torch_lm import TorchLM


def test_greedy_tokens_are_the_argmax_of_the_logits_step_by_step(tiny_checkpoint: Path) -> None:
    lm, tokens = TorchLM.open(tiny_checkpoint), [5, 9, 200]
    greedy = lm.greedy(tokens, 6)
    for token in greedy:
        assert token == int(lm.logits(np.array([tokens]))[0, -1].argmax())
        tokens.append(token)
    assert len(greedy) == 6


def test_applied_masks_give_the_model_of_the_sparse_checkpoint(tiny_checkpoint: Path, tiny_sparse: Path) -> None:
    lm, masks = TorchLM.open(tiny_checkpoint), Checkpoint.open(tiny_sparse).masks
    assert masks is not None
    tokens = np.arange(10)[None]
    dense = lm.logits(tokens)
    lm.apply(masks)
    sparse = TorchLM.open(tiny_sparse).logits(tokens)
    np.testing.assert_array_equal(lm.logits(tokens), sparse)
    assert np.abs(sparse - dense).max() > 0.1
    assert lm.vocab_size == sparse.shape[-1]


def test_what_is_no_model_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        TorchLM.open(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        TorchLM.open(tmp_path)


def test_a_config_that_transformers_does_not_know_is_one_plain_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny_checkpoint / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(FormatError, match="could not be opened as a causal language model"):
        TorchLM.open(tmp_path)

"""A checkpoint running in torch: the reference that every other form of the model is compared with.

Shapes: `B` batch, `T` tokens (`S` new, `P` past), `V` vocabulary.
"""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.storage.packing import QUANTISATION_KEYS

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


def load_causal_lm(folder: Path, dtype: torch.dtype, *, empty: Collection[str] = ()) -> Any:
    """The transformers model of a checkpoint folder, frozen, in evaluation mode.

    The tensors named in `empty` are not read: their weights are zeros that take no memory and have to be replaced.

    Raises:
        InputError: the folder is not a checkpoint.
        FormatError: transformers cannot build the model from it.
    """
    checkpoint = Checkpoint.open(folder)  # plain errors for missing, foreign and truncated files come from here
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as hf_logging

    hf_logging.disable_progress_bar()
    local = {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    with _transformers_errors(folder), contextlib.redirect_stderr(io.StringIO()):
        config = read_transformers_config(folder)
        if checkpoint.bitmasks or empty:
            tensors = checkpoint.map_torch(without=empty)
            tensors |= {name: torch.zeros((), dtype=dtype).expand(checkpoint.shapes[name]) for name in empty}
            kind = type(build_without_weights(folder))
            model = kind.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, **local)
    model.requires_grad_(False)
    return model.eval()


def build_without_weights(folder: Path) -> Any:
    """The transformers model of a checkpoint folder with shapes alone (FormatError: transformers cannot build it)."""
    from transformers import AutoModelForCausalLM

    with _transformers_errors(folder), torch.device("meta"):
        return AutoModelForCausalLM.from_config(read_transformers_config(folder), trust_remote_code=False)


@contextlib.contextmanager
def _transformers_errors(folder: Path) -> Iterator[None]:
    """Say which folder could not be opened (FormatError)."""
    try:
        yield
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as e:
        # transformers' own words for it are about an argument of its call
        said = "weights and config.json have other shapes." if "ignore_mismatched_sizes" in str(e) else str(e)
        raise FormatError(f"{folder} could not be opened as a causal language model: {said}") from e


def read_transformers_config(folder: Path) -> Any:
    """The configuration of a checkpoint in transformers, without its quantisation: weights that are read are plain."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        for key in QUANTISATION_KEYS:
            if hasattr(part, key):
                delattr(part, key)
    return config


class TorchLM:
    """Logits and greedy tokens of a transformers causal language model, in torch."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @classmethod
    def open(cls, folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> TorchLM:
        """Load a checkpoint folder onto a torch device (see `load_causal_lm` for what can go wrong)."""
        return cls(load_causal_lm(folder, dtype).to(device))

    @torch.inference_mode()
    def apply(self, masks: MaskSet) -> None:
        """Bring the weights into the masks' bases and multiply them with the masks, in place."""
        changed: set[int] = set()
        for name in masks.transform.places:
            weight = self._model.get_parameter(name)
            if id(weight) not in changed:
                changed.add(id(weight))
                moved = masks.transform.apply(name, weight.float().cpu().numpy())
                weight.copy_(torch.from_numpy(moved).to(weight.device))
        for name in masks:
            weight = self._model.get_parameter(name)
            weight.mul_(torch.from_numpy(masks.stored_mask(name)).to(weight.device))

    @property
    def vocab_size(self) -> int:
        """`V`."""
        return int(self._model.config.vocab_size)

    @torch.inference_mode()
    def logits(self, tokens: Ints) -> Floats:
        """Logits at every position.  # (B, T) -> (B, T, V)"""
        out = self._model(self._tensor(tokens), use_cache=False)
        logits: Floats = out.logits.float().cpu().numpy()
        return logits

    @torch.inference_mode()
    def forward(self, tokens: Ints, cache: Any = None, attention_mask: Ints | None = None) -> tuple[Floats, Any]:
        """Read tokens `(B, S)` on top of a cache that an earlier call returned, which is used up.

        The mask `(B, P + S)` is 1 where a token counts, 0 at padding on the left; None if all count. Returns the logits after
        each token `(B, S, V)`, and the longer cache.
        """
        from transformers import DynamicCache

        accepted = inspect.signature(self._model.forward).parameters
        cache = DynamicCache(config=self._model.config) if cache is None else cache
        if attention_mask is None:
            attention_mask = np.ones((tokens.shape[0], int(cache.get_seq_length()) + tokens.shape[1]), np.int64)
        given = {"attention_mask": self._tensor(attention_mask), "use_cache": True}
        given["cache" if "cache" in accepted else "past_key_values"] = cache  # the name changed within transformers 5
        if "position_ids" in accepted:
            positions = np.maximum(attention_mask.cumsum(axis=1) - 1, 0)[:, -tokens.shape[1] :]
            given["position_ids"] = self._tensor(positions)
        out = self._model(self._tensor(tokens), **given)  # the cache grows in place
        logits: Floats = out.logits.float().cpu().numpy()
        return logits, cache

    def _tensor(self, array: Ints) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(self._model.device)

    @torch.inference_mode()
    def hidden_states(self, tokens: Ints) -> list[Floats]:
        """What goes into layer 0, 1, ... and, after the last norm, into the output head.  # (B, T) -> (B, T, E) each"""
        out = self._model(self._tensor(tokens), use_cache=False, output_hidden_states=True)
        return [state.float().cpu().numpy() for state in out.hidden_states]

    @torch.inference_mode()
    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` most likely next tokens, one after another; end-of-text does not stop it."""
        from transformers import GenerationConfig

        # what the checkpoint says of sampling and of ends would fill in whatever is left open below
        self._model.generation_config = GenerationConfig()
        ids = torch.tensor([list(prompt)], device=self._model.device)
        settings = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0)
        out = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        return [int(token) for token in out[0, len(prompt) :]]

"""What is counted on shapes alone: the model on torch's meta device, and what autograd would keep of a step.

Shapes: `B` sequences, `T` tokens, `H` heads, `D` head dimension, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.calibration import decoder_blocks
from maskpro_deploy.learn.model.model import LearningModel, keep_hooks
from maskpro_deploy.learn.model.objective import BLOCK_TOKENS
from maskpro_deploy.learn.planning.runs import PlannedRun

_COUNTING = "maskpro_counting"
_PASSING = 4  # gradients as wide as a block's widest layer at one time: gate, up, their product, and the one being formed


def open_empty(checkpoint: Checkpoint, dtype: torch.dtype) -> LearningModel:
    """The model of a checkpoint, without values.

    Raises:
        FormatError: transformers cannot make a causal language model of its configuration.
    """
    from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

    try:
        settings = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
        AttentionInterface.register(_COUNTING, _count_attention)
        with torch.device("meta"):
            choices = {"dtype": dtype, "trust_remote_code": False}
            try:
                model = AutoModelForCausalLM.from_config(settings, attn_implementation=_COUNTING, **choices)
            except (ValueError, KeyError):  # its attention cannot be exchanged: an upper bound is counted
                model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager", **choices)
    except (ValueError, OSError, KeyError, RuntimeError, ImportError) as e:
        raise FormatError(f"{checkpoint.folder} could not be opened as a causal language model: {e}") from e
    return LearningModel(model.eval())


class _Attention(torch.autograd.Function):
    """Attention as far as memory is concerned: what the fused kernels keep is query, key, value, output and one sum a row.

    It has no backward pass: tensors without values have no gradients.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output


def _count_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """In transformers' interface.  # (B, H, T, D) each -> (B, T, H, D)"""
    output: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return output.transpose(1, 2).contiguous(), None


def count_activations(model: LearningModel, layers: Mapping[str, nn.Linear], run: PlannedRun) -> int:
    """Bytes of activations and of their gradients at the peak of a step."""
    element = model.head.element_size()
    tokens = run.config.sequences * run.config.window
    kept = _predict_kept_bytes(model, layers, run) if run.backward else 0
    if kept is None:
        return tokens * sum(layer.in_features + layer.out_features for layer in layers.values()) * element
    if run.by_block:
        kept //= len(decoder_blocks(model.model))
    widest = max(max(layer.in_features, layer.out_features) for layer in layers.values())
    # gradients going back, that of the last hidden states and those inside a block; without any, what a block has at work
    passing = run.copies * tokens * (model.head.shape[1] + _PASSING * widest) * element
    return kept + passing


def _predict_kept_bytes(model: LearningModel, layers: Mapping[str, nn.Linear], run: PlannedRun) -> int | None:
    """Bytes that autograd keeps for the backward pass of one step, weights left out.

    None where the model cannot run without values, as mixtures of experts and many state space models cannot. Then every layer is
    taken to see every token and to keep inputs and outputs: an upper bound.
    """
    kept: dict[int, tuple[Any, int]] = {}  # by storage; the storage is held, so that its address stays its own
    weights = {p.untyped_storage()._cdata for p in model.model.parameters()}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = (storage, storage.nbytes())
        return x

    # a masked layer keeps its input, which a frozen one does not
    handles = (layer.register_forward_pre_hook(lambda _, args: (keep(args[0]), None)[1]) for layer in layers.values())
    tokens = torch.zeros(run.config.sequences, run.config.window, dtype=torch.long, device="meta")
    for vector in list_vectors(model):
        vector.requires_grad_(run.moves_vectors)
    try:
        model.compute_hidden(tokens, differentiable=False)  # settles how the model is called
        with keep_hooks(handles), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = model.compute_hidden(tokens, differentiable=True)  # held, with its graph, until all is counted
    except Exception:  # models say in many ways that they need values, the choice of experts among them
        return None
    size = sum(size for _, size in kept.values())
    del hidden
    return size


def list_vectors(model: LearningModel) -> list[nn.Parameter]:
    """The parameters of one dimension: scales of norms, and biases."""
    return [p for p in model.model.parameters() if p.dim() == 1]


def count_head(model: LearningModel, run: PlannedRun, dtype: torch.dtype) -> int:
    """Bytes of the logits of a block of tokens and of what is made of them, and of those of a teacher."""
    tokens = min(BLOCK_TOKENS, run.config.sequences * run.config.window)
    taught = run.config.objective_choice.teacher_share > 0
    return tokens * model.head.shape[0] * (8 + 2 * dtype.itemsize) * (1 + taught)


def count_prior(model: LearningModel, layers: Mapping[str, nn.Linear], config: LearnConfig, dtype: torch.dtype) -> int:
    """Gram matrices of the block with the largest ones, and the hidden states of the calibration text twice.

    Where a prior changes weights that are trained, the dense ones are there already.
    """
    apart = config.prior_update and config.trains_weights
    dense = sum(layer.weight.numel() for layer in layers.values()) * dtype.itemsize if apart else 0
    if not config.needs_grams:
        return dense
    blocks = decoder_blocks(model.model)
    grams = max(sum(4 * y.in_features**2 for n, y in layers.items() if n.startswith(f"{b}.")) for b in blocks)
    return dense + grams + 2 * config.calibration_tokens * model.head.shape[1] * dtype.itemsize

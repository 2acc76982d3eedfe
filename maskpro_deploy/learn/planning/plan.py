"""What a run on a model takes, predicted before its weights are read.

The model is built on torch's meta device (shapes, no memory) from `config.json`, and a step runs there, so that what autograd
keeps is counted and not guessed. The learner's own state is weighed on a real run over one tiny block. For the time, matrix
products of the model's shapes and the work on one layer's masks and weights are measured on this machine.

    peak = program + max(loading, weights + prior, held + max(step, copied, writing))
    held = weights + replaced + teacher + state + streams + kernels
    step = activations + max(head, one layer's gradients and mask)

A run of `recover --method block` whose blocks stay on disk has weights, state and activations of single blocks, and `streams`:
hidden states of its text.

The teacher is what a run holds of the dense model next to the weights that it moves: nothing where weights are frozen, the masked
layers' with `learn --weights train`, a second model with `recover`.

What an estimator or a method does in a step is said by its entry in `choices`. Measured against real runs the prediction was
within `ERROR` for runs with a backward pass (`tests/learn/planning/test_plan.py`, `scripts/bench_learn_plan`); forward passes
alone took less than predicted. The time leaves out attention, norms and activation functions, so it is a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.dense_layers import split_layers
from maskpro_deploy.learn.model.calibration import decoder_blocks
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.paged_blocks import list_block_tensors
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.monitor import peak_memory
from maskpro_deploy.learn.planning.probe import StateBytes, measure_moves, measure_products, weigh_state
from maskpro_deploy.learn.planning.runs import PlannedLearning, PlannedRecovery, PlannedRun
from maskpro_deploy.learn.planning.shapes import count_activations, count_head, count_prior, list_vectors, open_empty
from maskpro_deploy.learn.recovery.config import RecoverConfig

ERROR = 0.3  # of the peak: see the module's text
_GRADIENT_BYTES = 24  # per weight of the largest layer: masked weight, gradient, and fp32 temporaries
# scratch memory that the libraries of matrix products take at their first use on a CPU: real runs of one small model took 25 to
# 80 MB more than everything that is counted
_KERNEL_BYTES = 50_000_000
_WRITTEN_BYTES = 4  # weights go into the result as float32, and are cast to the checkpoint's dtype
_STREAMS = 3  # of the sparse model, of the dense one, and the targets of the block at work
_MASKLLM_COPIES = 4  # a logit, its gradient and two moments, in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak, by what they are for."""

    program: int
    weights: int
    replaced: int  # weights that masked ones took the place of: pages of the checkpoint's file, which the system can take back
    teacher: int  # dense weights next to those that move
    state: int
    copied: int  # of it, while the best is replaced
    activations: int
    head: int
    gradients: int
    prior: int
    streams: int  # hidden states of a text that goes from block to block
    loading: int
    kernels: int
    writing: int  # weights that go into the result, and the largest of its files

    @property
    def peak(self) -> int:
        """The most at any time."""
        step = self.activations + max(self.head, self.gradients)
        held = self.weights + self.replaced + self.teacher + self.state + self.streams + self.kernels
        return self.program + max(self.loading, self.weights + self.prior, held + max(step, self.copied, self.writing))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The prediction."""

    pattern: str  # of the masks
    layers: int  # how many have one
    prunable: int  # weights in them
    parameters: int  # weights in all
    left_dense: dict[str, str]  # layers that `--dense-layers` names, by name in the checkpoint, with the reason
    dense_share: float | None  # of the multiply-adds, that stays dense too: in layers that only a run can choose
    transforms: tuple[str, ...]  # whose channels change places before masks are made, as far as the model allows
    memory: Memory  # at the peak
    state_bytes_per_weight: float  # of the learner beyond the weights: logits, optimiser, and what it remembers
    # what a logit for each of the C(M, N) masks would take, with gradients and Adam; None where weights are trained
    maskllm_bytes_per_weight: float | None
    step_s: float | None  # seconds of a step at least; None where it was not measured
    products_s: float | None  # of them in matrix products
    masks_s: float | None  # of them in sampling, masking and moving logits and weights

    def to_json(self) -> dict[str, Any]:
        """Every figure, the peaks too."""
        theirs = self.maskllm_bytes_per_weight
        state = None if theirs is None else int(theirs * self.prunable)
        return {**asdict(self), "peak_bytes": self.memory.peak, "maskllm_state_bytes": state}


def plan(
    checkpoint: Checkpoint, config: LearnConfig, device: str, dtype: torch.dtype, *,
    recover: RecoverConfig | None = None, timed: bool = True,
) -> Plan:  # fmt: skip
    """Predict what `learn` takes, or `recover`, from a checkpoint's configuration and headers.

    Args:
        checkpoint: the dense model; for `recover` the sparse one or, as it has the same shapes, the dense one.
        config: the settings of `learn`. With `recover` its pattern and layers count alone, where `checkpoint` has no masks.
        device: "cpu" or "cuda".
        dtype: of the weights during the run.
        recover: the settings of `recover`.
        timed: measure work on this machine.

    Raises:
        ConfigError, FormatError, PatternError: the model cannot be learned on so; the message says why.
    """
    run: PlannedRun = PlannedLearning(config=config)
    if recover is not None:
        run = PlannedRecovery(config=recover, learning=config, masks=checkpoint.masks)
    model = open_empty(checkpoint, dtype)
    tensors = find_tensors(model, checkpoint)
    layers = run.list_layers(model, tensors)
    left = {} if checkpoint.masks is not None else split_layers(model.model, config, tensors)[1]
    prunable = sum(layer.weight.numel() for layer in layers.values())
    parameters = sum(p.numel() for p in model.model.parameters())
    weighed = weigh_state(run, dtype)
    memory = _count_whole(checkpoint, run, config, layers, model, weighed, device, dtype)
    if recover is not None and run.by_block and _can_page(checkpoint):
        memory = _count_by_block(memory, run, layers, model, weighed, dtype)
    products = measure_products(run, layers, model, device, dtype) if timed else None
    masks = measure_moves(run, layers, device, dtype) if timed else None
    step = None if products is None or masks is None else products + masks
    theirs = None if run.trains_weights else 4 * _MASKLLM_COPIES * config.pattern.num_masks / config.pattern.m
    return Plan(
        pattern=str(run.pattern), layers=len(layers), prunable=prunable, parameters=parameters, memory=memory, step_s=step,
        products_s=products, masks_s=masks, state_bytes_per_weight=round(memory.state / prunable, 3),
        maskllm_bytes_per_weight=theirs, left_dense={tensors[name]: reason for name, reason in left.items()},
        dense_share=config.dense_share, transforms=() if recover is not None else config.transforms,
    )  # fmt: skip


def _count_whole(
    checkpoint: Checkpoint, run: PlannedRun, config: LearnConfig, layers: dict[str, nn.Linear], model: LearningModel,
    weighed: StateBytes, device: str, dtype: torch.dtype,
) -> Memory:  # fmt: skip
    """Memory of a run that has the whole model in it; `config` are the settings of the prior."""
    recovers, on_cpu = isinstance(run, PlannedRecovery), device == "cpu"
    prunable = sum(layer.weight.numel() for layer in layers.values())
    parameters = sum(p.numel() for p in model.model.parameters())
    vectors = sum(v.numel() for v in list_vectors(model)) if run.moves_vectors else 0
    factors = run.rank * sum(sum(layer.weight.shape) for layer in layers.values())
    teacher = run.count_teacher_weights(parameters, prunable) * dtype.itemsize
    mapped = recovers and on_cpu and _stored_dtype(checkpoint, find_tensors(model, checkpoint)[next(iter(layers))]) == dtype
    files = [s.stat().st_size for s in checkpoint.shards] if on_cpu else [0]
    return Memory(
        weights=parameters * dtype.itemsize,
        replaced=prunable * dtype.itemsize if mapped else 0,
        teacher=teacher,
        state=weighed.count(prunable, vectors, factors),
        copied=weighed.count_copied(prunable, factors),
        activations=count_activations(model, layers, run),
        head=count_head(model, run, dtype),
        gradients=max(layer.weight.numel() for layer in layers.values()) * _GRADIENT_BYTES
        + (4 * prunable if run.collects_gradients else 0),
        prior=0 if recovers else max(count_prior(model, layers, config, dtype), _count_reordering(model, config, dtype)),
        streams=0,
        loading=parameters * dtype.itemsize + sum(files) + (teacher if recovers else 0),
        program=peak_memory("cpu") if on_cpu else 0,
        kernels=_KERNEL_BYTES if on_cpu else 0,
        writing=max(files) + (_WRITTEN_BYTES * prunable if run.trains_weights and on_cpu else 0),
    )


def _count_reordering(model: LearningModel, config: LearnConfig, dtype: torch.dtype) -> int:
    """Bytes while channels change places: all weights in float32 for the proof, and the largest of them once more."""
    if not config.transforms:
        return 0
    sizes: list[int] = [p.numel() for p in model.model.parameters()]
    wide = 4  # bytes of a float32
    return sum(sizes) * (wide - dtype.itemsize) + max(sizes) * wide


def _can_page(checkpoint: Checkpoint) -> bool:
    """Whether the blocks of a checkpoint can stay on disk."""
    try:
        return bool(list_block_tensors(checkpoint))
    except InputError:
        return False


def _count_by_block(
    whole: Memory, run: PlannedRun, layers: dict[str, nn.Linear], model: LearningModel, weighed: StateBytes, dtype: torch.dtype
) -> Memory:  # fmt: skip
    """Memory of a run whose blocks stay on disk, from what it would be with the whole model in memory.

    Of each model, what is in no block, the block at work, and while the whole is measured the one that runs.
    """
    blocks = decoder_blocks(model.model)
    size = max(sum(p.numel() for p in block.parameters()) for block in blocks.values())
    outside = sum(p.numel() for p in model.model.parameters()) - sum(
        p.numel() for block in blocks.values() for p in block.parameters()
    )
    masked = max(sum(y.weight.numel() for n, y in layers.items() if n.startswith(f"{b}.")) for b in blocks)
    held = (outside + 2 * size) * dtype.itemsize
    config = run.config
    share = min(1.0, config.calibration_tokens / (config.sequences * config.window))  # of a step's tokens: no text has more
    return replace(
        whole,
        weights=held,
        replaced=2 * masked * dtype.itemsize,  # the dense weights under masked ones, and those that the block began with
        teacher=held,
        state=weighed.count(masked, 0, 0),
        copied=weighed.count_copied(masked, 0),
        activations=math.ceil(share * whole.activations),
        streams=_STREAMS * config.calibration_tokens * model.head.shape[1] * dtype.itemsize,
        loading=2 * held,
        writing=whole.writing
        - _WRITTEN_BYTES * sum(y.weight.numel() for y in layers.values())
        + _WRITTEN_BYTES * max(y.weight.numel() for y in layers.values()),
    )


def _stored_dtype(checkpoint: Checkpoint, name: str) -> torch.dtype | None:
    """The dtype of a tensor of the checkpoint; None for one that no run has."""
    return {"F32": torch.float32, "BF16": torch.bfloat16}.get(checkpoint.slices(name).get_dtype())

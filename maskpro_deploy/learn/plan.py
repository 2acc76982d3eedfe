"""What learning on a model takes, predicted before its weights are read.

The model is built on torch's meta device (shapes, no memory) from `config.json`, and a step runs there, so that what autograd
keeps is counted and not guessed. The learner's own state is weighed on a real learner over a tiny layer. For the time, matrix
products of the model's shapes and the work on one layer's masks are measured on this machine.

    peak = program + max(loading, weights + prior, learning)
    learning = weights + state + activations + kernels + max(head, one layer's gradients and mask)

What an estimator does in a step is said by its entry in `choices`. Measured against real runs the prediction was within `ERROR`
for estimators with a backward pass (`tests/learn/test_plan.py`, `scripts/bench_learn_plan`); forward passes alone took less than
predicted. The time leaves out attention, norms and activation functions, so it is a lower bound.

Shapes: `O` outputs, `C` inputs, `V` vocabulary, `D` hidden size, `T` tokens of a step.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.calibration import decoder_blocks
from maskpro_deploy.learn.model.model import LearningModel, keep_hooks, prunable_layers
from maskpro_deploy.learn.model.objective import BLOCK_TOKENS
from maskpro_deploy.learn.model.tensor_names import find_tensors
from maskpro_deploy.learn.monitor import peak_memory
from maskpro_deploy.learn.state import StateStore
from maskpro_deploy.learn.trainer import Trainer

ERROR = 0.3  # of the peak: see the module's text
_COUNTING = "maskpro_counting"
_PROBE_TOKENS = 512  # of a measured matrix product; the rest is scaled
_TINY_SCALE, _LAYER_SIDE = 8, 256
_PROBE_S = 0.3  # seconds for each measured shape
_GRADIENT_BYTES = 24  # per weight of the largest layer: masked weight, gradient, and fp32 temporaries
# scratch memory that the libraries of matrix products take at their first use on a CPU: real runs of one small model took 25 to
# 80 MB more than everything that is counted
_KERNEL_BYTES = 50_000_000
_PASSING = 4  # gradients as wide as a block's widest layer at one time: gate, up, their product, and the one being formed
_MASKLLM_COPIES = 4  # a logit, its gradient and two moments, in fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes at the peak, by what they are for."""

    program: int
    weights: int
    state: int
    activations: int
    head: int
    gradients: int
    prior: int
    loading: int
    kernels: int

    @property
    def peak(self) -> int:
        """The most at any time."""
        learning = self.weights + self.state + self.activations + max(self.head, self.gradients) + self.kernels
        return self.program + max(self.loading, learning, self.weights + self.prior)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The prediction."""

    layers: int  # how many get a mask
    prunable: int  # weights in them
    parameters: int  # weights in all
    memory: Memory  # at the peak
    state_bytes_per_weight: float  # of the learner beyond the weights: logits, optimiser, and what it remembers
    maskllm_bytes_per_weight: float  # what a logit for each of the C(M, N) masks would take, with gradients and Adam
    step_s: float | None  # seconds of a step at least; None where it was not measured
    products_s: float | None  # of them in matrix products
    masks_s: float | None  # of them in sampling, masking and moving the logits

    def to_json(self) -> dict[str, Any]:
        """Every figure, the peaks too."""
        state = int(self.maskllm_bytes_per_weight * self.prunable)
        return {**asdict(self), "peak_bytes": self.memory.peak, "maskllm_state_bytes": state}


def plan(checkpoint: Checkpoint, config: LearnConfig, device: str, dtype: torch.dtype, *, timed: bool = True) -> Plan:
    """Predict what `learn` takes, from a checkpoint's configuration and headers; `timed` measures work on this machine."""
    learning = LearningModel(_empty_model(checkpoint, dtype))
    tensors = find_tensors(learning, checkpoint)
    layers = prunable_layers(learning.model, config.pattern, config.include, config.exclude, tensors)
    config.estimator_choice.load().check_model(learning.model, layers)
    prunable = sum(layer.weight.numel() for layer in layers.values())
    parameters = sum(p.numel() for p in learning.model.parameters())
    per_weight = state_bytes(config)
    files = sum(s.stat().st_size for s in checkpoint.shards)
    memory = Memory(
        weights=parameters * dtype.itemsize,
        state=math.ceil(per_weight * prunable),
        activations=_activation_bytes(learning, layers, config),
        head=_head_bytes(learning, config, dtype),
        gradients=max(layer.weight.numel() for layer in layers.values()) * _GRADIENT_BYTES,
        prior=_prior_bytes(learning, layers, config, dtype),
        loading=parameters * dtype.itemsize + (files if device == "cpu" else 0),
        program=peak_memory("cpu") if device == "cpu" else 0,
        kernels=_KERNEL_BYTES if device == "cpu" else 0,
    )
    products = _product_seconds(layers, learning, config, device, dtype) if timed else None
    masks = _mask_seconds(layers, config, device, dtype) if timed else None
    step = None if products is None or masks is None else products + masks
    theirs = 4 * _MASKLLM_COPIES * config.pattern.num_masks / config.pattern.m
    return Plan(
        layers=len(layers), prunable=prunable, parameters=parameters, memory=memory, step_s=step, products_s=products,
        masks_s=masks, state_bytes_per_weight=round(per_weight, 3), maskllm_bytes_per_weight=theirs,
    )  # fmt: skip


def _empty_model(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
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
    return model.eval()


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


def _activation_bytes(model: LearningModel, layers: Mapping[str, nn.Linear], config: LearnConfig) -> int:
    """Bytes of activations and of their gradients at the peak of a step."""
    estimator, element = config.estimator_choice, model.head.element_size()
    tokens = config.sequences * config.window
    kept = _predict_kept_bytes(model, layers, config) if estimator.backward else 0
    if kept is None:
        return tokens * sum(layer.in_features + layer.out_features for layer in layers.values()) * element
    if estimator.by_block:
        kept //= len(decoder_blocks(model.model))
    widest = max(max(layer.in_features, layer.out_features) for layer in layers.values())
    # gradients going back, that of the last hidden states and those inside a block; without any, what a block has at work
    passing = estimator.copies * tokens * (model.head.shape[1] + _PASSING * widest) * element
    return kept + passing


def _predict_kept_bytes(model: LearningModel, layers: Mapping[str, nn.Linear], config: LearnConfig) -> int | None:
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
    tokens = torch.zeros(config.sequences, config.window, dtype=torch.long, device="meta")
    try:
        model.compute_hidden(tokens, differentiable=False)  # settles how the model is called
        with keep_hooks(handles), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            hidden = model.compute_hidden(tokens, differentiable=True)  # held, with its graph, until all is counted
    except Exception:  # models say in many ways that they need values, the choice of experts among them
        return None
    size = sum(size for _, size in kept.values())
    del hidden
    return size


def _head_bytes(model: LearningModel, config: LearnConfig, dtype: torch.dtype) -> int:
    """Logits of a block of tokens and what is made of them, and those of a teacher."""
    tokens = min(BLOCK_TOKENS, config.sequences * config.window)
    return tokens * model.head.shape[0] * (8 + 2 * dtype.itemsize) * (2 if config.objective_choice.teacher_share else 1)


def _prior_bytes(model: LearningModel, layers: Mapping[str, nn.Linear], config: LearnConfig, dtype: torch.dtype) -> int:
    """Gram matrices of the block with the largest ones, and the hidden states of the calibration text twice."""
    if not config.needs_grams:
        return 0
    blocks = decoder_blocks(model.model)
    grams = max(sum(4 * y.in_features**2 for n, y in layers.items() if n.startswith(f"{b}.")) for b in blocks)
    return grams + 2 * config.calibration_tokens * model.head.shape[1] * dtype.itemsize


def _probe(config: LearnConfig, device: str, dtype: torch.dtype, store: StateStore | None, scale: int) -> Trainer:
    """A real learner over one small random block, after a step; `scale`: hidden size, in groups of M weights times two heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden = 2 * config.pattern.m * scale
    shape = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": 2, "num_key_value_heads": 2}
    tiny = LlamaConfig(vocab_size=32, num_hidden_layers=1, max_position_embeddings=64, **shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LearningModel(LlamaForCausalLM(tiny).to(device, dtype).eval())
    windows = np.zeros((2, 8), dtype=np.int32)
    settings = dataclasses.replace(
        config, window=8, batch_tokens=8, calibration_tokens=8, heldout_tokens=8, steps=1, budget_s=None, tokens=None,
        prior="magnitude", prior_update=False, prior_inputs="auto", refine=False, include=None, exclude=None,
    )  # fmt: skip
    trainer = Trainer(model, windows, windows, settings, store)
    trainer.prepare()
    trainer.run()
    return trainer


def state_bytes(config: LearnConfig) -> float:
    """Bytes that the learner keeps for each prunable weight beyond the weight, weighed on a real learner of one tiny block."""
    with tempfile.TemporaryDirectory() as folder:
        store = StateStore(Path(folder), "probe")
        trainer = _probe(config, "cpu", torch.float32, store, _TINY_SCALE)
        trainer.save()
        tensors, _ = store.load()
    weights = sum(site.weight.numel() for site in trainer.sites)
    held = sum(t.numel() * t.element_size() for name, t in tensors.items() if not name.startswith("start/logits/"))
    return held / weights + 1 / 8  # the masks in use are kept next to what is saved, a bit a weight


def _product_seconds(
    layers: Mapping[str, nn.Linear], model: LearningModel, config: LearnConfig, device: str, dtype: torch.dtype
) -> float:
    """Seconds in matrix products of a step: those of the estimator, and one for a teacher; as many for the head."""
    shapes = Counter(tuple(layer.weight.shape) for layer in layers.values())
    tokens = config.sequences * config.window
    probe = min(_PROBE_TOKENS, tokens)
    estimator, with_teacher = config.estimator_choice, config.objective_choice.teacher_share > 0
    passes = estimator.products + estimator.products_per_sample * config.samples + with_teacher
    total = 0.0
    for (rows, columns), count in [*shapes.items(), ((model.head.shape[0], model.head.shape[1]), 1)]:
        x = torch.ones(probe, columns, dtype=dtype, device=device)
        w = torch.ones(rows, columns, dtype=dtype, device=device)
        total += passes * count * _best_seconds(partial(torch.matmul, x, w.t()), device) * tokens / probe
    return total


def _mask_seconds(layers: Mapping[str, nn.Linear], config: LearnConfig, device: str, dtype: torch.dtype) -> float:
    """Seconds for masking all layers and moving their logits, from those of one layer of a quarter million weights or so."""
    trainer = _probe(config, device, dtype, None, max(1, _LAYER_SIDE // (2 * config.pattern.m)))
    site = max(trainer.sites, key=lambda s: s.weight.numel())
    grad = torch.full_like(site.weight, 1e-4)

    def once() -> None:
        site.masked_weight()
        site.hook.take_gradient(site, grad)

    total = sum(layer.weight.numel() for layer in layers.values())
    return _best_seconds(once, device) * total / site.weight.numel()


def _best_seconds(work: Callable[[], object], device: str) -> float:
    """The least time of one call, over some tenths of a second."""

    def time_once() -> float:
        started = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    with torch.no_grad():
        time_once()  # the first call also sets up
        until = time.perf_counter() + _PROBE_S
        best = time_once()
        while time.perf_counter() < until:
            best = min(best, time_once())
    return best

"""The model while it learns: which layers carry masks, hidden states, and the loss on a batch.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size, `V` vocabulary.
"""

from __future__ import annotations

import inspect
import logging
import re
import time
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from maskpro_deploy.errors import ConfigError, InputError
from maskpro_deploy.learn.model.experts import list_fused, unfuse
from maskpro_deploy.learn.model.memory import deterministic_or_error
from maskpro_deploy.learn.model.objective import Head, LinearHead, ModelHead, Taught, next_token_loss
from maskpro_deploy.learn.model.transposed import turn_layers
from maskpro_deploy.pattern import LayerPatterns, NMPattern
from maskpro_deploy.storage.linear_layers import read_route_counts, stays_dense
from maskpro_deploy.system.input_file import open_tensors

log = logging.getLogger(__name__)

Windows = npt.NDArray[np.int32]  # (W, T)

_FEW_TOKENS = 16
_SAME_LOGITS = 0.02  # of the largest distance from their mean: bf16 rounds differently in the two ways
_PROBE = 512  # side of the matrices that are multiplied to compare dtypes


def faster_dtype(device: str = "cpu") -> torch.dtype:
    """bf16 where this machine multiplies it faster than fp32, else fp32 (processors without bf16 instructions emulate it)."""
    if device != "cpu":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {dtype: _multiply_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return min(seconds, key=lambda d: seconds[d])


def _multiply_seconds(dtype: torch.dtype) -> float:
    a = torch.ones(_PROBE, _PROBE, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return best


def prunable_layers(
    model: Any,
    pattern: NMPattern | LayerPatterns,
    include: str | None,
    exclude: str | None,
    tensors: Container[str] | None = None,
    *,
    transposable: bool = False,
) -> dict[str, nn.Linear]:
    """The linear layers that get a mask, by weight name: all that do not stay dense, or what `include` names, less `exclude`.

    The output embedding stays dense, and whatever `linear_layers` says. A layer whose weight is that of another one is left out:
    it gets the mask of that one. `tensors` are the weights that are tensors of the checkpoint, None if all are; the others stay
    dense with a warning, as do modules with several matrices in one tensor and, where masks are to be `transposable`, layers
    whose number of outputs is not a multiple of M.

    Raises:
        ConfigError: nothing is left.
        PatternError: a layer's input dimension is not a multiple of M.
    """
    head, counts = model.get_output_embeddings(), read_route_counts(model.config.to_dict())
    fused = set(list_fused(model))
    layers: dict[str, nn.Linear] = {}
    left: list[str] = []  # what could have had a mask
    uneven: list[str] = []  # what could have had one that is not transposable
    weights: set[int] = set()  # ids of those that are in
    for name, module in model.named_modules():
        if (include and not re.search(include, name)) or (exclude and re.search(exclude, name)):
            continue
        if name in fused:
            left.append(name)
        if not isinstance(module, nn.Linear) or module is head or stays_dense(f"{name}.weight", module.weight.shape, counts):
            continue
        if id(module.weight) in weights:
            continue
        weights.add(id(module.weight))
        if tensors is not None and f"{name}.weight" not in tensors:
            left.append(name)
            continue
        own = pattern.of(name) if isinstance(pattern, LayerPatterns) else pattern
        own.check_divides(module.in_features, f"layer {name}")
        if transposable and module.out_features % own.m:
            uneven.append(name)
            continue
        layers[f"{name}.weight"] = module
    _warn_left_dense("the checkpoint has no tensor for each of its matrices", left)
    m = pattern.main.m if isinstance(pattern, LayerPatterns) else pattern.m
    _warn_left_dense(f"transposable masks need a number of outputs that is a multiple of {m}", uneven)
    if not layers:
        raise ConfigError("no linear layer is left to prune.\nCheck --include and --exclude against the model's layer names.")
    return layers


def _warn_left_dense(why: str, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        log.warning("left dense, because %s: %s%s", why, names[0], more)


@contextmanager
def keep_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks of modules away when the `with` block ends."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _start_gradient(module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
    """Embedded tokens as a leaf that wants a gradient."""
    return embedded.detach().requires_grad_()


def without_waiting(base_model: Any) -> dict[str, Any]:
    """Arguments that keep a GPU from having to wait in every forward pass: a cache that keeps nothing.

    Without a cache transformers looks at the position of every token, for sequences that are packed into one.
    """
    from transformers import DynamicCache

    class Passing(DynamicCache):  # type: ignore[misc]
        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            return key_states, value_states

    known = inspect.signature(base_model.forward).parameters
    name = next((n for n in ("cache", "past_key_values") if n in known), None)
    return {} if name is None else {name: Passing()}


class LearningModel:
    """A frozen causal language model of transformers whose linear layers can be exchanged.

    Experts and layers that are stored (in, out) become linear layers first (`experts`, `transposed`).
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        model.requires_grad_(False)
        self.parameter_names = frozenset(name for name, _ in model.named_parameters())  # before any layer is exchanged
        unfuse(model)
        self.transposed = turn_layers(model)  # names of the weights that the checkpoint stores (in, out)
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or not hasattr(model, "base_model"):
            raise InputError(f"{type(model).__name__} cannot be learned on: it has no linear output embedding.")
        self.head: Tensor = head.weight
        cap: float | None = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        self._head: Head = LinearHead(self.head, cap) if head.bias is None else ModelHead(self._compute_own_logits)
        linear = {f"{name}.weight": module.weight for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        sharing: dict[int, list[str]] = {}  # id of a weight -> the layers that have it
        for name, weight in linear.items():
            sharing.setdefault(id(weight), []).append(name.removesuffix(".weight"))
        self.places = {name: sharing[id(weight)] for name, weight in linear.items()}  # by the name of a weight
        self._exact_backward = False
        self._waits: bool | None = None  # whether `without_waiting` fails for this model; None until it ran

    def replace(self, weight_name: str, module: nn.Module) -> None:
        """Put `module` where the layer of `weight_name` is, and where any other layer of the same weight is."""
        for place in self.places[weight_name]:
            path, _, leaf = place.rpartition(".")
            setattr(self.model.get_submodule(path), leaf, module)

    def keep_block(self, block: str) -> None:
        """Have the weights of a block in memory until another one is asked for; here they always are (see `paged_blocks`)."""

    def take_weights(self, names: Collection[str], file: Path) -> None:
        """Let these weights be those that a file holds under their names."""
        with open_tensors(file, "pt") as tensors:
            for name in names:
                self.model.get_parameter(name).data.copy_(tensors.get_tensor(name))

    def _compute_own_logits(self, hidden: Tensor) -> Tensor:
        """What the model makes of last hidden states: its forward pass, with them in place of what its base gives.

        # (t, D) -> (t, V)
        """
        from transformers.modeling_outputs import BaseModelOutputWithPast

        base = self.model.base_model
        base.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=hidden[None])
        try:
            tokens = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            logits: Tensor = self.model(tokens, use_cache=False).logits[0]
        finally:
            del base.forward
        return logits

    def compute_hidden(self, tokens: Tensor, *, differentiable: bool) -> Tensor:
        """Last hidden states.  # (B, T) -> (B, T, D)"""
        base, embeddings = self.model.base_model, self.model.get_input_embeddings()
        more = {} if tokens.device.type == "cpu" or self._waits else without_waiting(base)
        # else autograd would never reach the first layers: nothing below them needs a gradient
        starts = [embeddings.register_forward_hook(_start_gradient)] if differentiable else []
        try:
            with keep_hooks(starts):
                states: Tensor = base(input_ids=tokens, use_cache=False, **more).last_hidden_state
        except (AttributeError, IndexError, TypeError, ValueError):
            if not more or self._waits is not None:
                raise
            self._waits = True  # it keeps other states than keys and values
            return self.compute_hidden(tokens, differentiable=differentiable)
        self._waits = self._waits or False
        return states.to(self.head.dtype)  # some keep their residual stream in float32

    def tokens(self, windows: Windows) -> Tensor:
        """Windows as the model takes them.  # (B, T)"""
        tokens = torch.from_numpy(np.ascontiguousarray(windows, dtype=np.int64))
        if self.head.device.type == "cpu":
            return tokens
        return tokens.pin_memory().to(self.head.device, non_blocking=True)  # from other memory it would wait for all work

    @property
    def output_head(self) -> Head:
        """From last hidden states to logits."""
        return self._head

    def loss(self, windows: Windows, *, differentiable: bool, teacher: Taught | None = None, share: float = 0.0) -> Tensor:
        """Mean loss over every window's tokens but its first, see `next_token_loss`; `teacher` (B, T, D).  # (B, T) -> scalar"""
        tokens = self.tokens(windows)
        hidden = self.compute_hidden(tokens, differentiable=differentiable)[:, :-1].flatten(0, 1)
        taught = None if teacher is None else Taught(teacher.hidden[:, :-1].flatten(0, 1), teacher.head)
        return next_token_loss(hidden, self._head, tokens[:, 1:].flatten(), taught, share)

    @torch.no_grad()
    def paired_loss(self, windows: Windows) -> Tensor:
        """Run every window twice in one batch, and take the second half's cross-entropy, nats a token.  # (B, T) -> scalar"""
        tokens = self.tokens(windows)
        hidden = self.compute_hidden(tokens.repeat(2, 1), differentiable=False)[len(tokens) :, :-1].flatten(0, 1)
        return next_token_loss(hidden, self._head, tokens[:, 1:].flatten())

    def check_backward(self, windows: Windows) -> None:
        """Find out on one window whether the backward pass can be made to give the same bits every time.

        Attention's backward pass on a GPU adds numbers as its threads arrive, unless torch has to refuse whatever has no
        deterministic form; a model with such operations has to be learned on without.
        """
        if self.head.device.type == "cpu":
            return
        self._exact_backward = True
        try:
            self.backward(self.loss(windows[:1], differentiable=True))
        except RuntimeError as e:
            if "determini" not in str(e):
                raise
            self._exact_backward = False
            log.warning("a resumed run may differ in the last bits on this device: %s", str(e).split(". ")[0])

    def backward(self, loss: Tensor) -> None:
        """The backward pass of a loss, with the same bits every time where that is possible (see `check_backward`)."""
        with deterministic_or_error() if self._exact_backward else nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def check_head(self, windows: Windows) -> None:
        """Compare logits from hidden states with the model's own on a few tokens, and take its own way where they differ.

        Raises:
            InputError: its own way from hidden states does not give its logits either.
        """
        tokens = self.tokens(np.ascontiguousarray(windows[:1, :_FEW_TOKENS]))
        own = torch.log_softmax(self.model(tokens, use_cache=False).logits[0].float(), dim=-1)
        hidden = self.compute_hidden(tokens, differentiable=False)[0]
        for head in (self._head, ModelHead(self._compute_own_logits)):
            self._head = head
            difference = (head.log_probabilities(hidden, differentiable=False)[0] - own).abs().max()
            if not bool(difference > _SAME_LOGITS * (own - own.mean(-1, keepdim=True)).abs().max()):
                return  # where they are not finite, too: the loss says so
        raise InputError(
            f"{type(self.model).__name__} cannot be learned on: its logits do not follow from its last hidden states alone."
        )

    def first_bad_module(self, windows: Windows) -> str | None:
        """Name of the first module in a forward pass whose output is not finite; None if all are."""
        bad: list[str] = []

        def look(name: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                first = output[0] if isinstance(output, tuple) else output
                if not bad and isinstance(first, Tensor) and first.is_floating_point() and not torch.isfinite(first).all():
                    bad.append(name)

            return hook

        handles = (m.register_forward_hook(look(n)) for n, m in self.model.named_modules() if not list(m.children()))
        with keep_hooks(handles), torch.no_grad():
            self.compute_hidden(self.tokens(windows), differentiable=False)
        return bad[0] if bad else None

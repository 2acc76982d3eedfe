"""What layers see: statistics of their inputs on calibration text, block by block in bounded memory.

A `BlockStream` holds the hidden states of the calibration windows and moves them through the model one transformer block at a
time. While they pass a block, the Gram matrices of its layers are formed; they are gone before the next block begins. So the
peak is one block's Gram matrices and the hidden states, whatever the number of blocks. Layers that read the same tensor (query,
key and value; gate and up) share one matrix.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size, `C` inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.model.model import LearningModel, keep_hooks


@dataclass(slots=True)
class Gram:
    """Gram matrix of a layer's inputs."""

    matrix: Tensor  # Σ x xᵀ over all tokens seen (C, C) float32
    tokens: int = 0  # how many were seen

    def add(self, x: Tensor) -> None:
        """Take more inputs.  # (..., C)"""
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        self.matrix.addmm_(rows.t(), rows)
        self.tokens += len(rows)

    @property
    def norms(self) -> Tensor:
        """‖x_j‖₂ of every input.  # (C,)"""
        return self.matrix.diagonal().clamp_min(0).sqrt()


class GramHooks:
    """Hooks that form the Gram matrices of layers, by name, while their model runs (see `keep_hooks`)."""

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        self._leader: dict[str, str] = {}  # layer -> the layer whose matrix it shares
        self._grams: dict[str, Gram] = {}
        self._inputs: dict[int, tuple[Tensor, str]] = {}  # id of a tensor -> itself (so that the id stays its own), first reader
        self._layers = layers
        self.handles = [layer.register_forward_pre_hook(self._hook(name)) for name, layer in layers.items()]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            _, first = self._inputs.setdefault(id(x), (x, name))
            leader = self._leader.setdefault(name, first)
            if leader == name:
                gram = self._grams.get(name)
                if gram is None:
                    gram = self._grams[name] = Gram(torch.zeros(x.shape[-1], x.shape[-1], device=x.device))
                gram.add(x)

        return note

    def forget_inputs(self) -> None:
        """One forward pass is over: its tensors may go."""
        self._inputs.clear()

    def grams(self) -> dict[str, Gram]:
        """Layer name -> matrix; a layer that never ran (an expert that no token chose) has one of zero tokens."""
        grams = {}
        for name, layer in self._layers.items():
            gram = self._grams.get(self._leader.get(name, name))
            if gram is None:
                gram = Gram(torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device))
            grams[name] = gram
        return grams


# ‖x_j‖₂ of the inputs of layers on batches of tokens (B, T), by weight name
InputNorms = Callable[[LearningModel, Mapping[str, nn.Linear], Sequence[Tensor]], dict[str, Tensor]]


def whole_model_grams(model: LearningModel, layers: Mapping[str, nn.Linear], batches: Sequence[Tensor]) -> dict[str, Gram]:
    """Gram matrices of a few layers on the model as it is, by whole forward passes."""
    hooks = GramHooks(layers)
    with keep_hooks(hooks.handles), torch.no_grad():
        for tokens in batches:
            model.compute_hidden(tokens, differentiable=False)
            hooks.forget_inputs()
    return hooks.grams()


def whole_model_norms(model: LearningModel, layers: Mapping[str, nn.Linear], batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """‖x_j‖₂ of every layer's inputs over all tokens, by whole forward passes of the model as it is.  # (C,) float32 each"""
    squares = {name: torch.zeros(layer.in_features, device=layer.weight.device) for name, layer in layers.items()}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            squares[name] += args[0].flatten(0, -2).float().square().sum(0)

        return add

    with keep_hooks(layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()), torch.inference_mode():
        for tokens in batches:
            model.compute_hidden(tokens, differentiable=False)
    return {name: total.sqrt() for name, total in squares.items()}


L = TypeVar("L", bound=nn.Module)
_Call = tuple[tuple[Any, ...], Mapping[str, Any]]  # what a block was called with, besides the hidden states


class _Reached(Exception):
    """A module was reached: the rest of the forward pass is not needed."""


class BlockStream:
    """The hidden states of batches of tokens (B, T), all of one length, while they go through the model block by block.

    Raises:
        InputError: the model is not built of one list of blocks that take hidden states first.
    """

    def __init__(self, model: LearningModel, batches: Sequence[Tensor]) -> None:
        self.model = model
        self.blocks = decoder_blocks(model.model)  # in order, by module name
        self._calls: dict[int, list[_Call]] = {}  # batch size -> one call a block
        with torch.no_grad():
            self.states = [self.embed(tokens) for tokens in batches]  # what goes into the next block (B, T, D)

    def _record(self, tokens: Tensor) -> list[_Call]:
        """How the model calls each of its blocks: masks, positions and the like have to depend on the shape of a batch alone."""
        calls, others = self._note_calls(tokens), self._note_calls(tokens.flip(-1))
        kind = type(self.model.model).__name__
        if len(calls) != len(self.blocks):
            reason = f"it calls its {len(self.blocks)} blocks {len(calls)} times"
        elif any(not _agree(call, other) for call, other in zip(calls, others, strict=True)):
            reason = "its blocks take more than hidden states from the tokens"
        else:
            return calls
        raise InputError(
            f"{kind} does not run block by block: {reason}.\n"
            f"Use what sees the whole model: --prior wanda or magnitude with --prior-inputs dense, without --refine and "
            f"--objective block; --method full to recover."
        )

    def _note_calls(self, tokens: Tensor) -> list[_Call]:
        calls: list[_Call] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"}))

        with keep_hooks(block.register_forward_pre_hook(note, with_kwargs=True) for block in self.blocks.values()):
            self.model.compute_hidden(tokens, differentiable=False)
        return calls

    def embed(self, tokens: Tensor) -> Tensor:
        """What goes into the first block.  # (B, T) -> (B, T, D)"""
        if len(tokens) not in self._calls:
            self._calls[len(tokens)] = self._record(tokens)
        first = next(iter(self.blocks.values()))
        return _stop_at(first, lambda: self.model.compute_hidden(tokens, differentiable=False))

    def run(self, name: str, state: Tensor) -> Tensor:
        """Run one block.  # (B, T, D) -> (B, T, D)"""
        args, kwargs = self._calls[len(state)][list(self.blocks).index(name)]
        out = self.blocks[name](state, *args, **kwargs)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    @torch.no_grad()
    def reach(self, name: str, layer: nn.Module, state: Tensor) -> Tensor:
        """Run a block until a layer of it is reached: what goes into it.  # (B, T, D) -> (..., C)"""
        return _stop_at(layer, lambda: self.run(name, state))

    @torch.no_grad()
    def inputs_of(self, name: str, layers: Sequence[L], state: Tensor) -> dict[L, Tensor]:
        """Run a block: what goes into its layers, in the order in which they run.  # (B, T, D) -> (..., C) each"""
        inputs: dict[L, Tensor] = {}

        def hook(layer: L) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda module, args: (inputs.setdefault(layer, args[0]), None)[1]

        with keep_hooks(layer.register_forward_pre_hook(hook(layer)) for layer in layers):
            self.run(name, state)
        return inputs

    def move_on(self, name: str) -> None:
        """Let all states pass a block."""
        with torch.no_grad():
            self.states = [self.run(name, state) for state in self.states]

    def grams(self, name: str, layers: Mapping[str, nn.Linear]) -> tuple[dict[str, Gram], list[Tensor]]:
        """Run a block on all states: the Gram matrices of its layers, and its outputs."""
        hooks, outputs = GramHooks(layers), []
        with keep_hooks(hooks.handles), torch.no_grad():
            for state in self.states:
                outputs.append(self.run(name, state))
                hooks.forget_inputs()
        return hooks.grams(), outputs


def _stop_at(module: nn.Module, forward: Callable[[], object]) -> Tensor:
    """Run a forward pass until a module is reached: the hidden states that go into it."""
    reached: list[Tensor] = []

    def take(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reached.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    with keep_hooks([module.register_forward_pre_hook(take, with_kwargs=True)]), suppress(_Reached):
        forward()
    return reached[0]


def _agree(one: Any, other: Any) -> bool:
    """Whether all tensors in two nests of tuples and dicts are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Mapping):
        return all(_agree(value, other[key]) for key, value in one.items())
    return not isinstance(one, tuple) or all(map(_agree, one, other))


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The transformer blocks: the outermost list of modules that holds the most linear layers."""
    best: dict[str, nn.Module] = {}
    most = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            weights = (getattr(m, "weight", None) for m in module.modules())
            count = sum(isinstance(w, Tensor) and w.dim() == 2 for w in weights)
            if count > most:
                most, best = count, {f"{name}.{i}": child for i, child in enumerate(module)}
    if not best:
        raise InputError(f"{type(model).__name__} has no list of transformer blocks: it does not run block by block.")
    return best

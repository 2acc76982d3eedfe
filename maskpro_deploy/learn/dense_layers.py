"""Layers that stay dense within a budget: those whose mask costs most for the multiply-adds that it saves.

A unit is what is masked or left dense as one: a linear layer, or a block's experts of one kind. For every unit the model runs
with this unit's one-shot mask alone, and is compared with the dense model: KL(dense ‖ masked), nats a token. Units are taken by
that divergence for each multiply-add, the largest first, as long as they fit into the share that may stay dense. Divergences of
single units do not add up to that of all masks together, so the choice is measured as a whole, too, at several shares.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size, `O` outputs and `C` inputs of a layer.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.dense_passes import DensePasses
from maskpro_deploy.learn.model.model import LearningModel, keep_hooks, prunable_layers
from maskpro_deploy.system.progress import SILENT, Progress

TOKENS = 2048  # that a unit is measured on, at most
_SHARES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # of the share that is asked for: where the choice is measured as a whole
_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is masked or left dense as one."""

    layers: tuple[str, ...]  # by weight name
    divergence: float  # KL(dense ‖ the model with this unit alone masked), nats a token
    work: float  # its multiply-adds, as a share of those of all units

    @property
    def worth(self) -> float:
        """How much of the divergence a multiply-add buys."""
        return self.divergence / self.work if self.work else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseChoice:
    """Which units stay dense, and what that was chosen by."""

    share: float  # of the multiply-adds that may stay dense
    units: tuple[Unit, ...]  # all of them, the worthiest first
    tokens: int  # that each was measured on
    curve: tuple[tuple[float, float], ...] = ()  # shares that stay dense, with the divergence of all other units masked

    @property
    def dense(self) -> tuple[Unit, ...]:
        """The units that stay dense."""
        return choose(self.units, self.share)

    @property
    def taken(self) -> float:
        """The share of the multiply-adds that they have."""
        return sum(unit.work for unit in self.dense)

    def reasons(self) -> dict[str, str]:
        """Why each of their layers stays dense, by weight name."""
        return {
            name: f"--dense-share {self.share:.4g}: its mask alone costs {unit.divergence:.2g} nats a token "
            f"for {100 * unit.work:.2g} % of the multiply-adds"
            for unit in self.dense
            for name in unit.layers
        }

    def rename(self, names: Mapping[str, str]) -> Self:
        """The same under other names of weights."""
        units = tuple(dataclasses.replace(u, layers=tuple(names[name] for name in u.layers)) for u in self.units)
        return dataclasses.replace(self, units=units)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "taken": self.taken, "dense": [name for u in self.dense for name in u.layers]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """What `to_json` gave."""
        units = tuple(Unit(layers=tuple(u["layers"]), divergence=u["divergence"], work=u["work"]) for u in value["units"])
        curve = tuple((float(share), float(divergence)) for share, divergence in value["curve"])
        return cls(share=value["share"], units=units, tokens=value["tokens"], curve=curve)


def split_layers(
    model: Any, config: LearnConfig, tensors: Container[str] | None = None
) -> tuple[dict[str, nn.Linear], dict[str, str]]:
    """The layers that get a mask, and those that `--dense-layers REGEX` leaves dense, with the reason; by weight name.

    See `prunable_layers` for `tensors` and what it raises.

    Raises:
        ConfigError: the expression names no layer that could get a mask, or all.
    """
    regex = config.dense_regex
    layers = prunable_layers(model, config.patterns, config.include, config.exclude, tensors, transposable=config.transposable)
    if regex is None:
        return layers, {}
    named = [name for name in layers if re.search(regex, name.removesuffix(".weight"))]
    if not named or len(named) == len(layers):
        raise ConfigError(f"--dense-layers {regex} matches {'every' if named else 'no'} layer that could get a mask.")
    masked = {name: layer for name, layer in layers.items() if name not in named}
    return masked, dict.fromkeys(named, f"--dense-layers {regex}")


def choose(units: Sequence[Unit], share: float) -> tuple[Unit, ...]:
    """The units that stay dense: in their order, each that still fits into the share."""
    left, chosen = share * (1 + 1e-9), []
    for unit in units:
        if unit.work <= left and unit.divergence > 0:
            chosen.append(unit)
            left -= unit.work
    return tuple(chosen)


def choose_dense(
    model: LearningModel, layers: Mapping[str, nn.Linear], masks: Mapping[str, Callable[[], Tensor]], batches: Sequence[Tensor],
    share: float, *, progress: Progress = SILENT, allowed_s: float | None = None,
) -> DenseChoice:  # fmt: skip
    """Measure every unit and choose what stays dense.

    Args:
        model: the dense model; its layers are the same afterwards.
        layers: those that may get a mask, by weight name.
        masks: what gives the one-shot mask of each (O, C) boolean.
        batches: calibration tokens (B, T) each, of which the first `TOKENS` are used.
        share: of the multiply-adds, above 0 and below 1.
        progress: updated after every unit.
        allowed_s: seconds that it may take; with little of them fewer batches are used, but at least one.

    Raises:
        ConfigError: no unit is as small as the share.
    """
    groups, count = list_units(layers), max(1, TOKENS // batches[0].numel())
    batches = batches[:count]
    work = _count_work(model, layers, batches)
    total = sum(work.values())
    if share * total < (least := min(sum(work[name] for name in group) for group in groups)):
        raise ConfigError(f"--dense-share {share:.4g} is less than the smallest layer, {least / total:.2g} of the multiply-adds.")
    passes, units = DensePasses(model, batches), []
    for done, group in enumerate(groups, start=1):
        started = time.monotonic()
        with _masked(layers, masks, group):
            divergence = passes.measure_divergence(group)
        units.append(Unit(layers=group, divergence=divergence, work=sum(work[name] for name in group) / total))
        progress.update(done, len(groups))
        if done == 1 and allowed_s is not None and len(batches) > 1:
            passes.keep(max(1, int(len(batches) * allowed_s / max(1e-9, (time.monotonic() - started) * len(groups)))))
            batches = batches[: passes.count]
    units.sort(key=lambda unit: -unit.worth)
    curve = []
    for part in sorted({min(0.999, share * factor) for factor in _SHARES}):
        dense = {name for unit in choose(units, part) for name in unit.layers}
        with _masked(layers, masks, [name for name in layers if name not in dense]):
            curve.append((sum(work[name] for name in dense) / total, passes.measure_divergence(tuple(layers))))
    tokens = sum(tokens.numel() for tokens in batches)
    return DenseChoice(share=share, units=tuple(units), tokens=tokens, curve=tuple(curve))


def list_units(layers: Collection[str]) -> list[tuple[str, ...]]:
    """Layers by unit, in their order: each for itself, but a block's experts of one kind together."""
    units: dict[str, list[str]] = {}
    for name in layers:
        units.setdefault(_EXPERT.sub(".experts.*.", name), []).append(name)
    return [tuple(names) for names in units.values()]


@torch.inference_mode()
def _count_work(model: LearningModel, layers: Mapping[str, nn.Linear], batches: Sequence[Tensor]) -> dict[str, int]:
    """Multiply-adds of every layer on these tokens: an expert that few tokens choose does little."""
    rows = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows[name] += args[0].numel() // args[0].shape[-1]

        return add

    with keep_hooks(layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()):
        for tokens in batches:
            model.compute_hidden(tokens, differentiable=False)
    return {name: rows[name] * layer.weight.numel() for name, layer in layers.items()}


@contextmanager
def _masked(layers: Mapping[str, nn.Linear], masks: Mapping[str, Callable[[], Tensor]], names: Collection[str]) -> Iterator[None]:
    """Let some layers have their masked weight for the `with` block."""
    with ExitStack() as stack:
        for name in names:
            layer = layers[name]
            stack.callback(setattr, layer.weight, "data", layer.weight.data)
            layer.weight.data = layer.weight.data * masks[name]().to(layer.weight.dtype)
        yield

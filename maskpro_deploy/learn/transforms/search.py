"""The change of basis of a model under which one-shot masks keep most, and the proof that the model computes the same.

What counts is Wanda's score, |W| times the norm of its input, of the layers that get a mask; layers that read the same channels
count in proportion to what their own scores add up to.

Shapes: `O` outputs, `C` inputs of a layer; `K` parts of `D` channels; `R` rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.choices import TRANSFORMS, find
from maskpro_deploy.learn.model.basis import apply
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.transforms.axes import Axis
from maskpro_deploy.learn.transforms.exchange import order_channels
from maskpro_deploy.pattern import LayerPatterns, NMPattern
from maskpro_deploy.system.progress import SILENT, Progress
from maskpro_deploy.transform import Place, Transform, combine

log = logging.getLogger(__name__)

_ROWS = 768  # of all layers that read the same channels of one part, at most
_LEAST_ROWS = 32  # of each of them
_FEW_TOKENS = 64
_SAME = 1e-4  # of the largest logit, computed in float32: sums have other orders


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found for a model, which has it already."""

    transform: Transform
    gains: dict[str, float]  # by kind: how much more of the scores masks keep, as a share
    difference: float  # largest one of the logits before and after, relative to the largest logit
    refused: dict[str, str]  # kinds that the model does not allow, with the reason

    def to_json(self) -> dict[str, Any]:
        kinds = self.transform.kinds()
        reordered = {kind: {"axes": kinds[kind], "gain": gain} for kind, gain in self.gains.items()}
        return {"reordered": reordered, "logit_difference": self.difference, "refused": dict(self.refused)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], transform: Transform) -> Self:
        """What `to_json` gave."""
        gains = {str(kind): float(facts["gain"]) for kind, facts in value["reordered"].items()}
        return cls(transform=transform, gains=gains, difference=value["logit_difference"], refused=dict(value["refused"]))

    def describe(self) -> str:
        """What changed places, in a line."""
        if not self.gains:
            return "nothing"
        kinds = self.transform.kinds()
        parts = [f"{kind} ({kinds[kind]} axes, {100 * gain:.1f} % more kept)" for kind, gain in self.gains.items()]
        return f"{', '.join(parts)}; dense logits differ by {self.difference:.1e}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search needs.

    Attributes:
        model: the dense model.
        layers: those that get a mask, by weight name.
        names: of parameters in the checkpoint.
        patterns: of the layers.
        norms: ‖x_j‖₂ of every layer's inputs (C,), in the bases of now; None scores |W| alone.
        seed: of pairs and rows.
        progress: receives axes.
        until: when to stop, in `time.monotonic` seconds.
    """

    model: LearningModel
    layers: Mapping[str, nn.Linear]
    names: Mapping[str, str]
    patterns: LayerPatterns
    norms: dict[str, Tensor] | None
    seed: int = 0
    progress: Progress = SILENT
    until: float | None = None

    def run(self, kinds: Sequence[str], tokens: Tensor, *, required: bool) -> Found:
        """Find and make one change after another; what leaves other logits on these tokens (B, T) is undone.

        `norms` follow the channels.

        Raises:
            ConfigError: a kind is `required` and the model does not allow it.
        """
        tokens = tokens[:1, :_FEW_TOKENS]
        before, difference = self._logits(tokens), 0.0
        axes: dict[str, list[Axis]] = {kind: find(TRANSFORMS, kind).load()(self.model) for kind in kinds}
        parts: list[Transform] = []
        gains: dict[str, float] = {}
        refused: dict[str, str] = {}
        total, done = sum(map(len, axes.values())), 0
        for kind, found in axes.items():
            transform, gain, done = self._order(found, done, total)
            reason = "no layers are known that share such channels" if not transform else ""
            if transform:
                apply(self.model, transform, self.names)
                seen = self._differ(before, self._logits(tokens))
                if not seen <= _SAME:  # NaN, too
                    apply(self.model, _invert(transform), self.names)
                    reason = f"its logits change by {seen:.1e} of the largest one"
                else:
                    difference = max(difference, seen)
                    parts.append(transform)
                    gains[kind] = gain
                    self._move_norms(found, transform)
            if reason:
                refused[kind] = reason
        self.progress.close()
        if refused:
            self._report(refused, required=required)
        return Found(transform=combine(parts), gains=gains, difference=difference, refused=refused)

    def adopt(self, kinds: Sequence[str], transform: Transform) -> None:
        """Make a change that was found elsewhere, by the same search on the same model."""
        apply(self.model, transform, self.names)
        for kind in kinds:
            self._move_norms(find(TRANSFORMS, kind).load()(self.model), transform)

    def _report(self, refused: Mapping[str, str], *, required: bool) -> None:
        kind, reason = next(iter(refused.items()))
        name = type(self.model.model).__name__
        if required:
            raise ConfigError(f"--transform {kind} does not work for {name}: {reason}.\nOmit it, or use --transform auto.")
        for kind, reason in refused.items():
            log.info("%s keeps its %s: %s", name, kind, reason)

    def _order(self, axes: Sequence[Axis], done: int, total: int) -> tuple[Transform, float, int]:
        """Orders of the channels of some axes, how much more is kept, and how many axes are done."""
        bases: dict[str, Any] = {}
        places: dict[str, tuple[Place, ...]] = {}
        before = after = 0.0
        generator = torch.Generator().manual_seed(self.seed)
        for axis in axes:
            stored = self._find_tensors(axis)
            scores = self._score(axis, generator)
            if stored and scores is not None:
                pattern, parts = scores
                ordered = [order_channels(part, pattern, generator, until=self.until) for part in parts]
                bases[axis.name] = torch.stack([o.order for o in ordered]).cpu().numpy().astype(np.int32)
                before, after = before + sum(o.before for o in ordered), after + sum(o.after for o in ordered)
                for tensor, where in stored:
                    places[tensor] = (*places.get(tensor, ()), Place(where, axis.name))
            done += 1
            self.progress.update(done, total)
        return Transform(bases=bases, places=places), after / before - 1 if before else 0.0, done

    def _find_tensors(self, axis: Axis) -> list[tuple[str, int]]:
        """Where the channels are in the checkpoint; nothing if one of their tensors is not there."""
        parameters = dict(self.model.model.named_parameters(remove_duplicate=False))
        aliases: dict[int, list[str]] = {}
        for own, parameter in parameters.items():
            if own in self.names:
                aliases.setdefault(id(parameter), []).append(own)
        stored: dict[str, int] = {}
        for own, where in axis.places:
            same = aliases.get(id(parameters[own]), [])
            if not same:
                return []
            for other in same:
                turned = other in self.model.transposed and parameters[own].dim() == 2
                stored[self.names[other]] = 1 - where if turned else where
        return list(stored.items())

    def _score(self, axis: Axis, generator: torch.Generator) -> tuple[NMPattern, list[Tensor]] | None:
        """The scores of an axis' channels, part by part (D, R) float32, and the pattern of the layers that count."""
        readers = [name for name in axis.readers if name in self.layers]
        if not readers:
            return None
        pattern = self.patterns.of(readers[0])
        readers = [name for name in readers if self.patterns.of(name) == pattern]
        if axis.size % pattern.m:
            return None
        rows = max(_LEAST_ROWS, _ROWS // len(readers))
        columns: list[list[Tensor]] = [[] for _ in range(axis.parts)]
        for name in readers:
            weight = self.layers[name].weight.detach()
            chosen = torch.randperm(len(weight), generator=generator)[:rows].to(weight.device)
            scores = weight[chosen].float().abs()
            if self.norms is not None:
                scores *= self.norms[name]
            scores /= scores.mean().clamp_min(1e-30) * len(chosen) / len(weight)
            by_part = scores.view(len(chosen), axis.parts, -1, axis.size)  # (R, K, heads, D)
            for part, column in enumerate(columns):
                column.append(by_part[:, part].permute(2, 0, 1).reshape(axis.size, -1))
        return pattern, [torch.cat(column, dim=1).contiguous() for column in columns]

    def _move_norms(self, axes: Sequence[Axis], transform: Transform) -> None:
        """Let the norms of inputs follow their channels."""
        for axis in axes:
            if self.norms is None or axis.name not in transform.bases:
                continue
            order = torch.from_numpy(transform.bases[axis.name]).long()  # (K, D)
            for name in axis.readers:
                if (norms := self.norms.get(name)) is not None:
                    by_part = norms.view(axis.parts, -1, axis.size)  # (K, heads, D)
                    moved = torch.take_along_dim(by_part, order[:, None].to(norms.device), dim=2)
                    self.norms[name] = moved.reshape(-1)

    def _logits(self, tokens: Tensor) -> Tensor:
        with torch.no_grad(), _in_float32(self.model.model):
            logits: Tensor = self.model.model(tokens, use_cache=False).logits
        return logits.float()

    def _differ(self, before: Tensor, after: Tensor) -> float:
        return float((before - after).abs().max() / before.abs().max().clamp_min(1e-30))


@contextmanager
def _in_float32(model: nn.Module) -> Iterator[None]:
    """Let a model compute in float32 for the `with` block: in fewer digits a small mistake looks like rounding."""
    narrow = {t: t.dtype for t in (*model.parameters(), *model.buffers()) if t.dtype in (torch.bfloat16, torch.float16)}
    for tensor in narrow:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in narrow.items():
            tensor.data = tensor.data.to(dtype)


def _invert(transform: Transform) -> Transform:
    """What undoes a change of basis."""
    bases = {name: np.argsort(basis, axis=1).astype(np.int32) for name, basis in transform.bases.items()}
    return Transform(bases=bases, places=transform.places)


def deadline(allowed_s: float | None) -> float | None:
    """When a search that may take some seconds has to stop."""
    return None if allowed_s is None else time.monotonic() + allowed_s

"""One-shot masks that learning starts from, layer by layer and, where that is needed, block by block.

A prior looks at a layer and its inputs and says how important each weight is (`base`); its mask can be refined by swaps on the
Gram matrix (`refine`), and becomes logits. What a layer's inputs are is a choice: those of the dense model, or those
behind the pruned blocks before it, inside a block those of the block while it is dense (as SparseGPT does it).

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.calibration import BlockStream, Gram, InputNorms, whole_model_grams, whole_model_norms
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.priors.base import MARGIN, LayerView, Prior, logits_of_mask, top_mask
from maskpro_deploy.learn.priors.refine import refine
from maskpro_deploy.learn.priors.transposable import top_transposable_mask, transposable_logits
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.system.progress import SILENT, Progress


def compute_prior(
    model: LearningModel, layers: Mapping[str, nn.Linear], config: LearnConfig, batches: Sequence[Tensor],
    given: MaskSet | None = None, progress: Progress = SILENT, input_norms: InputNorms = whole_model_norms,
) -> dict[str, Tensor]:  # fmt: skip
    """The logits of every layer whose argmax is the prior's mask.

    With `config.prior_update` the layers' weights are replaced by SparseGPT's, in place. Batches hold calibration tokens of one
    length (B, T), `given` the masks of `file:PATH`; `input_norms` is asked where norms are all that is needed.
    # by weight name: (M, G) float32, or (M * M, B) of blocks
    """
    one_layer = _OneLayer(config, config.prior_choice.load(), given)
    if config.needs_grams:
        return _compute_by_blocks(model, layers, one_layer, batches, progress)
    norms = input_norms(model, layers, batches) if config.prior_choice.inputs else {}
    return {name: one_layer.start(name, layer, norms.get(name), None)[0] for name, layer in layers.items()}


@dataclass(frozen=True, slots=True)
class _OneLayer:
    """How a layer starts: the prior, and what goes for all layers."""

    config: LearnConfig
    prior: Prior
    given: MaskSet | None

    def start(self, name: str, layer: nn.Linear, norms: Tensor | None, gram: Gram | None) -> tuple[Tensor, Tensor]:
        """Its logits, and the mask that is their argmax.  # (M, G) or (M * M, B), (O, C)"""
        config, pattern, dense = self.config, self.config.patterns.of(name), layer.weight.detach().float()
        if gram is not None and gram.tokens:
            norms = gram.norms if config.prior_choice.inputs else None
        given = None if self.given is None else torch.from_numpy(self.given.mask(name)).to(dense.device)
        verdict = self.prior(LayerView(name=name, weight=dense, norms=norms, gram=gram, config=config, given=given))
        best = top_transposable_mask if config.transposable else top_mask
        mask = best(verdict.importance, pattern) if verdict.mask is None else verdict.mask
        strength = config.prior_strength
        if verdict.logits is not None:
            if not config.transposable:
                return verdict.logits, mask
            strength *= MARGIN  # all but equal, as these are
        weight = dense
        if config.prior_update and verdict.weight is not None:
            weight = verdict.weight
            layer.weight.data = weight.to(layer.weight.dtype)
        if config.refine and gram is not None and gram.tokens:
            mask = refine(weight, mask, gram.matrix, pattern, dense)
        to_logits = transposable_logits if config.transposable else logits_of_mask
        return to_logits(verdict.importance, mask, pattern, strength), mask


def _compute_by_blocks(
    model: LearningModel, layers: Mapping[str, nn.Linear], one_layer: _OneLayer, batches: Sequence[Tensor], progress: Progress
) -> dict[str, Tensor]:
    """Block by block, with one block's Gram matrices in memory."""
    stream = BlockStream(model, batches)
    inside = {block: {n: y for n, y in layers.items() if n.startswith(f"{block}.")} for block in stream.blocks}
    outside = {n: y for n, y in layers.items() if not any(n in members for members in inside.values())}
    logits: dict[str, Tensor] = {}
    if outside:
        grams = whole_model_grams(model, outside, batches)
        for name, layer in outside.items():
            logits[name], _ = one_layer.start(name, layer, None, grams[name])
    for done, (block, members) in enumerate(inside.items(), start=1):
        grams, outputs = stream.grams(block, members)
        masks: dict[str, Tensor] = {}
        for name, layer in members.items():
            logits[name], masks[name] = one_layer.start(name, layer, None, grams[name])
        if one_layer.config.pruned_inputs:
            _advance_pruned(stream, block, members, masks)
        else:
            stream.states = outputs
        progress.update(done, len(inside))
    return logits


def _advance_pruned(stream: BlockStream, block: str, members: Mapping[str, nn.Linear], masks: Mapping[str, Tensor]) -> None:
    """Move the stream past a block whose layers are masked for as long as that takes."""
    dense = {name: layer.weight.detach() for name, layer in members.items()}
    for name, layer in members.items():
        layer.weight.data = layer.weight * masks[name].to(layer.weight.dtype)
    with torch.no_grad():
        for i, state in enumerate(stream.states):  # one by one: old and new states never stand next to each other
            stream.states[i] = stream.run(block, state)
    for name, weight in dense.items():
        members[name].weight.data = weight

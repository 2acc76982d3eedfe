"""One-shot masks that learning starts from, and the logits they become.

    magnitude   |W|
    wanda       |W_ij| · ‖x_j‖₂ with x_j the layer's inputs on calibration text (Sun et al., arXiv 2306.11695, eq. 1)
    ria         (|W_ij| / Σ_k |W_kj| + |W_ij| / Σ_k |W_ik|) · ‖x_j‖₂^½ (Zhang et al., ICLR 2024)
    sparsegpt   |w_ij| / U_jj when its column's turn comes, see `sparsegpt`
    file:PATH   a mask file or sparse checkpoint of the same dense weights; inside its choice, Wanda's order
    none        a random mask: logits that are all but equal

Any of them can be refined by swaps on the Gram matrix (`refine`). What a layer's inputs are is a choice: those of the dense
model, or those behind the pruned blocks before it, inside a block those of the block while it is dense (as SparseGPT does it).

Shapes: `O` outputs, `C` inputs, `M` weights in a group, `G` groups.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.model.calibration import BlockStream, Gram, whole_model_grams
from maskpro_deploy.learn.model.model import LearningModel
from maskpro_deploy.learn.model.sites import to_planes
from maskpro_deploy.learn.priors.refine import refine
from maskpro_deploy.learn.priors.sparsegpt import operate
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.system.progress import SILENT, Progress

_CLIP = 6.0  # a score e^6 times its group's mean is as certain as scores get
_TINY = 1e-30  # stands for a score of zero: below every other, and far from the smallest numbers, which are flushed
_TIE_BREAK = 1e-3  # keeps the order of scores beyond the clip
_MARGIN = 1e-2  # by which a chosen mask leads where scores alone would tie
_RIA_POWER = 0.5  # of the input norms, as published


def compute_prior(
    model: LearningModel,
    layers: Mapping[str, nn.Linear],
    config: LearnConfig,
    batches: Sequence[Tensor],
    given: MaskSet | None = None,
    progress: Progress = SILENT,
) -> dict[str, Tensor]:
    """The logits of every layer whose argmax is the prior's mask.

    With `config.prior_update` the layers' weights are replaced by SparseGPT's, in place.

    Args:
        model: the dense model.
        layers: weight name -> layer to prune.
        config: says which prior, and how.
        batches: calibration tokens (B, T), all of one length.
        given: the masks of `file:PATH`.
        progress: told after every block.

    Returns:
        Weight name -> (M, G) float32.

    Raises:
        InputError: the model cannot be run block by block, where that is needed.
    """
    if config.prior == "none":
        return {name: _random_logits(layer.weight, config, name) for name, layer in layers.items()}
    if not config.needs_grams:
        norms = {} if config.prior == "magnitude" else input_norms(layers, lambda: _run(model, batches))
        return {name: _decide(layer, norms.get(name), None, config, name, given)[0] for name, layer in layers.items()}
    return _blockwise(model, layers, config, batches, given, progress)


def _blockwise(
    model: LearningModel,
    layers: Mapping[str, nn.Linear],
    config: LearnConfig,
    batches: Sequence[Tensor],
    given: MaskSet | None,
    progress: Progress,
) -> dict[str, Tensor]:
    """Block by block, with one block's Gram matrices in memory."""
    stream = BlockStream(model, batches)
    inside = {block: {n: y for n, y in layers.items() if n.startswith(f"{block}.")} for block in stream.blocks}
    outside = {n: y for n, y in layers.items() if not any(n in found for found in inside.values())}
    logits: dict[str, Tensor] = {}
    if outside:
        found = whole_model_grams(model, outside, batches)
        for name, layer in outside.items():
            logits[name], _ = _decide(layer, None, found[name], config, name, given)
    for done, (block, members) in enumerate(inside.items(), start=1):
        grams, outputs = stream.grams(block, members)
        dense: dict[str, Tensor] = {}
        for name, layer in members.items():
            logits[name], mask = _decide(layer, None, grams[name], config, name, given)
            if config.pruned_inputs:
                dense[name] = layer.weight.detach()
                layer.weight.data = layer.weight * mask.to(layer.weight.dtype)
        if config.pruned_inputs:
            stream.advance(block)
            for name, weight in dense.items():
                members[name].weight.data = weight
        else:
            stream.states = outputs
        progress.update(done, len(inside))
    return logits


def _decide(
    layer: nn.Linear, norms: Tensor | None, gram: Gram | None, config: LearnConfig, name: str, given: MaskSet | None
) -> tuple[Tensor, Tensor]:
    """One layer's logits, and the mask that is their argmax.  # (M, G), (O, C)"""
    pattern = config.pattern
    target = layer.weight.detach().float()
    weight = target
    if gram is not None and gram.tokens and norms is None:
        norms = gram.norms
    if config.prior == "sparsegpt":
        assert gram is not None
        surgery = operate(target, gram, pattern)
        importance = surgery.importance
        if config.prior_update:
            weight = surgery.weight
            layer.weight.data = weight.to(layer.weight.dtype)
    elif config.prior == "ria":
        importance = relative_importance(weight, norms)
    else:
        importance = scores(weight, None if config.prior == "magnitude" else norms)
    mask = top_mask(importance, pattern)
    if given is not None:
        mask = torch.from_numpy(given.mask(name)).to(weight.device)
    if config.refine and gram is not None and gram.tokens:
        mask = refine(weight, mask, gram.matrix, pattern, target)
    return logits_of_mask(importance, mask, pattern, config.prior_strength), mask


def _run(model: LearningModel, batches: Sequence[Tensor]) -> None:
    for tokens in batches:
        model.hidden(tokens, differentiable=False)


def input_norms(layers: Mapping[str, nn.Linear], run: Callable[[], None]) -> dict[str, Tensor]:
    """‖x_j‖₂ of every layer's inputs over all tokens of the forward passes that `run` makes.

    Returns:
        Layer name -> (C,) float32.
    """
    squares = {name: torch.zeros(layer.in_features, device=layer.weight.device) for name, layer in layers.items()}
    handles = []
    for name, layer in layers.items():

        def add(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            squares[name] += args[0].flatten(0, -2).float().square().sum(0)

        handles.append(layer.register_forward_pre_hook(add))
    try:
        with torch.inference_mode():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in squares.items()}


def scores(weight: Tensor, norms: Tensor | None) -> Tensor:
    """Importance of every weight: magnitude, times the input norms if given.  # (O, C)"""
    importance = weight.float().abs()
    return importance if norms is None else importance * norms


def relative_importance(weight: Tensor, norms: Tensor | None) -> Tensor:
    """RIA: a weight's share of its column plus its share of its row, times the root of the input norms if given.  # (O, C)"""
    size = weight.float().abs()
    share = size / size.sum(0, keepdim=True).clamp_min(_TINY) + size / size.sum(1, keepdim=True).clamp_min(_TINY)
    return share if norms is None else share * norms**_RIA_POWER


def top_mask(importance: Tensor, pattern: NMPattern) -> Tensor:
    """The N highest of every group; ties go to the lower index.  # (O, C) -> (O, C) boolean"""
    grouped = importance.reshape(-1, pattern.m)
    kept = torch.sort(grouped, dim=1, descending=True, stable=True).indices[:, : pattern.n]
    return torch.zeros_like(grouped, dtype=torch.bool).scatter_(1, kept, True).view(importance.shape)


def initial_logits(importance: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is the one-shot mask: strength · log(score / mean score of the group), clipped.

    A weight that is exactly zero gets the lowest logit there is, so it is kept only where a group has nothing better.

    Args:
        importance: (O, C), not negative.
        pattern: the N:M pattern.
        strength: inverse temperature of the first samples.

    Returns:
        (M, G) float32.
    """
    planes = to_planes(importance, pattern.m)
    relative = (planes.clamp_min(_TINY) / planes.mean(0).clamp_min(_TINY)).log_()
    return relative.clamp(-_CLIP, _CLIP).add_(relative, alpha=_TIE_BREAK).mul_(strength)


def logits_of_mask(importance: Tensor, mask: Tensor, pattern: NMPattern, strength: float) -> Tensor:
    """Logits whose argmax is `mask`, as certain as the scores make it.

    In each group the N highest scores go to the kept weights and the others to the dropped ones, each in their own order; where
    the scores agree with the mask, they stay as they are.

    Args:
        importance: (O, C), not negative.
        mask: boolean, N of every M (O, C).
        pattern: the N:M pattern.
        strength: inverse temperature of the first samples.

    Returns:
        (M, G) float32.
    """
    grouped, kept = importance.reshape(-1, pattern.m), mask.reshape(-1, pattern.m)
    by_score = torch.sort(grouped, dim=1, descending=True, stable=True)
    # positions in the order: kept ones first, each part by its scores (stable sorts, the minor key first)
    kept_first = torch.sort(kept.gather(1, by_score.indices).byte(), dim=1, descending=True, stable=True).indices
    order = by_score.indices.gather(1, kept_first)
    conformed = torch.empty_like(grouped).scatter_(1, order, by_score.values)
    logits = initial_logits(conformed.view(importance.shape), pattern, strength)
    chosen = to_planes(mask, pattern.m) > 0  # (M, G)
    floor = logits.masked_fill(chosen, -torch.inf).amax(0) + _MARGIN * strength  # (G,)
    tied = (logits.masked_fill(~chosen, torch.inf).amin(0) <= floor - _MARGIN * strength) & torch.isfinite(floor)
    return torch.where(chosen & tied, torch.maximum(logits, floor), logits)


def _random_logits(weight: Tensor, config: LearnConfig, name: str) -> Tensor:
    """Logits that are all but equal: their argmax is a random mask, the same for the same seed and name.  # (M, G)"""
    digest = hashlib.blake2b(f"{config.seed}:prior:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    m = config.pattern.m
    noise = torch.rand(m, weight.numel() // m, generator=generator)
    return noise.mul_(_MARGIN * config.prior_strength).to(weight.device)

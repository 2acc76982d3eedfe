"""What the weights of a model are called in its checkpoint.

transformers renames tensors and stacks those of experts while it loads a checkpoint, and undoes that when it saves one. Its rules
say which tensor became what: every name of the checkpoint goes through them, and an expert's place in its stack says the rest.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.learn.model.model import LearningModel

_FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}  # a stack of experts -> what its halves are called in `experts`


def find_tensors(model: LearningModel, checkpoint: Checkpoint) -> dict[str, str]:
    """The tensor of every weight of the model that is one; a renamed tensor has to hold the weight, by shape and first row."""
    weights = {
        name: weight.t() if name in model.transposed else weight
        for name, weight in model.model.named_parameters(remove_duplicate=False)
    }
    names = map_names(model.model, model.parameter_names, checkpoint.names)
    return {own: name for own, name in names.items() if own in weights and _holds_weight(checkpoint, name, weights[own], own)}


def map_names(model: Any, parameters: Collection[str], tensors: Collection[str]) -> dict[str, str]:
    """Weights of the model, experts as linear layers, and the tensors they come from; without those that are a part of one.

    `parameters` are the model's own before its experts were taken apart, `tensors` the names in the checkpoint.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    rules = get_model_conversion_mapping(model)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    known = dict.fromkeys(parameters, True)
    names: dict[str, str] = {}
    for tensor in tensors:
        own, pattern = rename_source_key(tensor, renamings, converters, model.base_model_prefix, known)
        if pattern is not None:
            own = _name_expert(own, rename_source_key(tensor, renamings, [])[0], pattern, by_pattern[pattern])
        if own:
            names[own] = tensor
    return names


def _name_expert(stack: str, tensor: str, pattern: str, rule: Any) -> str:
    """What one of the tensors of a stack is called among the linear layers; "" where the rule does more than stack them."""
    module, _, leaf = stack.rpartition(".")
    parts = _FUSED.get(leaf, (leaf,))
    number = re.search(pattern.replace(".*.", r"\.(\d+)\."), tensor)
    stacks = {type(operation).__name__ for operation in rule.operations} <= {"MergeModulelist", "Concatenate"}
    if number is None or not stacks or len(parts) != len(rule.source_patterns):
        return ""
    return f"{module}.{number[1]}.{parts[rule.source_patterns.index(pattern)]}.weight"


def _holds_weight(checkpoint: Checkpoint, tensor: str, weight: Tensor, own: str) -> bool:
    if checkpoint.shapes[tensor] != tuple(weight.shape):
        return False
    if own == tensor or weight.is_meta or not weight.numel():
        return True
    row = torch.from_numpy(checkpoint.slices(tensor)[:1].astype(np.float32))
    return bool((row.to(weight) == weight[:1]).all())

"""Exports of the tiny models by torch's two exporters, with and without a cache of keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from foreign_models import HIDDEN, LAYERS, PLAIN, VOCAB
from torch import nn

_BATCH, _PAST, _NEW = 2, 3, 5
ENCODERS = ("bert", "bert-mlm", "bert-classifier", "roberta", "distilbert")


class WithCache(nn.Module):
    """A decoder that takes and gives keys and values as plain tensors."""

    def __init__(self, model: nn.Module, takes: bool) -> None:
        super().__init__()
        self.model, self.takes = model, takes

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, *past: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits, then keys and values of each layer."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        result = self.model(input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True)
        kept = result.past_key_values
        return result.logits, *(t for layer in kept.layers for t in (layer.keys, layer.values))


class First(nn.Module):
    """A model's first result: logits, or the last hidden state."""

    def __init__(self, model: nn.Module, **fixed: Any) -> None:
        super().__init__()
        self.model, self.fixed = model, fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What the model gives first."""
        names = ("pixel_values",) if inputs[0].ndim == 4 else ("input_ids", "attention_mask")
        result: torch.Tensor = self.model(**dict(zip(names, inputs, strict=True)), **self.fixed)[0]
        return result


def sample(family: str, model: nn.Module, cache: str) -> tuple[nn.Module, tuple[torch.Tensor, ...], list[str], list[str]]:
    """The module to export, its inputs, and the names of inputs and outputs.

    Args:
        family: of the model.
        model: as `build` gives it.
        cache: "none", "gives" (keys and values are outputs) or "takes" (and inputs).
    """
    torch.manual_seed(1)
    if family in PLAIN:
        shape = (_BATCH, _NEW, HIDDEN) if family == "encoder" else (_BATCH, HIDDEN)
        return model, (torch.randn(shape),), ["x"], ["y"]
    if family == "vit":
        return First(model), (torch.randn(_BATCH, 4, 16, 16),), ["pixel_values"], ["last_hidden_state"]
    past = _PAST if cache == "takes" else 0
    tokens = torch.arange(_BATCH * _NEW).reshape(_BATCH, _NEW) % VOCAB
    inputs = [tokens, torch.ones(_BATCH, past + _NEW, dtype=torch.int64)]
    names = ["input_ids", "attention_mask"]
    if family in ENCODERS or cache == "none":
        heads = family not in ENCODERS or family in ("bert-mlm", "bert-classifier")
        fixed = {} if family in ENCODERS else {"use_cache": False}
        return First(model, **fixed), tuple(inputs), names, ["logits" if heads else "last_hidden_state"]
    outputs = ["logits", *(f"present.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value"))]
    if past:
        config: Any = model.config
        key_heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        inputs += [torch.randn(_BATCH, key_heads, past, size) for _ in range(2 * LAYERS)]
        names += [f"past_key_values.{i}.{kind}" for i in range(LAYERS) for kind in ("key", "value")]
    return WithCache(model, bool(past)), tuple(inputs), names, outputs


def export(
    family: str, model: nn.Module, path: Path, *, dynamo: bool, cache: str = "none", dynamic: bool = True, **more: Any
) -> None:
    """Write a model's graph with one of torch's exporters."""
    module, inputs, names, outputs = sample(family, model, cache)
    if dynamo:
        auto = torch.export.Dim.AUTO
        shapes = [{0: auto, (2 if name.startswith("past") else 1): auto} for name in names]
        if family in ("perceptron", "vit"):
            shapes = [{0: auto}]
        wanted = _as_signature(module, shapes) if dynamic else None
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=True,
            external_data=False,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=wanted,
            **more,
        )
        return
    axes = (
        {name: {0: "batch", **({} if family in ("perceptron", "vit") else {1: "length"})} for name in names} if dynamic else None
    )
    if axes:
        axes = {n: {0: "batch", 2: "past"} if n.startswith("past") else a for n, a in axes.items()}
    torch.backends.mha.set_fastpath_enabled(False)  # one operator without an ONNX form
    with torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=False,
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=17,
            **more,
        )
    onnx.checker.check_model(path)


def _as_signature(module: nn.Module, shapes: list[dict[int, Any]]) -> Any:
    if isinstance(module, WithCache):
        return (*shapes[:2], tuple(shapes[2:]))
    if isinstance(module, First):
        return (tuple(shapes),)
    return tuple(shapes)

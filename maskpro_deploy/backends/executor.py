"""The interface of what runs a graph on raw addresses: a graph in onnxruntime, or an engine in TensorRT.

Shapes: `B` rows, `S` new tokens, `P` past tokens, `L` slots of a cache of fixed length, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from maskpro_deploy.backends.profiles import Profile, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or output."""

    dtype: str  # "int32", "int64", "float32", "float16" or "bfloat16"
    shape: Shape  # -1 where it varies
    is_input: bool

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return {"int64": 8, "float16": 2, "bfloat16": 2}.get(self.dtype, 4)


class Executor(Protocol):
    """Runs a graph."""

    providers: Sequence[str]  # what runs it, for messages and reports; the first takes all it can
    tensors: Mapping[str, TensorSpec]  # inputs and outputs by name
    profiles: Sequence[Profile]  # ranges of shapes that it takes; empty if it takes all

    def run(self, profile: int, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> None:
        """Enqueue one call with the shapes and addresses of all inputs and outputs; an input and an output may share an address.

        `profile` is an index into `profiles`; 0 where there are none.
        """


def output_shapes(tensors: Mapping[str, TensorSpec], inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Shapes of the outputs of a bundle's graph (see `manifest`), from those of its inputs."""
    rows, new = inputs["input_ids"]
    grown = 0 if "write_indices" in inputs else new
    shapes: dict[str, Shape] = {}
    for name in (name for name, spec in tensors.items() if not spec.is_input):
        if name == "logits":
            shapes[name] = (rows, new, tensors[name].shape[-1])  # (B, S, V)
        else:
            b, h, past, d = inputs[name.replace("present.", "past_key_values.")]
            shapes[name] = (b, h, past + grown, d)  # (B, H, T or L, D)
    return shapes

"""What a graph's attention mask hides, found by computing it.

Every architecture's mask is replaced by that of the cache form. That is only right if it says what that one says: a token sees
itself and those before it, padding excepted, perhaps within a window. So the nodes that make it are run on small inputs.

Shapes: `B` batch, `S` new tokens, `T` all tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_INPUTS = ("input_ids", "attention_mask", "position_ids")
_NEW, _TOTAL, _PAD = 5, 9, 3
_HIDDEN = -1e4  # what is added to a score that is hidden, at most


def find_ancestors(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that some values are made by, in order."""
    needed, made = set(wanted), []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            made.append(node)
    return made[::-1]


def is_causal(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, npt.NDArray[Any]], mask: str, *, causal: bool, opset: int
) -> bool:
    """Whether a mask hides what comes later, padding, perhaps what lies far back, and nothing else.

    Args:
        nodes: the graph's.
        constants: its constants.
        mask: the value that Attention reads, bool or added to scores; (B, 1, S, T).
        causal: Attention hides what comes later by itself.
        opset: version of the nodes' operators.
    """
    made = find_ancestors(nodes, {mask})
    free = {name for node in made for name in node.input if name} - {o for node in made for o in node.output}
    if not free <= {*_INPUTS, *constants}:
        return False  # it depends on weights or states
    attention = np.ones((2, _TOTAL), np.int64)
    attention[1, :_PAD] = 0
    positions = np.maximum(attention.cumsum(axis=1) - 1, 0)[:, -_NEW:]
    feeds = {"input_ids": np.ones((2, _NEW), np.int64), "attention_mask": attention, "position_ids": positions}
    graph = helper.make_graph(
        made,
        "mask",
        [helper.make_tensor_value_info(name, TensorProto.INT64, [2, None]) for name in _INPUTS],
        [onnx.ValueInfoProto(name=mask)],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in free],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    values = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
    if values.dtype == np.bool_:
        visible = values
    else:
        values = values.astype(np.float32)
        visible = values == 0
        if not (visible | (values <= _HIDDEN)).all():
            return False  # a bias
    slots, rows = np.arange(_TOTAL), np.arange(_TOTAL - _NEW, _TOTAL)[:, None]
    before = slots <= rows  # (S, T)
    seen = np.broadcast_to(visible & before if causal else visible, (2, 1, _NEW, _TOTAL))[:, 0]
    expected = before & (attention[:, None, :] == 1)  # (B, S, T)
    missing = expected & ~seen
    # whatever else it hides must be all that lies further back than some distance
    nearest = (rows - slots)[missing.any(axis=0)].min(initial=_TOTAL)
    return bool(np.array_equal(seen, expected & (rows - slots < nearest)))

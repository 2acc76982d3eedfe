"""What the front ends give: a graph without weights, and where its weights are.

A front end knows architectures that have no template here. Its graph is translated (`translation.py`); its weights stay what the
checkpoint's mapped tensors hold.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import first_line
from maskpro_deploy.exporters.graph.builder import Graph
from maskpro_deploy.exporters.graph.data_file import check_unused
from maskpro_deploy.exporters.graph.decoder_config import DecoderConfig, read_positive
from maskpro_deploy.exporters.graph.layers import Layers
from maskpro_deploy.system.progress import Progress, waiting

# fields of `config.json` that hold the longest sequence
LENGTHS = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx", "context_length",
)  # fmt: skip
# errors that are raised to say something; others, such as an IndexError, are accidents of a foreign builder
_SPOKEN = (ValueError, NotImplementedError, OSError, ImportError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignWeight:
    """One weight of a graph."""

    rows: TorchRows  # its values, read in parts
    sources: tuple[str, ...]  # the checkpoint's tensors it was made from
    same: bool  # it is the one source as it is: not cut, not rearranged
    storage: tuple[object, ...]  # equal for two weights that are one tensor
    parts: tuple[ForeignWeight, ...] = ()  # the weights, a source each, whose rows it holds one below the other

    @classmethod
    def of(cls, tensor: Any, sources: tuple[str, ...], *, same: bool) -> ForeignWeight:
        """What a torch tensor holds."""
        return cls(rows=TorchRows([tensor]), sources=sources, same=same, storage=place_of(tensor))

    def row(self, i: int) -> ForeignWeight:
        """One fixed row of it, such as what an expert has of a parameter for all."""
        return self.of(self.rows.tensors[0][i], self.sources, same=False)

    @classmethod
    def join(cls, tensors: Sequence[Any], sources: tuple[str, ...]) -> ForeignWeight:
        """Tensors one below the other, each as one source has it."""
        parts = tuple(cls.of(tensor, (source,), same=True) for tensor, source in zip(tensors, sources, strict=True))
        storage = tuple(part.storage for part in parts)
        return (
            parts[0]
            if len(parts) == 1
            else cls(rows=TorchRows(tensors), sources=sources, same=False, storage=storage, parts=parts)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignModel:
    """A graph without weights."""

    nodes: tuple[onnx.NodeProto, ...]  # in an order in which they can run
    constants: Mapping[str, npt.NDArray[Any]]  # arrays that the front end computed, by name
    parameters: Mapping[str, tuple[int, ...]]  # name -> shape of each weight
    caches: Mapping[str, tuple[int, int]]  # name -> heads (0: attention nodes say it) and head size of past keys or values
    logits: str  # the value that holds the logits, and their last dimension
    vocab_size: int
    outputs: tuple[str, ...] = ()  # further values that are outputs, by our names
    wide: frozenset[str] = frozenset()  # parameters that are fp32 in a half-precision graph; stored they are not


class ForeignGraph(ABC):
    """A checkpoint's graph through a front end, in the place of a template.

    `tool` has names and versions of the front end, for the manifest; `weights` what the graph's parameters hold; `progress` shows
    how long the front end takes to describe the graph in another float type than fp32. What it does not support is an InputError,
    a checkpoint or config that does not fit is a FormatError.
    """

    weights: Mapping[str, ForeignWeight]

    def __init__(self, checkpoint: Checkpoint, tool: str, progress: Progress) -> None:
        self.tool = tool
        self._checkpoint, self._progress = checkpoint, progress
        self._models: dict[str, ForeignModel] = {}

    @property
    def rearranged(self) -> bool:
        """Whether some weight is not its sources as they are, so that the checkpoint's masks do not fit the graph's weights."""
        return not all(weight.same or weight.parts for weight in self.weights.values())

    def model(self, dtype: str) -> ForeignModel:
        """The front end's graph in a float type, described once."""
        if dtype not in self._models:
            with waiting(self._progress, self.tool):
                self._models[dtype] = self._describe(dtype)
        return self._models[dtype]

    @abstractmethod
    def _describe(self, dtype: str) -> ForeignModel:
        """Let the front end describe the graph in a float type."""

    @abstractmethod
    def read(self, config: Mapping[str, Any]) -> DecoderConfig:
        """The decoder's sizes and kinds, as far as caches and the manifest need them."""

    @abstractmethod
    def build(self, m: Layers) -> Graph:
        """The whole graph; weights are named, not read."""


class TorchRows:
    """Torch tensors, one below the other, to read in parts as numpy arrays; bf16 and others come as fp32."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        self.tensors = tensors
        first, *others = (tuple(int(d) for d in tensor.shape) for tensor in tensors)
        self.shape: tuple[int, ...] = (first[0] + sum(shape[0] for shape in others), *first[1:]) if others else first

    def __getitem__(self, key: Any) -> npt.NDArray[np.float32]:
        rows, *columns = key if isinstance(key, tuple) else (key,)
        start, stop, _ = rows.indices(self.shape[0])
        parts, above = [], 0  # only what is asked for: a large tensor is never whole in memory
        for tensor in self.tensors:
            own = slice(max(0, start - above), max(0, min(stop - above, len(tensor))))
            parts.append(tensor[(own, *columns)].float().numpy())
            above += len(tensor)
        joined: npt.NDArray[np.float32] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return joined


def read_length(config: Mapping[str, Any]) -> int:
    """The longest sequence, in tokens; 0 if the model sets no limit (FormatError: it is not a length)."""
    field = next((field for field in LENGTHS if config.get(field)), "")
    return read_positive(config, field) if field else 0


def describe_sizes(
    config: Mapping[str, Any], model: ForeignModel, *, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> DecoderConfig:
    """The sizes of a graph, for caches and the manifest; refuses as `read_length`. What its nodes compute is not described."""
    return DecoderConfig(
        model_type=str(config["model_type"]),
        vocab_size=model.vocab_size,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_length=read_length(config),
        scale=head_dim**-0.5,
        windows=(None,) * layers,
        ropes=(None,) * layers,
    )


def check_all_used(checkpoint: Checkpoint, used: Collection[str], tool: str) -> None:
    """Refuse a checkpoint with tensors that the graph would leave out (InputError: naming one)."""
    buffers = (".inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
    copies = ("lm_head.weight", "embed_out.weight") if checkpoint.config.get("tie_word_embeddings") else ()
    unused = [n for n in checkpoint.names if n not in used and not n.endswith((*buffers, *copies))]
    check_unused(checkpoint, unused, f"{tool}'s graph")


def read_settings(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node, by name."""
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def say_why(error: BaseException) -> str:
    """What a foreign error says, as the end of a sentence of ours; "." if it was not raised to say something."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = first_line(error).rstrip(".:")
    return f": {said}." if isinstance(error, _SPOKEN) and said != type(error).__name__ else "."


def place_of(tensor: Any) -> tuple[object, ...]:
    """Equal for two tensors that are one."""
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence: front ends and what they load speak of their own affairs; what matters here is compared in the end."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

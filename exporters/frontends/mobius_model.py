"""Graphs of architectures without a template here, described by mobius-onnx (MIT, some 300 kinds of model).

mobius builds a graph without weights from `config.json`, and its model class says how a checkpoint's tensors become the graph's.
Both are taken as they are; `mobius_graph` translates the graph. Tensors stay mapped: what mobius only renames, splits or
transposes takes no memory; what it rearranges does. Which checkpoint tensors went into which weight is recorded as mobius works,
because a proof of sparsity has to name them.

mobius needs torch; it is loaded for such an architecture only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters.frontends.base import (
    ForeignModel,
    ForeignWeight,
    check_all_used,
    place_of,
    quiet,
    say_why,
)
from maskpro_deploy.system.files import write_json

# the caller has made sure that mobius, and with it torch, is installed
_TASK = "text-generation"
_PROVIDER = "onnx-standard"  # mobius' name for graphs of standard operators only
_DTYPES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


def is_known(model_type: str) -> bool:
    """Whether mobius has a text generator of this kind."""
    with quiet():
        import mobius

    if model_type not in mobius.registry:
        return False
    task = mobius.registry.get_task(model_type) or getattr(mobius.registry.get(model_type), "default_task", _TASK)
    return bool(task == _TASK)


def build_graph(checkpoint: Checkpoint, dtype: str) -> tuple[Any, Any]:
    """The graph as mobius has it (onnx-ir; FormatError: it cannot build it), and the module it was built from."""
    made: list[Any] = []
    with quiet():
        import mobius

        base: Any = mobius.registry.get(checkpoint.config["model_type"])

        class Kept(base):  # type: ignore[misc]  # mobius' own classes are not typed for this
            """The module, within reach after the build."""

            def __init__(self, config: Any) -> None:
                super().__init__(config)
                made.append(self)

        try:
            # from a config.json without what it says of quantisation, which mobius would build into the graph
            with tempfile.TemporaryDirectory() as folder:
                write_json(Path(folder) / "config.json", checkpoint.config)
                package = mobius.build(
                    folder,
                    task=_TASK,
                    module_class=Kept,
                    dtype=_DTYPES[dtype],
                    load_weights=False,
                    execution_provider=_PROVIDER,
                )
        except Exception as e:  # whatever a foreign builder stumbles over: the config does not fit it
            raise FormatError(f"it cannot build this model{say_why(e)}") from e
    return package["model"], made[-1]


def read_graph(model: Any) -> ForeignModel:
    """What mobius built, as a graph of ours reads it."""
    import onnx_ir

    constants: dict[str, npt.NDArray[Any]] = {}
    parameters: dict[str, tuple[int, ...]] = {}
    for name, value in model.graph.initializers.items():
        if value.const_value is not None:
            constants[name] = value.const_value.numpy()
        else:
            parameters[name] = tuple(int(d) for d in value.shape)
    logits = next(o for o in model.graph.outputs if o.name == "logits")
    return ForeignModel(
        nodes=tuple(onnx_ir.to_proto(node) for node in model.graph),
        constants=constants,
        parameters=parameters,
        caches={i.name: (0, int(i.shape[-1])) for i in model.graph.inputs if i.name.startswith("past_key_values.")},
        logits=logits.name,
        vocab_size=int(logits.shape[-1]),
    )


def map_weights(checkpoint: Checkpoint, module: Any, wanted: Container[str]) -> dict[str, ForeignWeight]:
    """What mobius makes of the checkpoint's tensors, by the graph's names; it must use all of them."""
    tensors = checkpoint.map_torch()
    sources_of, track = _track_sources(tensors)
    try:
        with quiet(), track:
            made = module.preprocess_weights(dict(tensors))
    except Exception as e:
        raise FormatError(f"it cannot take the checkpoint's tensors{say_why(e)}") from e
    weights = {}
    for name, tensor in ((n, t) for n, t in made.items() if n in wanted):
        sources = sources_of(tensor)
        source = tensors[sources[0]] if len(sources) == 1 else None
        weights[name] = ForeignWeight.of(tensor, sources, same=source is not None and place_of(source) == place_of(tensor))
    check_all_used(checkpoint, {source for weight in weights.values() for source in weight.sources}, "mobius-onnx")
    return weights


def _track_sources(tensors: Mapping[str, Any]) -> tuple[Callable[[Any], tuple[str, ...]], Any]:
    """A record of which tensors came from which, kept while torch works, and the mode in which it is kept."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.weak import WeakIdKeyDictionary

    names: Any = WeakIdKeyDictionary()
    for name, tensor in tensors.items():
        names[tensor] = {name: None}

    class Track(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            came = {n: None for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) for n in names.get(leaf, {})}
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    names[leaf] = {**names.get(leaf, {}), **came}
            return result

    return lambda tensor: tuple(names.get(tensor, {})), Track()  # type: ignore[no-untyped-call]

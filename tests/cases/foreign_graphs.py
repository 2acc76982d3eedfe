"""Graphs made by other tools, each with all inner weights 2:4, and with one of them dense.

A label says how a graph came to be: "torchscript/llama/cache > dynamic int8 > all". What is before the first ">" is a base: an
export of a tiny model. Each following step is a tool that takes a graph and makes one. The dense version has the dense weight
before the first step: exporters do not look at values, so it is put where the export has stored the sparse one, and only where an
export has taken the weight to pieces is the model exported again.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import foreign_exports as exports
import foreign_models as models
import foreign_ort as ort
import onnx
from foreign_reference import exchange
from onnxruntime import quantization as q
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

from maskpro_deploy.exporters.frontends.base import quiet

_QOP, _QDQ = q.QuantFormat.QOperator, q.QuantFormat.QDQ
_STATIC = {"weight_type": q.QuantType.QInt8, "extra_options": {"WeightSymmetric": True, "ActivationSymmetric": False}}


def _default(**settings: Any) -> ort.Tool:
    return ort.bits(lambda _: nbits.DefaultWeightOnlyQuantConfig(**settings))


TOOLS: dict[str, ort.Tool] = {
    **{level: ort.optimised(level) for level in ort.LEVELS},
    "bert optimiser": ort.transformer("bert"),
    "bert optimiser half": ort.transformer("bert", half=True),
    "bert optimiser level 2": ort.transformer("bert", level=2),
    "gpt2 optimiser": ort.transformer("gpt2"),
    "gpt2 optimiser half": ort.transformer("gpt2", half=True),
    "half": ort.half,
    "dynamic int8": ort.dynamic(weight_type=q.QuantType.QInt8),
    "dynamic uint8": ort.dynamic(weight_type=q.QuantType.QUInt8),
    "dynamic int8 channels": ort.dynamic(weight_type=q.QuantType.QInt8, per_channel=True, reduce_range=True),
    "dynamic uint8 channels": ort.dynamic(weight_type=q.QuantType.QUInt8, per_channel=True),
    "static qdq": ort.static(quant_format=_QDQ, **_STATIC),
    "static qdq channels": ort.static(quant_format=_QDQ, per_channel=True, **_STATIC),
    "static operators": ort.static(quant_format=_QOP, **_STATIC),
    "static operators channels": ort.static(quant_format=_QOP, per_channel=True, **_STATIC),
    "static qdq uint8": ort.static(quant_format=_QDQ, activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QUInt8),
    "4 bits": _default(block_size=32, is_symmetric=True),
    "4 bits asymmetric": _default(block_size=32),
    "4 bits qdq": _default(block_size=32, is_symmetric=True, quant_format=_QDQ),
    "4 bits qdq asymmetric": _default(block_size=16, quant_format=_QDQ),
    "8 bits": _default(block_size=32, is_symmetric=True, bits=8),
    "8 bits asymmetric": _default(block_size=64, bits=8),
    "2 bits": _default(block_size=32, bits=2),
    "4 bits gather": _default(block_size=32, op_types_to_quantize=("MatMul", "Gather")),
    "rtn": ort.bits(lambda _: nbits.RTNWeightOnlyQuantConfig()),
    "k-quant": ort.bits(lambda _: nbits.KQuantWeightOnlyQuantConfig()),
    "hqq": ort.bits(lambda _: nbits.HQQWeightOnlyQuantConfig(block_size=32)),
    "gptq": ort.bits(lambda source: nbits.GPTQWeightOnlyQuantConfig(ort.Feeds(source), block_size=32)),
    "fp4": ort.bnb(0),
    "nf4": ort.bnb(1),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One graph in two versions."""

    base: str
    steps: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How it came to be."""
        return " > ".join((self.base, *self.steps))

    @property
    def tool(self) -> str:
        """What made it last."""
        step = self.steps[-1] if self.steps else ""
        if not step:
            return self.base.split("/")[0]
        kinds = {
            "optimiser": "transformers optimiser",
            "dynamic": "quantize_dynamic",
            "static": "quantize_static",
            "half": "float16",
        }
        found = next((name for part, name in kinds.items() if part in step), "weight-only quantisers")
        return "onnxruntime " + ("sessions" if step in ort.LEVELS else found)


class Workshop:
    """Makes graphs in a folder; a base is exported once."""

    def __init__(self, folder: Path, tools: dict[str, ort.Tool] | None = None) -> None:
        self._folder, self._tools = folder, tools or TOOLS
        self._models: dict[str, Any] = {}

    def make(self, case: Case, *, dense: bool, turn: int = 0) -> Path:
        """The path of a graph. Each turn has another weight dense."""
        target = self._folder / (f"dense-{turn}" if dense else "sparse") / f"{models.slug(case.label)}.onnx"
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            path = self._dense_base(case, turn) if dense else self.base(case.base)
            for step in case.steps:
                following = target.with_name(f"step-{models.slug(step)}-{target.name}")
                self._tools[step](path, following)
                path = following
        shutil.copyfile(path, target)
        return target

    def base(self, name: str) -> Path:
        """The sparse export of a base."""
        path = self._folder / "bases" / f"{models.slug(name)}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._export(name, self.model(name.split("/")[1]), path)
        return path

    def _export(self, base: str, model: Any, path: Path) -> None:
        exporter, family, *options = base.split("/")
        BASES[exporter](family, model, path, options)

    def model(self, family: str) -> Any:
        """The sparse model of a family."""
        if family not in self._models:
            self._models[family] = models.build(family)
        return self._models[family]

    def _dense_base(self, case: Case, turn: int) -> Path:
        family = case.base.split("/")[1]
        model = self.model(family)
        name = models.chosen(case.label, model, turn)
        path = self._folder / "bases" / f"{models.slug(case.base)}-{name}.onnx"
        if not path.exists():
            graph = onnx.load(self.base(case.base))
            old = model.get_parameter(name).numpy()
            new = models.dense_values(family, name, old.shape)
            if exchange(graph, old, new):
                onnx.save(graph, path)
            else:
                self._export(case.base, models.with_weight(model, name, new), path)
        return path


def _torchscript(family: str, model: Any, path: Path, options: list[str]) -> None:
    exports.export(family, model, path, dynamo=False, do_constant_folding="raw" not in options, **_settings(options))


def _dynamo(family: str, model: Any, path: Path, options: list[str]) -> None:
    exports.export(family, model, path, dynamo=True, optimize="raw" not in options, **_settings(options))


def _settings(options: list[str]) -> dict[str, Any]:
    """What both of torch's exporters are asked for."""
    cache = "takes" if "past" in options else "gives" if "cache" in options else "none"
    return {"cache": cache, "dynamic": "static" not in options}


def _mobius(family: str, model: Any, path: Path, options: list[str]) -> None:
    import mobius
    import onnx_ir

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        onnx.save(onnx_ir.to_proto(mobius.build(folder, dtype="f32")["model"]), path)


BASES: dict[str, Callable[[str, Any, Path, list[str]], None]] = {
    "torchscript": _torchscript,
    "dynamo": _dynamo,
    "mobius": _mobius,
}

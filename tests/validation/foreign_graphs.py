"""Graphs made by other tools, each with all inner weights 2:4, and with one of them dense.

A label says how a graph came to be: "torchscript/llama/cache > dynamic int8 > all". What is before the first ">" is a base: an
export of a tiny model. Each following step is a tool that takes a graph and makes one. The dense version has the dense weight
before the first step: exporters do not look at values, so it is put where the export has stored the sparse one.
"""

from __future__ import annotations

import shutil
import zlib
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

from maskpro_deploy.exporters.front_end import quiet

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


class Workshop:
    """Makes graphs in a folder; a base is exported once."""

    def __init__(self, folder: Path, tools: dict[str, ort.Tool] | None = None) -> None:
        self._folder, self._tools = folder, tools or TOOLS
        self._models: dict[str, Any] = {}

    def make(self, case: Case, *, dense: bool) -> Path:
        """The path of a graph."""
        target = self._folder / ("dense" if dense else "sparse") / f"{slug(case.label)}.onnx"
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            path = self._dense_base(case) if dense else self.base(case.base)
            for number, step in enumerate(case.steps):
                following = target.with_suffix(f".{number}.onnx")
                self._tools[step](path, following)
                path = following
        shutil.copyfile(path, target)
        return target

    def base(self, name: str) -> Path:
        """The sparse export of a base."""
        path = self._folder / "bases" / f"{slug(name)}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            exporter, family, *options = name.split("/")
            BASES[exporter](family, self.model(family), path, options)
        return path

    def model(self, family: str) -> Any:
        """The sparse model of a family."""
        if family not in self._models:
            self._models[family] = models.build(family)
        return self._models[family]

    def _dense_base(self, case: Case) -> Path:
        family = case.base.split("/")[1]
        model = self.model(family)
        name = dense_weight(case.label, model)
        path = self._folder / "bases" / f"{slug(case.base)}-{name}.onnx"
        if not path.exists():
            graph = onnx.load(self.base(case.base))
            old = model.get_parameter(name).numpy()
            if not exchange(graph, old, models.dense_values(family, name, old.shape)):
                raise AssertionError(f"{case.label}: {name} is not in the export")
            onnx.save(graph, path)
        return path


def dense_weight(label: str, model: Any) -> str:
    """The weight that is dense in the dense version: another one for each label."""
    names = models.candidates(model)
    return names[zlib.crc32(label.encode()) % len(names)]


def slug(label: str) -> str:
    """A name for a file."""
    return label.replace(" > ", "+").replace("/", "-").replace(" ", "_")


def _torchscript(family: str, model: Any, path: Path, options: list[str]) -> None:
    settings = {
        "cache": "takes" if "past" in options else "gives" if "cache" in options else "none",
        "dynamic": "static" not in options,
    }
    exports.export(family, model, path, dynamo=False, do_constant_folding="raw" not in options, **settings)


def _dynamo(family: str, model: Any, path: Path, options: list[str]) -> None:
    settings = {
        "cache": "takes" if "past" in options else "gives" if "cache" in options else "none",
        "dynamic": "static" not in options,
    }
    exports.export(family, model, path, dynamo=True, optimize="raw" not in options, **settings)


BASES: dict[str, Callable[[str, Any, Path, list[str]], None]] = {"torchscript": _torchscript, "dynamo": _dynamo}
ENCODERS = ("bert", "bert-mlm", "bert-classifier", "roberta", "distilbert")
OTHERS = (*ENCODERS, "vit", *models.PLAIN)
DECODERS = tuple(f for f in models.FAMILIES if f not in OTHERS)
_SLOW = ("past", "cache", "none", "raw")


def quick_cases() -> list[Case]:
    """Those that take a second at most, with what this project itself is developed with."""
    plain = [Case(f"torchscript/{f}") for f in (*DECODERS, *OTHERS)]
    cached = [Case(f"torchscript/{f}/{how}") for f in DECODERS for how in ("past", "cache")]
    raw = [Case(f"torchscript/{f}/raw") for f in ("llama", "gpt2", "bert", "encoder")]
    fixed = [Case(f"torchscript/{f}/static") for f in ("qwen2", "opt", "vit", "encoder")]
    base = {f: f"torchscript/{f}/past" if f in DECODERS else f"torchscript/{f}" for f in (*DECODERS, *OTHERS)}
    levels = [Case(b, (level,)) for b in base.values() for level in ort.LEVELS]
    bert = [Case(base[f], (tool,)) for f in ENCODERS for tool in TOOLS if tool.startswith("bert")]
    gpt2 = [
        Case(b, (tool,)) for b in ("torchscript/gpt2", base["gpt2"], base["opt"]) for tool in TOOLS if tool.startswith("gpt2")
    ]
    quantisers = list(TOOLS)[list(TOOLS).index("half") :]
    chosen = ("llama", "llama-tied", "gpt2", "bert", "encoder", "perceptron", "qwen2_moe")
    quantised = [Case(base[f], (tool,)) for f in chosen for tool in quantisers]
    kinds = ("dynamic int8", "dynamic uint8 channels", "static qdq", "static operators", "4 bits", "4 bits qdq", "8 bits")
    after = [Case(base[f], (tool, "all")) for f in ("llama", "gpt2", "bert", "encoder") for tool in kinds]
    fused = [
        Case(base["bert"], (f"bert optimiser{how}", tool))
        for how in ("", " level 2")
        for tool in ("dynamic int8", "static qdq", "4 bits")
    ]
    return [*plain, *cached, *raw, *fixed, *levels, *bert, *gpt2, *quantised, *after, *fused]


def slow_cases() -> list[Case]:
    """Those through torch's second exporter."""
    plain = [Case(f"dynamo/{f}") for f in (*DECODERS, *OTHERS)]
    return plain

"""Which graphs are made: those of a test that takes about a minute, and all that this project's own environment can make.

The two versions of each, and what a label means: `foreign_graphs`. Those of other environments: `foreign_peers`.
"""

from __future__ import annotations

import foreign_models as models
from foreign_graphs import TOOLS, Case
from foreign_ort import LEVELS

ENCODERS = ("bert", "bert-mlm", "bert-classifier", "roberta", "distilbert")
OTHERS = (*ENCODERS, "vit", *models.PLAIN)
DECODERS = tuple(f for f in models.FAMILIES if f not in OTHERS)
_BASE = {f: f"torchscript/{f}/past" if f in DECODERS else f"torchscript/{f}" for f in (*DECODERS, *OTHERS)}
_QUANTISERS = list(TOOLS)[list(TOOLS).index("half") :]
_MOBIUS = (
    "llama",
    "llama-tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "gpt2",
    "opt",
    "gpt_neox",
    "mixtral",
    "qwen2_moe",
)


def quick_cases() -> list[Case]:
    """A part of them that takes about a minute."""
    plain = [Case(f"torchscript/{f}") for f in OTHERS]
    past = [Case(_BASE[f], steps) for f in DECODERS for steps in ((), ("all",))]
    fixed = [Case(f"torchscript/{f}/static") for f in ("qwen2", "opt", "encoder")]
    other = [Case("dynamo/perceptron"), Case("torchscript/gpt2/raw"), Case("torchscript/phi3/cache")]
    mobius = [Case(f"mobius/{f}") for f in ("llama", "qwen3", "gpt2", "qwen2_moe")]
    levels = [Case(_BASE[f], (level,)) for f in ("bert-classifier", "distilbert", "encoder", "vit") for level in LEVELS]
    fused = [Case(_BASE["bert"], (f"bert optimiser{how}",)) for how in ("", " half", " level 2")]
    gpt2 = [Case("torchscript/gpt2", ("gpt2 optimiser",))]
    # calibration takes long for all but the smallest
    small = [Case(_BASE["perceptron" if tool.startswith("static") else "encoder"], (tool,)) for tool in _QUANTISERS]
    small.append(Case(_BASE["encoder"], ("static operators channels",)))
    large = (
        "dynamic int8",
        "dynamic uint8 channels",
        "4 bits",
        "4 bits gather",
        "4 bits qdq asymmetric",
        "fp4",
    )
    quantised = [Case(_BASE[f], (tool,)) for f in ("bert", "llama-tied") for tool in large]
    after = [Case(_BASE[f], (tool, "all")) for f in ("gpt2", "bert") for tool in ("dynamic int8", "4 bits qdq")]
    twice = [Case(_BASE["bert"], ("bert optimiser", tool)) for tool in ("static qdq", "4 bits")]
    return [*plain, *past, *fixed, *other, *mobius, *levels, *fused, *gpt2, *small, *quantised, *after, *twice]


def all_cases() -> list[Case]:
    """All that need only what this project is developed with."""
    plain = [Case(f"torchscript/{f}") for f in (*DECODERS, *OTHERS)]
    cached = [Case(f"torchscript/{f}/{how}") for f in DECODERS for how in ("past", "cache")]
    raw = [Case(f"torchscript/{f}/raw") for f in ("llama", "gpt2", "bert", "encoder")]
    fixed = [Case(f"torchscript/{f}/static") for f in ("qwen2", "opt", "vit", "encoder")]
    second = [Case(f"dynamo/{f}") for f in (*DECODERS, *OTHERS)]
    second += [
        Case(f"dynamo/{name}") for name in ("gpt2/past", "gpt2/raw", "qwen2/past/raw", "bert/raw", "encoder/static", "opt/static")
    ]
    second += [
        Case(f"dynamo/{f}", (tool,)) for f in ("gpt2", "bert", "qwen2") for tool in ("all", "dynamic int8", "4 bits", "half")
    ]
    mobius = [Case(f"mobius/{f}", steps) for f in _MOBIUS for steps in ((), ("4 bits",))]
    levels = [Case(b, (level,)) for b in _BASE.values() for level in LEVELS]
    bert = [Case(_BASE[f], (tool,)) for f in ENCODERS for tool in TOOLS if tool.startswith("bert")]
    gpt2 = [
        Case(b, (tool,)) for b in ("torchscript/gpt2", _BASE["gpt2"], _BASE["opt"]) for tool in TOOLS if tool.startswith("gpt2")
    ]
    chosen = ("llama", "llama-tied", "gpt2", "bert", "encoder", "perceptron", "qwen2_moe")
    quantised = [Case(_BASE[f], (tool,)) for f in chosen for tool in _QUANTISERS]
    kinds = ("dynamic int8", "dynamic uint8 channels", "static qdq", "static operators", "4 bits", "4 bits qdq", "8 bits")
    after = [Case(_BASE[f], (tool, "all")) for f in ("llama", "gpt2", "bert", "encoder") for tool in kinds]
    twice = [Case(_BASE["bert"], (f"bert optimiser{how}", tool)) for how in ("", " level 2") for tool in ("static qdq", "4 bits")]
    made = [*plain, *cached, *raw, *fixed, *second, *mobius, *levels, *bert, *gpt2, *quantised, *after, *twice]
    return list(dict.fromkeys([*made, *quick_cases()]))

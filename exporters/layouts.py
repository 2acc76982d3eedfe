"""Names and extra files that other tools look for.

    bundle   model.onnx, model.onnx.data                            this package
    genai    the same, and genai_config.json                        onnxruntime-genai
    hub      onnx/model.onnx or onnx/model_fp16.onnx and so on      optimum, transformers.js

Every layout is a bundle: it has a manifest, and all tools of this package read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskpro_deploy.cache_forms import CACHE_FORMS, DEFAULT_FORM, GENAI_FORMS
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.manifest import Graph, ModelShape
from maskpro_deploy.system.files import read_json, write_json

LAYOUTS = ("bundle", "hub", "genai")
GENAI_FILE = "genai_config.json"
# (quantisation, dtype) -> the ending of the file name on the Hub
_HUB_ENDINGS = {
    (None, "fp32"): "", (None, "fp16"): "_fp16", (None, "bf16"): "_bf16",
    ("int8", "fp32"): "_int8", ("int4", "fp32"): "_q4", ("int4", "fp16"): "_q4f16",
}  # fmt: skip


def graph_path(layout: str, form: str, first: str, quantize: str | None, dtype: str) -> str:
    """Where the graph of a form lies in the folder; that of the `first` form has the plain name in the "hub" layout."""
    if layout != "hub":
        return "model.onnx" if form == DEFAULT_FORM else f"model_{form}.onnx"
    ending = _HUB_ENDINGS.get((quantize, dtype), f"_{quantize}_{dtype}")
    return f"onnx/model{ending}.onnx" if form == first else f"onnx/model_{form}{ending}.onnx"


def data_path(layout: str, quantize: str | None, dtype: str) -> str:
    """Where the data file lies."""
    if layout != "hub":
        return "model.onnx.data"
    return f"{graph_path(layout, '', '', quantize, dtype)}_data"


def check_genai(forms: tuple[str, ...]) -> None:
    """Refuse a form that onnxruntime-genai cannot drive (ConfigError: naming those it can)."""
    if forms[0] not in GENAI_FORMS:
        raise ConfigError(f"--layout genai runs the first of --forms, {forms[0]}; it can run {', '.join(GENAI_FORMS)}.")


def write_genai(folder: Path, model: ModelShape, graph: Graph) -> None:
    """Write `genai_config.json` for the bundle's own graph."""
    form = CACHE_FORMS[graph.form]
    cache = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    inputs = {name: name for name in ("input_ids", *form.inputs)} | cache
    outputs = {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    generation = read_json(settings) if (settings := folder / "generation_config.json").is_file() else {}
    ends = list(model.eos_token_ids)
    write_json(
        folder / GENAI_FILE,
        {
            "model": {
                "bos_token_id": model.bos_token_id if model.bos_token_id is not None else ends[0],
                "context_length": model.max_length,
                "decoder": {
                    "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                    "filename": graph.file,
                    "head_size": model.head_dim,
                    "hidden_size": model.hidden_size,
                    "inputs": inputs,
                    "outputs": outputs,
                    "num_attention_heads": model.num_heads,
                    "num_hidden_layers": model.num_layers,
                    "num_key_value_heads": model.num_kv_heads,
                },
                "eos_token_id": ends if len(ends) > 1 else ends[0],
                "pad_token_id": model.pad_token_id if model.pad_token_id is not None else ends[0],
                "type": "decoder",
                "vocab_size": model.vocab_size,
            },
            "search": _describe_search(generation, model, shared=form.genai == "shared buffer"),
        },
    )


def _describe_search(generation: dict[str, Any], model: ModelShape, *, shared: bool) -> dict[str, Any]:
    """Sampling defaults: those of the model, where it has some."""
    return {
        "do_sample": bool(generation.get("do_sample", False)),
        "early_stopping": True,
        "length_penalty": 1.0,
        "max_length": min(model.max_length, 4096),  # genai allocates the buffer for all of it
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "num_return_sequences": 1,
        "past_present_share_buffer": shared,
        "repetition_penalty": float(generation.get("repetition_penalty") or 1.0),
        "temperature": float(generation.get("temperature") or 1.0),
        "top_k": int(generation.get("top_k") or 50),
        "top_p": float(generation.get("top_p") or 1.0),
    }

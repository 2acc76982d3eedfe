"""Graphs of tools with an environment of their own: optimum, onnxslim, onnxsim, onnxruntime-genai. Runs in that environment.

    python foreign_peers.py OUT [START]

It writes OUT/sparse/NAME.onnx, OUT/dense/NAME.onnx and OUT/cases.json (label -> what failed, or nothing) for the tools that are
installed, and of these for the labels that begin with START. A dense version is exported from a model with a dense weight.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import foreign_exports as exports
import foreign_models as models
import onnx
import torch

Make = Callable[[Any, Path], None]  # a model and the file to write
_TASKS = {
    "bert": "feature-extraction",
    "bert-mlm": "fill-mask",
    "bert-classifier": "text-classification",
    "roberta": "feature-extraction",
    "distilbert": "feature-extraction",
    "vit": "feature-extraction",
}
_DECODERS = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "phi3", "phi", "gpt2", "opt", "gpt_neox")
_GENAI = ("llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi", "phi3")


def cases() -> Iterator[tuple[str, str, Make]]:
    """Label, family, and what makes the graph."""
    if find_spec("optimum"):
        yield from _optimum_cases()
        yield from _slimming_cases()
    if find_spec("onnxruntime_genai"):
        yield from _genai_cases()


def _optimum_cases() -> Iterator[tuple[str, str, Make]]:
    for family, task in _TASKS.items():
        yield f"optimum/{family}/{task}", family, _optimum(task)
    for family in _DECODERS:
        for task in ("text-generation", "text-generation-with-past"):
            yield f"optimum/{family}/{task}", family, _optimum(task)
    for family in ("bert", "bert-classifier", "distilbert", "roberta", "gpt2"):
        for level in ("O1", "O2", "O3"):
            task = _TASKS.get(family, "text-generation-with-past")
            yield f"optimum/{family}/{task}/{level}", family, _optimum(task, optimize=level)
    for family in ("bert", "gpt2", "llama"):
        task = _TASKS.get(family, "text-generation-with-past")
        yield f"optimum/{family}/{task}/slim", family, _optimum(task, slim=True)
        for kind in ("avx512_vnni", "arm64", "avx2"):
            yield f"optimum/{family}/{task}/quantised {kind}", family, _optimum_quantised(task, kind)


def _slimming_cases() -> Iterator[tuple[str, str, Make]]:
    for family in ("llama", "gpt2", "qwen2", "phi3", "opt", "bert", "distilbert", "vit", "encoder", "perceptron"):
        for tool, run in (("onnxslim", _slim), ("onnxsim", _sim)):
            past = _TASKS.get(family, "text-generation-with-past")
            first = _torchscript(family) if family in models.PLAIN else _optimum(past)
            yield f"{tool}/{family}", family, _after(first, run)
    for tool, run in (("onnxslim", _slim), ("onnxsim", _sim)):
        for family in ("gpt2", "bert"):
            yield f"{tool}/{family}/dynamo", family, _after(_dynamo(family), run)


def _genai_cases() -> Iterator[tuple[str, str, Make]]:
    for family in _GENAI:
        for precision in ("fp32", "int4"):
            yield f"genai/{family}/{precision}", family, _genai(precision, [])
    more = {
        "symmetric": ["int4_is_symmetric=true", "int4_block_size=32"],
        "asymmetric": ["int4_is_symmetric=false", "int4_block_size=32"],
        "k_quant_mixed": ["int4_algo_config=k_quant_mixed"],
        "rtn_last": ["int4_algo_config=rtn_last"],
        "qdq": ["use_qdq=true"],
        "int8": ["int4_algo_config=k_quant", "int4_accuracy_level=4"],
    }
    for name, options in more.items():
        for family in ("llama", "qwen2"):
            yield f"genai/{family}/int4/{name}", family, _genai("int4", options)
    yield "genai/llama-tied/int4/shared_embeddings", "llama-tied", _genai("int4", ["shared_embeddings=true"])
    for options in (["include_hidden_states=true"], ["exclude_embeds=true"], ["exclude_lm_head=true"]):
        yield f"genai/qwen3/fp32/{options[0].split('=')[0]}", "qwen3", _genai("fp32", options)
    yield "genai/llama/fp16", "llama", _genai("fp16", [], provider="cuda")
    yield "genai/qwen2/bf16", "qwen2", _genai("bf16", [], provider="cuda")


def _optimum(task: str, **settings: Any) -> Make:
    def make(model: Any, target: Path) -> None:
        from optimum.exporters.onnx import onnx_export_from_model

        with tempfile.TemporaryDirectory() as folder:
            onnx_export_from_model(model, folder, task=task, do_validation=False, **settings)
            shutil.copyfile(Path(folder) / "model.onnx", target)

    return make


def _optimum_quantised(task: str, kind: str) -> Make:
    def make(model: Any, target: Path) -> None:
        from optimum.exporters.onnx import onnx_export_from_model
        from optimum.onnxruntime import ORTQuantizer
        from optimum.onnxruntime.configuration import AutoQuantizationConfig

        settings = {"avx512_vnni": {"per_channel": True}, "arm64": {"per_channel": False}, "avx2": {"per_channel": False}}[kind]
        with tempfile.TemporaryDirectory() as folder:
            onnx_export_from_model(model, folder, task=task, do_validation=False)
            config = getattr(AutoQuantizationConfig, kind)(is_static=False, **settings)
            ORTQuantizer.from_pretrained(folder, file_name="model.onnx").quantize(save_dir=folder, quantization_config=config)
            shutil.copyfile(Path(folder) / "model_quantized.onnx", target)

    return make


def _torchscript(family: str) -> Make:
    return lambda model, target: exports.export(family, model, target, dynamo=False)


def _dynamo(family: str) -> Make:
    return lambda model, target: exports.export(family, model, target, dynamo=True)


def _after(first: Make, run: Callable[[Path, Path], None]) -> Make:
    def make(model: Any, target: Path) -> None:
        first(model, target)
        run(target, target)

    return make


def _slim(source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def _sim(source: Path, target: Path) -> None:
    import onnxsim

    onnx.save(onnxsim.simplify(onnx.load(source))[0], target)


def _genai(precision: str, options: list[str], provider: str = "cpu") -> Make:
    def make(model: Any, target: Path) -> None:
        import onnxruntime_genai.models as builders

        sys.path[:0] = [folder for folder in builders.__path__ if folder not in sys.path]
        import builder

        with tempfile.TemporaryDirectory() as name:
            source, out, cache = (str(Path(name) / part) for part in ("source", "out", "cache"))
            model.save_pretrained(source)
            tokenizer().save_pretrained(source)
            more = builder.parse_extra_options("", source, out, precision, provider, cache, options)
            builder.create_model("", source, out, precision, provider, cache, **more)
            graph = onnx.load(Path(out) / "model.onnx")
        onnx.save(graph, target)

    return make


def tokenizer() -> Any:
    """A tokenizer with a word for each token."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, models.VOCAB)}}
    made = Tokenizer(WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def write(label: str, family: str, make: Make, out: Path) -> str:
    """Both versions of a case; what failed, or nothing."""
    name = models.slug(label)
    try:
        for kind in ("sparse", "dense"):
            model = models.build(family)
            if kind == "dense":
                weight = models.chosen(label, model)
                shape = tuple(model.get_parameter(weight).shape)
                model = models.with_weight(model, weight, models.dense_values(family, weight, shape))
            with quiet():
                make(model, out / kind / f"{name}.onnx")
    except BaseException as e:  # foreign tools stop in every way, SystemExit included
        if isinstance(e, KeyboardInterrupt):
            raise
        return f"{type(e).__name__}: {str(e).strip()[:300]}"
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the tools print is left out."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    """Write them all."""
    out, only = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    for kind in ("sparse", "dense"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    made = {}
    for label, family, make in cases():
        if label.startswith(only):
            made[label] = write(label, family, make, out)
            print(label, made[label] or "ok", file=sys.stderr, flush=True)
            (out / "cases.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()

"""Checkpoint folders made by other tools, in an environment that has some of them:  PYTHON foreign_folders.py DENSE SPARSE OUT

DENSE and SPARSE are folders of one model, the second with 2:4. Every maker whose tool is installed writes one folder below OUT;
`cases.json` there has, by label, what the folder is (`KINDS`), which versions made it, and why it was not made.
Imports nothing of this project.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KINDS = {
    "plain": "plain weights that hold 2:4",
    "eight bits": "integers or floats of 8 bits that hold 2:4, with scales",
    "rounded": "plain weights that hold at most 2 of 4: small ones were rounded to zero",
    "packed": "a packed form of weights that hold 2:4",
    "merged": "plain weights of which a merged adapter filled some",
}
# the packages of a tool, by the first word of labels
_PACKAGES = {
    "compressed-tensors": ("compressed-tensors",),
    "llm-compressor": ("llmcompressor", "compressed-tensors"),
    "ModelOpt": ("nvidia-modelopt",),
    "torchao": ("torchao", "transformers"),
    "quanto": ("optimum-quanto",),
    "peft": ("peft",),
    "transformers": ("transformers", "compressed-tensors"),
}
DENSE, SPARSE, OUT = (Path(argument) for argument in sys.argv[1:4])
Maker = Callable[[Path], None]


def load(folder: Path, **settings: Any) -> Any:
    """The model of a folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def bitmask(form: str, preset: str = "") -> Maker:
    """compressed-tensors up to 0.12: a sparsity format, with or without quantisation."""

    def make(out: Path) -> None:
        import compressed_tensors.config as configs
        from compressed_tensors.compressors import ModelCompressor

        kinds = {
            "sparse-24-bitmask": configs.Sparse24BitMaskConfig,
            "sparse-bitmask": configs.BitmaskConfig,
            "dense": configs.DenseSparsityConfig,
        }
        model = load(SPARSE)
        if preset:
            calibrate(model, preset)
        settings = {"sparsity_structure": "2:4", "global_sparsity": 0.5, "targets": ["Linear"], "ignore": ["lm_head"]}
        sparsity = kinds[form](format=form, **settings)
        form_of = {"FP8_DYNAMIC": "float-quantized", "W8A8": "int-quantized"}.get(preset)
        compressor = ModelCompressor.from_pretrained_model(model, sparsity_config_or_format=sparsity, quantization_format=form_of)
        compressor.compress_model(model)
        model.save_pretrained(out)
        compressor.update_config(out)

    return make


def calibrate(model: Any, preset: str) -> None:
    """Give every layer its scales, one a row."""
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    groups = {"group_0": preset_name_to_scheme(preset, ["Linear"])}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"], quantization_status="frozen"))
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            most = 448 if preset.startswith("FP8") else 127
            module.weight_scale.data.copy_(module.weight.data.abs().amax(dim=1, keepdim=True) / most)
            module.quantization_status = QuantizationStatus.FROZEN


def one_shot(*modifiers: Callable[[], Any]) -> Maker:
    """llm-compressor: prune the dense model, then quantise it if asked to."""

    def make(out: Path) -> None:
        from datasets import Dataset
        from llmcompressor import oneshot
        from transformers import AutoTokenizer

        windows = {"input_ids": [list(range(i, i + 32)) for i in range(8)], "attention_mask": [[1] * 32] * 8}
        model, tokenizer = load(DENSE), AutoTokenizer.from_pretrained(DENSE)
        settings = {"max_seq_length": 32, "num_calibration_samples": 8}
        oneshot(model=model, tokenizer=tokenizer, dataset=Dataset.from_dict(windows), recipe=[m() for m in modifiers], **settings)
        model.save_pretrained(out)

    return make


def sparsegpt() -> Any:
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    return SparseGPTModifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["lm_head"])


def wanda() -> Any:
    from llmcompressor.modifiers.pruning import WandaPruningModifier

    return WandaPruningModifier(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["lm_head"])


def quantised(**settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return QuantizationModifier(targets=["Linear"], ignore=["lm_head"], **settings)

    return make


def modelopt_sparse(out: Path) -> None:
    import modelopt.torch.sparsity as sparsity
    from modelopt.torch.export import export_hf_checkpoint

    export_hf_checkpoint(sparsity.export(sparsity.sparsify(load(DENSE), mode="sparse_magnitude")), export_dir=out)


def modelopt_quantised(name: str) -> Maker:
    def make(out: Path) -> None:
        import modelopt.torch.quantization as quantization
        import torch
        from modelopt.torch.export import export_hf_checkpoint

        config = getattr(quantization, name)
        tokens = torch.arange(16)[None]
        model = quantization.quantize(load(SPARSE, dtype=torch.bfloat16), config, lambda model: model(tokens))
        export_hf_checkpoint(model, export_dir=out)

    return make


def torchao(name: str) -> Maker:
    def make(out: Path) -> None:
        import torch
        import torchao.quantization as quantization
        from transformers import TorchAoConfig

        config = TorchAoConfig(getattr(quantization, name)())
        load(SPARSE, quantization_config=config, dtype=torch.bfloat16).save_pretrained(out)

    return make


def quanto(name: str) -> Maker:
    def make(out: Path) -> None:
        from optimum import quanto as library

        kind = getattr(library, name)
        library.QuantizedModelForCausalLM.quantize(load(SPARSE), weights=kind, exclude="lm_head").save_pretrained(out)

    return make


def merged_adapter(out: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load(SPARSE), config).merge_and_unload().save_pretrained(out)


def unpacked(label: str, config: str) -> Maker:
    """The way out of a packed form that the error of this project gives."""

    def make(out: Path) -> None:
        import transformers

        (folder,) = OUT.parent.glob(f"*/{slug(label)}")  # made in an environment before this one
        load(folder, quantization_config=getattr(transformers, config)(dequantize=True)).save_pretrained(out)

    return make


def list_makers() -> Iterator[tuple[str, str, Maker]]:
    """Label, kind and maker, of the tools that are here."""
    if find_spec("compressed_tensors") and release("compressed-tensors") < (0, 13):
        yield "compressed-tensors sparse-24-bitmask", "plain", bitmask("sparse-24-bitmask")
        yield "compressed-tensors sparse-bitmask", "plain", bitmask("sparse-bitmask")
        yield "compressed-tensors dense with sparsity_config", "plain", bitmask("dense")
        yield "compressed-tensors fp8 in sparse-24-bitmask", "eight bits", bitmask("sparse-24-bitmask", "FP8_DYNAMIC")
        yield "compressed-tensors int8 in sparse-24-bitmask", "eight bits", bitmask("sparse-24-bitmask", "W8A8")
        yield "compressed-tensors int8 in sparse-bitmask", "eight bits", bitmask("sparse-bitmask", "W8A8")
    if find_spec("llmcompressor"):
        four = {"g": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}}
        yield "llm-compressor SparseGPT", "plain", one_shot(sparsegpt)
        yield "llm-compressor Wanda", "plain", one_shot(wanda)
        for label, kind, settings in (
            ("fp8", "eight bits", {"scheme": "FP8_DYNAMIC"}),
            ("int8", "eight bits", {"scheme": "W8A8"}),
            ("int4", "packed", {"config_groups": four}),
            ("nvfp4", "packed", {"scheme": "NVFP4A16"}),
        ):
            yield f"llm-compressor SparseGPT and {label}", kind, one_shot(sparsegpt, quantised(**settings))
    if find_spec("modelopt"):
        yield "ModelOpt sparse_magnitude", "plain", modelopt_sparse
        yield "ModelOpt fp8", "eight bits", modelopt_quantised("FP8_DEFAULT_CFG")
        yield "ModelOpt int8", "eight bits", modelopt_quantised("INT8_DEFAULT_CFG")
        yield "ModelOpt nvfp4", "packed", modelopt_quantised("NVFP4_DEFAULT_CFG")
    if find_spec("torchao"):
        yield "torchao int8", "packed", torchao("Int8WeightOnlyConfig")
        yield "torchao fp8", "packed", torchao("Float8WeightOnlyConfig")
    if find_spec("optimum"):
        yield "quanto int8", "packed", quanto("qint8")
        yield "quanto int4", "packed", quanto("qint4")
    if find_spec("peft"):
        yield "peft LoRA, merged", "merged", merged_adapter
    if release("transformers") >= (5, 24):
        for label in ("fp8", "int8", "int4", "nvfp4"):
            made = f"llm-compressor SparseGPT and {label}"
            yield f"transformers, from {made}", "rounded", unpacked(made, "CompressedTensorsConfig")


def release(package: str) -> tuple[int, ...]:
    """The first two numbers of an installed version."""
    return tuple(int(number) for number in version(package).split(".")[:2])


def slug(label: str) -> str:
    """A label as the name of a folder."""
    return "-".join(label.replace(",", "").split())


def main() -> None:
    """Make all folders, and say what became of them."""
    cases = {}
    for label, kind, make in list_makers():
        folder, failure = OUT / slug(label), ""
        try:
            make(folder)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(SPARSE / file, folder / file)
        except Exception as e:  # a tool that cannot make it says so in its own way
            failure = f"{type(e).__name__}: {str(e).strip().splitlines()[0][:200] if str(e).strip() else ''}"
        versions = ", ".join(f"{package} {version(package)}" for package in _PACKAGES[label.split(",")[0].split()[0]])
        cases[label] = {"folder": folder.name, "kind": kind, "versions": versions, "failure": failure}
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()

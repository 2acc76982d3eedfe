"""Folders in the layouts of other tools: refused by name, or read as the plain weights that they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from packed_folders import PACKED, VESTIGIAL, repack, say

from maskpro_deploy.checkpoint import Checkpoint, copy_side_files
from maskpro_deploy.errors import FormatError
from maskpro_deploy.storage.packing import find_packing
from maskpro_deploy.validation import validate


@pytest.mark.parametrize("label", PACKED)
def test_a_packed_folder_is_refused_by_the_name_of_its_tool_and_form(label: str, tiny_sparse: Path, tmp_path: Path) -> None:
    layer, statement, name = PACKED[label]
    folder = repack(tiny_sparse, tmp_path / "packed", layer, statement)
    with pytest.raises(FormatError) as refused:
        Checkpoint.open(folder)
    first, remedy = str(refused.value).splitlines()
    assert first == f"{folder} is packed by {name}: its weights cannot be read as they are."
    assert remedy.startswith(("Give the checkpoint", "Unpack it with transformers 5.24: "))


@pytest.mark.parametrize("label", PACKED)
def test_validate_judges_it_or_names_the_tool(label: str, tiny_sparse: Path, tmp_path: Path) -> None:
    layer, statement, name = PACKED[label]
    report = validate(repack(tiny_sparse, tmp_path / "packed", layer, statement))
    judged = label in ("int8", "fp8", "modelopt", "bitsandbytes 8", "deepseek") or "bitmask" in label
    assert report.holds == judged
    assert bool(report.unchecked) == (not judged)
    assert report.notes == () if judged else f"packed by {name}" in report.notes[0]


@pytest.mark.parametrize("label", ["int8", "fp8", "modelopt"])
def test_weights_of_eight_bits_that_are_dense_do_not_hold(label: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    layer, statement, _ = PACKED[label]
    report = validate(repack(tiny_checkpoint, tmp_path / "packed", layer, statement))
    assert not report.holds
    assert len(report.failed) == 14


@pytest.mark.parametrize("label", VESTIGIAL)
def test_a_statement_about_plain_weights_is_left_out_of_what_is_read_and_written(
    label: str, tiny_sparse: Path, tmp_path: Path
) -> None:
    folder = say(shutil.copytree(tiny_sparse, tmp_path / "sparse"), VESTIGIAL[label])
    plain = json.loads((tiny_sparse / "config.json").read_text())
    assert Checkpoint.open(folder).config == plain
    assert validate(folder).holds
    (tmp_path / "out").mkdir()
    copy_side_files(folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == plain


def test_a_statement_of_the_text_model_inside_is_left_out_too(tiny_sparse: Path, tmp_path: Path) -> None:
    folder = say(shutil.copytree(tiny_sparse, tmp_path / "sparse"), {"text_config": {"x": 1, **VESTIGIAL["null"]}})
    assert Checkpoint.open(folder).config["text_config"] == {"x": 1}


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    types = {"a.weight": "F8_E4M3", "a.weight_scale": "F32"}
    (tmp_path / "hf_quant_config.json").write_text('{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}')
    assert str(find_packing(tmp_path, {}, types)) == "packed by ModelOpt (FP8)"
    (tmp_path / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": null}}')
    assert find_packing(tmp_path, {}, {"a.weight": "BF16"}) is None


def test_scales_that_were_left_next_to_plain_weights_are_named(tmp_path: Path) -> None:
    packing = find_packing(tmp_path, {}, {"a.weight": "F32", "a.weight_scale": "F32"})
    assert str(packing) == "packed by compressed-tensors (plain weights with the scales of a quantiser)"


@pytest.mark.parametrize("value", [None, [], "x", 3, {"config_groups": [1], "sparsity_config": 2, "quant_type": 5, "bits": "x"}])
def test_a_statement_of_any_kind_is_read_without_an_error(value: object, tmp_path: Path) -> None:
    for config in ({"quantization_config": value}, {"compression_config": value}, {"text_config": value}):
        assert find_packing(tmp_path, config, {"a.qweight": "I32"}) is not None
        assert find_packing(tmp_path, config, {"a.weight": "F16"}) is None


@pytest.mark.parametrize("types", [{"inv_freq": "F32"}, {"position_ids": "I64"}, {"a.weight": "F8_E4M3"}, {"m.weight": "BOOL"}])
def test_plain_tensors_are_not_taken_for_packed_ones(types: dict[str, str], tmp_path: Path) -> None:
    assert find_packing(tmp_path, {}, types) is None


def test_a_layer_that_is_packed_among_plain_ones_is_enough(tiny_sparse: Path, tmp_path: Path) -> None:
    layer, statement, _ = PACKED["gptq"]
    first = iter([True])
    folder = repack(tiny_sparse, tmp_path / "packed", lambda w: layer(w) if next(first, False) else {".weight": w}, statement)
    with pytest.raises(FormatError, match="packed by GPTQ"):
        Checkpoint.open(folder)


def test_eight_bits_keep_the_zeros_of_the_weights(tiny_sparse: Path, tmp_path: Path) -> None:
    """The recorded layouts are made right: what is zero stays zero, and nothing else does."""
    layer, statement, _ = PACKED["int8"]
    report = validate(repack(tiny_sparse, tmp_path / "packed", layer, statement))
    assert {t.dtype for t in report.required} == {"i8"}
    assert all(np.isclose(t.density, 0.5) for t in report.required)

"""`validate --transposable`: W and its transpose hold N:M, in checkpoints, mask files and graphs; claims are checked unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file
from tiny_model import write_tiny

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

TWO_FOUR = NMPattern(2, 4)
UP = "model.layers.1.mlp.up_proj.weight"


def transposable_mask(shape: tuple[int, int], pattern: NMPattern, seed: int = 0) -> np.ndarray:
    """A random one: every block is a circulant matrix with its rows and columns in another order.  # (O, C)"""
    rng, m = np.random.default_rng(seed), pattern.m
    first = np.arange(m) < pattern.n
    circulant = np.stack([np.roll(first, i) for i in range(m)])
    blocks = [[circulant[rng.permutation(m)][:, rng.permutation(m)] for _ in range(shape[1] // m)] for _ in range(shape[0] // m)]
    return np.block(blocks)


def turn_one_row(mask: np.ndarray, row: int = 5, group: int = 2) -> np.ndarray:
    """The mask with another 2:4 group in one row: rows hold, columns do not."""
    broken = mask.copy()
    broken[row, 4 * group : 4 * group + 4] ^= True
    return broken


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny sparse checkpoint whose masks say that they are transposable, and are."""
    folder = tmp_path_factory.mktemp("transposable")
    dense = Checkpoint.open(write_tiny(folder / "dense"))
    names = [n for n in dense.names if n.endswith("_proj.weight")]
    masks = {n: transposable_mask(dense.shapes[n], TWO_FOUR, seed) for seed, n in enumerate(names)}
    made = MaskSet.from_arrays(TWO_FOUR, masks, dense.dense_sha256(names), transposable=True)
    save_sparse(dense, made, folder / "sparse", {"method": "test"})
    return folder / "sparse"


def rewrite(sparse: Path, folder: Path, mask: np.ndarray, *, claim: bool) -> Path:
    """The checkpoint with another mask on one layer, in the file and in the weights."""
    shutil.copytree(sparse, folder)
    old, tensors = MaskSet.load(sparse / MASKS_FILE), load_file(folder / "model.safetensors")
    tensors[UP] = np.where(mask, 1.0, 0.0).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    packed = {n: np.packbits(mask) if n == UP else old.packed[n] for n in old}
    MaskSet(pattern=TWO_FOUR, packed=packed, shapes=old.shapes, transposable=claim).save(folder / MASKS_FILE)
    return folder


def test_a_claim_is_proven_without_being_asked(sparse: Path) -> None:
    for path in (sparse, sparse / MASKS_FILE):
        report = validate(path)
        assert report.holds
        assert report.transposable
        assert report.verdict.startswith("holds: 2:4 along both axes in all 14 required tensors")
        assert report.to_json()["transposable"] is True


def test_a_false_claim_is_refuted_with_the_place(sparse: Path, tmp_path: Path) -> None:
    shape = MaskSet.load(sparse / MASKS_FILE).shapes[UP]
    folder = rewrite(sparse, tmp_path / "lie", turn_one_row(transposable_mask(shape, TWO_FOUR)), claim=True)
    for path in (folder, folder / MASKS_FILE):
        report = validate(path)
        assert not report.holds
        (failed,) = report.failed
        assert failed.violations == 0
        assert failed.across is not None
        assert failed.across.violations == 4
        assert failed.why() == "4 of 512 groups of its transpose break it, first at [4, 8], [4, 9], [4, 10]"
        assert report.verdict == "does not hold: 1 of 14 required tensors break 2:4 along both axes"
    assert list(MaskSet.load(folder / MASKS_FILE).find_broken()) == [UP]


def test_without_a_claim_it_is_asked_for_by_the_flag_alone(sparse: Path, tmp_path: Path, tiny_sparse: Path) -> None:
    shape = MaskSet.load(sparse / MASKS_FILE).shapes[UP]
    folder = rewrite(sparse, tmp_path / "plain", turn_one_row(transposable_mask(shape, TWO_FOUR)), claim=False)
    assert (validate(folder).holds, validate(folder).transposable) == (True, False)
    assert not validate(folder, transposable=True).holds
    assert not validate(tiny_sparse, transposable=True).holds
    assert len(validate(tiny_sparse, transposable=True).failed) == 14


def test_values_outside_the_mask_are_found_by_both_scans(sparse: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sparse, tmp_path / "leak")
    tensors = load_file(folder / "model.safetensors")
    dropped = np.argwhere(tensors[UP] == 0)[0]
    tensors[UP][tuple(dropped)] = 1.0
    save_file(tensors, folder / "model.safetensors")
    (failed,) = validate(folder).failed
    assert failed.violations == 1
    assert failed.across is not None
    assert failed.across.violations == 1


def test_the_weights_are_judged_without_a_mask_file_too(sparse: Path, tmp_path: Path) -> None:
    shutil.copy(sparse / "model.safetensors", tmp_path / "weights.safetensors")
    assert validate(tmp_path / "weights.safetensors", TWO_FOUR, transposable=True).holds
    found = validate(tmp_path / "weights.safetensors", transposable=True)
    assert (found.holds, found.detected, found.pattern) == (True, True, TWO_FOUR)


def test_a_number_of_outputs_that_is_no_multiple_fails(tmp_path: Path) -> None:
    weight = np.tile(np.array([1, 1, 0, 0], dtype=np.float32), (6, 2))
    save_file({"a.weight": weight}, tmp_path / "w.safetensors")
    assert validate(tmp_path / "w.safetensors", TWO_FOUR).holds
    (failed,) = validate(tmp_path / "w.safetensors", TWO_FOUR, transposable=True).failed
    assert failed.why() == "its number of outputs 6 is no multiple of 4"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    pattern=st.sampled_from([TWO_FOUR, NMPattern(1, 4), NMPattern(4, 8)]),
    flip=st.booleans(),
    turned=st.booleans(),
)
def test_a_product_of_a_graph_is_judged_by_both_axes_whichever_way_it_is_stored(
    seed: int, pattern: NMPattern, flip: bool, turned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    mask = transposable_mask((16, 24), pattern, seed)
    if flip:
        row, group = int(rng.integers(16)), int(rng.integers(24 // pattern.m))
        place = np.s_[row, group * pattern.m : (group + 1) * pattern.m]
        mask[place] = np.roll(mask[place], 1)
    weight = np.where(mask, rng.standard_normal(mask.shape) + 9, 0).astype(np.float32)
    path = write_product(tmp_path_factory.mktemp("graph") / "m.onnx", weight if turned else weight.T, transposed=turned)
    assert validate(path, pattern).holds
    assert validate(path, pattern, transposable=True).holds == pattern.holds_both_ways(mask)


def write_product(path: Path, weight: np.ndarray, *, transposed: bool) -> Path:
    """Gemm with a weight that is stored (out, in), which it transposes, or (in, out)."""
    ins, outs = weight.shape[::-1] if transposed else weight.shape
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=int(transposed))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, size]) for n, size in (("x", ins), ("y", outs))]
    graph = helper.make_graph([node, helper.make_node("Relu", ["y"], ["z"])], "g", [ends[0]], [
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, outs])
    ], [numpy_helper.from_array(np.ascontiguousarray(weight), "w")])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    return path


def test_a_weight_that_is_no_matrix_is_not_proven(tmp_path: Path) -> None:
    kernel = np.tile(np.array([1, 1, 0, 0], dtype=np.float32)[None, :, None], (4, 2, 3))
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 8, 9]), ("y", [1, 4, 7]))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), tmp_path / "m.onnx")
    assert validate(tmp_path / "m.onnx", TWO_FOUR).holds
    (failed,) = validate(tmp_path / "m.onnx", TWO_FOUR, transposable=True).failed
    assert failed.why() == "it is not a matrix, so its transpose is not judged"


@pytest.mark.parametrize("strict", [True, False])
def test_weights_behind_a_bitmask_are_unpacked_for_both_axes(strict: bool, tmp_path: Path) -> None:
    mask = transposable_mask((16, 24), TWO_FOUR)
    mask = mask if strict else turn_one_row(mask)
    parts = {
        "compressed": np.full((16, 12), 0.5, np.float32),
        "bitmask": np.ascontiguousarray(np.packbits(mask, axis=1, bitorder="little")),
        "shape": np.array([[16], [24]], np.int64),
    }
    save_file({f"layers.0.up_proj.{name}": part for name, part in parts.items()}, tmp_path / "model.safetensors")
    assert validate(tmp_path / "model.safetensors").holds
    assert validate(tmp_path / "model.safetensors", transposable=True).holds == strict


def test_a_bundle_keeps_the_claim_and_its_graph_is_proven(sparse: Path, tmp_path: Path) -> None:
    export(sparse, tmp_path / "bundle", ExportConfig(), compare=False)
    report = validate(tmp_path / "bundle")
    assert (report.kind, report.holds, report.transposable) == ("bundle", True, True)

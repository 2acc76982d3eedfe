"""Checkpoints behind a bitmask: read, hashed, sliced, run, pruned and exported as the plain ones that they stand for."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from packed_folders import INDEX, compress, repack
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters import export
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.storage.bitmask import expand
from maskpro_deploy.validation import validate

STATEMENT = {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}


@pytest.fixture(params=["sparse-24-bitmask", "sparse-bitmask", "in shards"])
def folder(request: pytest.FixtureRequest, tiny_sparse: Path, tmp_path: Path) -> Path:
    """The sparse tiny model behind bitmasks, whose parts lie in different files in the last case."""
    free, shards = request.param == "sparse-bitmask", 3 if request.param == "in shards" else 1
    return repack(tiny_sparse, tmp_path / "bitmask", lambda w: compress(w, free=free), STATEMENT, shards)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("shape", [(8, 12), (1, 4), (5, 16)])
def test_expand_is_the_inverse_of_compress(dtype: type, free: bool, shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    weight.reshape(-1, 4)[:, [0, 3]] = 0
    parts = compress(weight, free=free)
    dense = expand(parts[".compressed"], parts[".bitmask"], shape)
    assert dense.dtype == weight.dtype
    np.testing.assert_array_equal(dense.view(np.uint8), weight.view(np.uint8))


def test_it_reads_like_the_plain_one(folder: Path, tiny_sparse: Path) -> None:
    packed, plain = Checkpoint.open(folder), Checkpoint.open(tiny_sparse)
    assert packed.names == plain.names
    assert packed.shapes == plain.shapes
    assert packed.config == plain.config
    assert packed.dense_sha256(packed.names) == plain.dense_sha256(plain.names)
    for name in plain.names:
        slices = packed.slices(name)
        assert (slices.get_dtype(), slices.get_shape()) == ("F32", list(plain.shapes[name]))
        np.testing.assert_array_equal(slices[1:4], plain.slices(name)[1:4])
        np.testing.assert_array_equal(packed.map_torch()[name].numpy(), plain.tensor(name))


def test_it_computes_and_exports_what_the_plain_one_does(folder: Path, tiny_sparse: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from maskpro_deploy.torch_lm import TorchLM

    tokens = np.arange(10)[None]
    np.testing.assert_array_equal(TorchLM.open(folder).logits(tokens), TorchLM.open(tiny_sparse).logits(tokens))
    manifest, plain = (export(source, tmp_path / name) for source, name in ((folder, "a"), (tiny_sparse, "b")))
    data = [next(f.sha256 for f in m.files if f.path.endswith(".data")) for m in (manifest, plain)]
    assert data[0] == data[1]
    assert "quantization_config" not in json.loads((tmp_path / "a" / "config.json").read_text())


def test_what_is_pruned_from_it_is_a_plain_checkpoint(folder: Path, tmp_path: Path) -> None:
    packed = Checkpoint.open(folder)
    names = [name for name in packed.bitmasks if "mlp" in name]
    one_four = NMPattern(1, 4)
    masks = MaskSet.from_arrays(one_four, {n: one_four.top(np.abs(packed.tensor(n))) for n in names}, packed.dense_sha256(names))
    save_sparse(packed, masks, tmp_path / "out", {})
    sparse = Checkpoint.open(tmp_path / "out")
    assert not sparse.bitmasks
    assert sparse.names == packed.names
    for name in packed.names:
        expected = packed.tensor(name) * masks.mask(name) if name in names else packed.tensor(name)
        np.testing.assert_array_equal(sparse.tensor(name), expected)
    assert validate(tmp_path / "out").holds
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert (tmp_path / "out" / INDEX).is_file() == (folder / INDEX).is_file()


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        (".shape", np.array([8, 20], np.int64), "bitmask has shape"),
        (".shape", np.array([-1, 4], np.int64), "no valid shape"),
        (".shape", np.array([8.0, 4.0], np.float32), "no valid shape"),
        (".bitmask", np.full((32, 4), 255, np.uint8), "keeps 1024 weights, 512 values"),
        (".compressed", np.ones((32, 15), np.float32), "keeps 512 weights, 480 values"),
    ],
)
def test_parts_that_do_not_fit_together_are_one_plain_error(
    part: str, value: np.ndarray, reason: str, tiny_sparse: Path, tmp_path: Path
) -> None:
    folder = repack(tiny_sparse, tmp_path / "bitmask", compress, STATEMENT)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {f"model.layers.0.self_attn.q_proj{part}": value}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=reason):
        Checkpoint.open(folder).tensor("model.layers.0.self_attn.q_proj.weight")


def test_a_missing_shape_is_one_plain_error(tiny_sparse: Path, tmp_path: Path) -> None:
    folder = repack(tiny_sparse, tmp_path / "bitmask", compress, STATEMENT)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.self_attn.q_proj.shape"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(FormatError, match="no valid shape"):
        _ = Checkpoint.open(folder).shapes

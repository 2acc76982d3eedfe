"""Checkpoint folders: opened shard by shard, refused when damaged, and pruned without touching anything else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from maskpro_deploy.checkpoint import LEARN_FILE, SIDE_FILES, Checkpoint, apply_mask, save_sparse
from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.masks import MASKS_FILE, MaskSet
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)
INDEX = "model.safetensors.index.json"


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A dense checkpoint that a test may damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "dense")


@pytest.fixture
def sharded(copy):
    """The same in three shards."""
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    weight_map = {}
    for i, name in enumerate(sorted(tensors)):
        weight_map[name] = f"model-{i % 3 + 1}-of-3.safetensors"
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in tensors if weight_map[n] == shard}, copy / shard, metadata={"format": "pt", "x": shard})
    (copy / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return copy


def masks_for(checkpoint, names):
    masks = {name: TWO_FOUR.top(np.abs(checkpoint.tensor(name).astype(np.float32))) for name in names}
    return MaskSet.from_arrays(TWO_FOUR, masks, checkpoint.dense_sha256(names))


def projections(checkpoint):
    return [n for n in checkpoint.names if "_proj." in n]


class TestOpen:
    def test_one_file_and_shards_read_alike(self, tiny_checkpoint, sharded):
        one, many = Checkpoint.open(tiny_checkpoint), Checkpoint.open(sharded)
        assert (len(one.shards), len(many.shards)) == (1, 3)
        assert one.names == many.names
        assert one.shapes == many.shapes
        for name in one.names:
            assert (one.tensor(name) == many.tensor(name)).all()
        assert one.dense_sha256(one.names) == many.dense_sha256(reversed(many.names))
        assert one.masks is None

    def test_tensors_come_in_their_own_dtype(self, copy):
        dtypes = (ml_dtypes.bfloat16, np.float16, np.float64)
        save_file({f"t{i}": np.ones((2, 4), t) for i, t in enumerate(dtypes)}, copy / "model.safetensors")
        checkpoint = Checkpoint.open(copy)
        assert [checkpoint.tensor(f"t{i}").dtype for i in range(3)] == [np.dtype(t) for t in dtypes]

    def test_fp8_is_refused_by_name(self, copy):
        save_file({"f8.weight": np.ones((2, 4), ml_dtypes.float8_e4m3fn)}, copy / "model.safetensors")
        with pytest.raises(FormatError, match=r"f8\.weight has a dtype"):
            Checkpoint.open(copy).tensor("f8.weight")

    def test_the_hash_depends_on_name_dtype_shape_and_bytes(self, copy):
        tensors = {"a": np.zeros((2, 4), np.float32), "b": np.zeros((4, 2), np.float32), "c": np.zeros((2, 4), np.int32)}
        tensors |= {"d": np.ones((2, 4), np.float32)}
        save_file(tensors, copy / "model.safetensors")
        checkpoint = Checkpoint.open(copy)
        assert len({checkpoint.dense_sha256([n]) for n in tensors}) == 4

    def test_no_folder_no_config_no_weights(self, copy, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            Checkpoint.open(tmp_path / "nope")
        (copy / "config.json").rename(copy / "other.json")
        with pytest.raises(InputError, match=r"no config\.json"):
            Checkpoint.open(copy)
        (copy / "other.json").rename(copy / "config.json")
        (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
        with pytest.raises(InputError, match="other formats are not read"):
            Checkpoint.open(copy)

    @pytest.mark.parametrize("text", ["", "{", "[]", "null"])
    def test_a_damaged_config_is_named(self, copy, text):
        (copy / "config.json").write_text(text)
        with pytest.raises(FormatError, match=r"config\.json"):
            Checkpoint.open(copy)

    @pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
    def test_a_truncated_file_is_named(self, copy, keep):
        file = copy / "model.safetensors"
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(FormatError, match=r"model\.safetensors is not a complete"):
            Checkpoint.open(copy)

    def test_a_missing_shard_is_named(self, sharded):
        (sharded / "model-2-of-3.safetensors").unlink()
        with pytest.raises(FormatError, match=r"model-2-of-3.*missing"):
            Checkpoint.open(sharded)

    @pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ""])
    def test_an_index_that_leaves_the_folder_is_refused(self, sharded, file):
        index = json.loads((sharded / INDEX).read_text())
        index["weight_map"]["model.norm.weight"] = file
        (sharded / INDEX).write_text(json.dumps(index))
        with pytest.raises(FormatError, match="index"):
            Checkpoint.open(sharded)

    def test_a_shard_outside_the_index_is_ignored_with_a_warning(self, sharded, caplog):
        save_file({"extra.weight": np.ones((2, 4), np.float32)}, sharded / "model-4-of-4.safetensors")
        assert "extra.weight" not in Checkpoint.open(sharded).names
        assert caplog.messages == [f"{sharded}: model-4-of-4.safetensors is not in {INDEX}: ignored."]

    @pytest.mark.parametrize(
        ("file", "remedy"),
        [("model.pt", "is a pickle"), ("model.onnx", "is an ONNX graph"), ("m.gguf", "name the file"), ("x.txt", "not read.$")],
    )
    def test_weights_of_another_format_are_named(self, copy, file, remedy):
        (copy / "model.safetensors").rename(copy / file)
        with pytest.raises(InputError, match=remedy):
            Checkpoint.open(copy)

    @pytest.mark.parametrize("weight_map", [None, {}, [], 5])
    def test_an_index_without_a_weight_map_is_refused(self, sharded, weight_map):
        (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(FormatError, match="no weight_map"):
            Checkpoint.open(sharded)

    def test_an_index_that_names_a_tensor_its_shard_lacks_is_refused(self, sharded):
        index = json.loads((sharded / INDEX).read_text())
        index["weight_map"]["gone.weight"] = "model-1-of-3.safetensors"
        (sharded / INDEX).write_text(json.dumps(index))
        with pytest.raises(FormatError, match=r"gone\.weight"):
            Checkpoint.open(sharded)

    def test_an_unknown_tensor_is_named(self, tiny_checkpoint):
        with pytest.raises(FormatError, match="'nope'"):
            Checkpoint.open(tiny_checkpoint).tensor("nope")


class TestSaveSparse:
    def test_masked_weights_are_positive_zero_and_all_others_untouched(self, tiny_checkpoint, tmp_path):
        dense = Checkpoint.open(tiny_checkpoint)
        names = projections(dense)[:5]
        masks = masks_for(dense, names)
        save_sparse(dense, masks, tmp_path / "out", {"method": "x"})
        sparse = Checkpoint.open(tmp_path / "out")
        assert sparse.names == dense.names
        for name in dense.names:
            before, after = dense.tensor(name), sparse.tensor(name)
            assert after.dtype == before.dtype
            if name not in names:
                assert after.tobytes() == before.tobytes()
                continue
            mask = masks.mask(name)
            assert after[mask].tobytes() == before[mask].tobytes()
            assert not after[~mask].view(np.uint32).any()  # every bit is zero: no -0.0
            assert TWO_FOUR.holds(after != 0)
        assert sparse.masks is not None
        assert sparse.masks.sha256() == masks.sha256()
        assert sparse.masks.dense_sha256 == dense.dense_sha256(names)
        assert json.loads((tmp_path / "out" / LEARN_FILE).read_text()) == {"method": "x"}

    def test_shards_metadata_and_side_files_stay(self, sharded, tmp_path):
        dense = Checkpoint.open(sharded)
        seen = []

        class Progress:
            def update(self, done, total, note=""):
                seen.append((done, total))

            def close(self):
                pass

        save_sparse(dense, masks_for(dense, projections(dense)), tmp_path / "out", {}, progress=Progress())
        sparse = Checkpoint.open(tmp_path / "out")
        assert [s.name for s in sparse.shards] == [s.name for s in dense.shards]
        assert seen == [(1, 3), (2, 3), (3, 3)]
        with safe_open(sparse.shards[0], "np") as file:
            assert file.metadata() == {"format": "pt", "x": sparse.shards[0].name}
        for name in SIDE_FILES:
            assert (tmp_path / "out" / name).is_file() == (sharded / name).is_file()
        assert (tmp_path / "out" / INDEX).read_text() == (sharded / INDEX).read_text()

    @pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
    def test_other_dtypes_get_zeros_of_their_own(self, copy, tmp_path, dtype):
        weight = -np.ones((4, 8), dtype)
        save_file({"a_proj.weight": weight}, copy / "model.safetensors")
        dense = Checkpoint.open(copy)
        save_sparse(dense, masks_for(dense, ["a_proj.weight"]), tmp_path / "out", {})
        after = Checkpoint.open(tmp_path / "out").tensor("a_proj.weight")
        assert after.dtype == dtype
        assert not np.signbit(after[after == 0]).any()
        assert (after != 0).sum() == 16

    @pytest.mark.parametrize("change", ["name", "shape"])
    def test_masks_of_another_model_are_refused_and_nothing_made(self, tiny_checkpoint, tmp_path, change):
        dense = Checkpoint.open(tiny_checkpoint)
        name = "other.weight" if change == "name" else "model.layers.0.mlp.up_proj.weight"
        masks = MaskSet.from_arrays(TWO_FOUR, {name: TWO_FOUR.top(np.zeros((4, 8)))})
        with pytest.raises(InputError, match="do not belong"):
            save_sparse(dense, masks, tmp_path / "out", {})
        assert list(tmp_path.iterdir()) == []

    def test_an_occupied_place_is_kept_unless_forced(self, tiny_checkpoint, tmp_path):
        dense = Checkpoint.open(tiny_checkpoint)
        masks = masks_for(dense, projections(dense)[:1])
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").touch()
        with pytest.raises(InputError, match="--force"):
            save_sparse(dense, masks, tmp_path / "out", {})
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]
        save_sparse(dense, masks, tmp_path / "out", {}, force=True)
        assert not (tmp_path / "out" / "mine").exists()

    def test_a_record_that_is_no_json_leaves_nothing(self, tiny_checkpoint, tmp_path):
        dense = Checkpoint.open(tiny_checkpoint)
        with pytest.raises(TypeError):
            save_sparse(dense, masks_for(dense, projections(dense)[:1]), tmp_path / "out", {"x": object()})
        assert list(tmp_path.iterdir()) == []

    def test_files_are_readable_as_the_umask_says(self, tiny_checkpoint, tmp_path):
        before = os.umask(0o022)
        try:
            dense = Checkpoint.open(tiny_checkpoint)
            save_sparse(dense, masks_for(dense, projections(dense)[:1]), tmp_path / "out", {})
        finally:
            os.umask(before)
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o644}

    @pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on file sizes")
    def test_no_space_leaves_nothing_and_says_so(self, tiny_sparse, tmp_path):
        """The process may not write more than 64 KiB to a file: the shard fails half-way, in the library that writes it."""
        code = """
import resource, signal, sys
from pathlib import Path
from maskpro_deploy.checkpoint import Checkpoint, save_sparse
from maskpro_deploy.errors import DiskFullError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
source = Checkpoint.open(Path(sys.argv[1]))
try:
    save_sparse(source, source.masks, Path(sys.argv[2]), {})
except DiskFullError as e:
    print(e)
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_sparse), str(tmp_path / "out")], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("no space left while writing")
        assert list(tmp_path.iterdir()) == []
        assert MASKS_FILE in {p.name for p in tiny_sparse.iterdir()}


def test_apply_mask_keeps_values_bit_for_bit():
    weight = np.array([[np.nan, -0.0, 1e-45, -3.0]], np.float32)
    kept = apply_mask(weight, np.array([[True, True, True, False]]))
    assert kept[0, :3].tobytes() == weight[0, :3].tobytes()
    assert kept[0, 3].tobytes() == bytes(4)


def test_a_tensor_of_a_type_that_numpy_lacks_is_one_plain_error(tmp_path):
    values = np.zeros((4, 8), ml_dtypes.float8_e4m3fn)
    header = {"w": {"dtype": "F8_E4M3", "shape": [4, 8], "data_offsets": [0, 32]}}
    text = json.dumps(header).encode().ljust(64)
    (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + values.tobytes())
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    for read in (checkpoint.tensor, checkpoint.read_blocks, lambda name: checkpoint.read_first_rows([name])):
        with pytest.raises(FormatError, match=r"model.safetensors: w has a dtype that is not read here"):
            list(read("w"))

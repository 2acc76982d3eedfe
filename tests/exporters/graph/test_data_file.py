"""The data file: layout, tiles, casts."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.checkpoint import Checkpoint
from maskpro_deploy.exporters.graph import data_file, weight_tiles
from maskpro_deploy.exporters.graph.builder import Weight
from maskpro_deploy.exporters.graph.data_file import write_weights
from maskpro_deploy.exporters.graph.weight_tiles import TILE_ROWS_MULTIPLE, split_rows
from maskpro_deploy.system.files import sha256_file


@given(st.integers(1, 400), st.integers(1, 300_000), st.sampled_from([1, 2, 4]))
def test_row_tiles_cover_all_rows_once_in_order(rows, columns, itemsize):
    tiles = list(split_rows((rows, columns), itemsize))
    assert tiles[0][0] == 0
    assert tiles[-1][1] == rows
    assert all(a[1] == b[0] for a, b in itertools.pairwise(tiles))
    assert all((stop - start) % TILE_ROWS_MULTIPLE == 0 for start, stop in tiles[:-1])


def test_large_tensors_begin_at_64_kib_small_ones_at_64_bytes(tiny_checkpoint, tmp_path):
    shapes = [(3,), (600, 500), (5,), (7, 9), (1024, 1024)]
    weights = [Weight(name=str(i), shape=s, values=np.full(s, i + 0.5)) for i, s in enumerate(shapes)]
    blob = write_weights(weights, Checkpoint.open(tiny_checkpoint), tmp_path / "data", "fp32")
    raw = (tmp_path / "data").read_bytes()
    end = 0
    for i, shape in enumerate(shapes):
        region = blob.regions[str(i)]
        assert region.offset % (65536 if region.bytes >= 1 << 20 else 64) == 0
        assert not any(raw[end : region.offset])
        end = region.offset + region.bytes
        values = np.frombuffer(raw, np.float32, count=int(np.prod(shape)), offset=region.offset)
        assert (values == i + 0.5).all()
    assert (blob.bytes, blob.sha256) == (len(raw), sha256_file(tmp_path / "data"))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_tile_size_does_not_change_the_bytes(tiny_checkpoint, tmp_path, monkeypatch, dtype):
    checkpoint = Checkpoint.open(tiny_checkpoint)
    name = "model.layers.1.mlp.down_proj.weight"
    weights = [
        Weight(name="down", shape=(64, 32), source=name, transposed=True),
        Weight(name="embed", shape=(320, 32), source="model.embed_tokens.weight"),
    ]
    whole = write_weights(weights, checkpoint, tmp_path / "whole", dtype)
    monkeypatch.setattr(weight_tiles, "TILE_BYTES", 1)
    monkeypatch.setattr(data_file, "TILE_BYTES", 1)
    pieces = write_weights(weights, checkpoint, tmp_path / "pieces", dtype)
    assert whole.sha256 == pieces.sha256
    target = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}[dtype]
    expected = np.ascontiguousarray(checkpoint.tensor(name).T).astype(target)
    region = pieces.regions["down"]
    assert (tmp_path / "pieces").read_bytes()[region.offset :][: region.bytes] == expected.tobytes()

"""Mask sets: strict, compact, and the same after a trip through a file."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from maskpro_deploy.errors import FormatError, InputError, PatternError
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern

TWO_FOUR = NMPattern(2, 4)


def random_masks(seed, pattern=TWO_FOUR, count=3):
    rng = np.random.default_rng(seed)
    return {
        f"layer.{i}.weight": pattern.top(rng.random((int(rng.integers(1, 9)), pattern.m * int(rng.integers(1, 5)))))
        for i in range(count)
    }


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), pattern=st.sampled_from([TWO_FOUR, NMPattern(1, 3), NMPattern(4, 8), NMPattern(3, 7)]))
def test_round_trip_through_a_file(seed, pattern):
    masks = random_masks(seed, pattern)
    made = MaskSet.from_arrays(pattern, masks, "abc")
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "m.safetensors")
        read = MaskSet.load(Path(folder) / "m.safetensors")
    assert (read.pattern, read.dense_sha256, list(read), len(read)) == (pattern, "abc", sorted(masks), 3)
    assert read.sha256() == made.sha256()
    assert read.num_weights == sum(m.size for m in masks.values())
    assert read.flips(made) == 0
    for name, mask in masks.items():
        assert name in read
        assert (read.mask(name) == mask).all()


def test_a_weight_that_is_stored_the_other_way_round_says_so(tmp_path):
    masks = {"a": TWO_FOUR.top(np.random.default_rng(0).random((8, 8))), "b": TWO_FOUR.top(np.ones((2, 4)))}
    plain, turned = (MaskSet.from_arrays(TWO_FOUR, masks, transposed=names) for names in (frozenset(), frozenset({"a"})))
    turned.save(tmp_path / "m.safetensors")
    read = MaskSet.load(tmp_path / "m.safetensors")
    assert read.transposed == {"a"}
    assert read.sha256() == turned.sha256() != plain.sha256()
    assert (read.stored_mask("a") == masks["a"].T).all()
    assert read.only({"b"}).transposed == frozenset()
    assert read.rename({"a": "c"}).transposed == {"c"}
    turned.check_fits({"a": (8, 8), "b": (2, 4)}, "m", "d")
    with pytest.raises(InputError, match=r"b has shape \(4, 2\) in the masks"):
        MaskSet.from_arrays(TWO_FOUR, masks, transposed=frozenset(masks)).check_fits({"a": (8, 8), "b": (2, 4)}, "m", "d")


def test_a_mask_takes_one_bit_a_weight(tmp_path):
    mask = TWO_FOUR.top(np.random.default_rng(0).random((256, 1024)))
    MaskSet.from_arrays(TWO_FOUR, {"w": mask}).save(tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").stat().st_size < mask.size / 8 + 1024


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999))
def test_one_wrong_group_is_refused(seed):
    rng = np.random.default_rng(seed)
    masks = random_masks(seed)
    name = f"layer.{rng.integers(3)}.weight"
    masks[name][tuple(rng.integers(masks[name].shape))] ^= True
    with pytest.raises(PatternError, match=name):
        MaskSet.from_arrays(TWO_FOUR, masks)


def test_a_dimension_that_m_does_not_divide_is_refused():
    with pytest.raises(PatternError, match="not a multiple of 3"):
        MaskSet.from_arrays(NMPattern(2, 3), {"w": np.ones((2, 4), bool)})


def test_the_hash_depends_on_pattern_names_shapes_and_bits_only():
    masks = random_masks(0)
    base = MaskSet.from_arrays(TWO_FOUR, masks)
    assert base.sha256() == MaskSet.from_arrays(TWO_FOUR, dict(reversed(masks.items())), "other").sha256()
    name = "layer.0.weight"
    other = {**masks, name: TWO_FOUR.top(-np.arange(masks[name].size).reshape(masks[name].shape).astype(float))}
    others = [
        MaskSet.from_arrays(TWO_FOUR, other),
        MaskSet.from_arrays(TWO_FOUR, {("x" if k == name else k): v for k, v in masks.items()}),
        MaskSet(pattern=NMPattern(1, 4), packed=base.packed, shapes=base.shapes),
        MaskSet(pattern=TWO_FOUR, packed=base.packed, shapes={k: v[::-1] for k, v in base.shapes.items()}),
    ]
    assert len({base.sha256(), *(o.sha256() for o in others)}) == 1 + len(others)


def test_flips_count_groups():
    first = np.array([[1, 1, 0, 0, 1, 1, 0, 0]], bool)
    second = np.array([[1, 1, 0, 0, 0, 0, 1, 1]], bool)
    a, b = (MaskSet.from_arrays(TWO_FOUR, {"w": m}) for m in (first, second))
    assert a.flips(b) == b.flips(a) == 0.5


def test_flips_by_layer_weighted_by_groups_are_all_flips():
    rng, shapes = np.random.default_rng(0), {"layer.0.weight": (3, 12), "layer.1.weight": (8, 4), "layer.2.weight": (5, 20)}
    a, b = (MaskSet.from_arrays(TWO_FOUR, {n: TWO_FOUR.top(rng.random(s)) for n, s in shapes.items()}) for _ in range(2))
    by_layer = a.flips_by_layer(b)
    assert list(by_layer) == list(a)
    groups = {name: a.mask(name).size // 4 for name in a}
    assert sum(share * groups[name] for name, share in by_layer.items()) / sum(groups.values()) == pytest.approx(a.flips(b))
    for name, share in by_layer.items():
        assert share == (a.mask(name) != b.mask(name)).reshape(-1, 4).any(axis=1).mean()


class TestDamagedFiles:
    @pytest.fixture
    def path(self, tmp_path):
        MaskSet.from_arrays(TWO_FOUR, random_masks(0), "abc").save(tmp_path / "masks.safetensors")
        return tmp_path / "masks.safetensors"

    def rewrite(self, path, tensors=None, **metadata):
        with safe_open(path, "np") as file:
            old = file.metadata()
        new = {k: v for k, v in (old | metadata).items() if v is not None}
        save_file(tensors if tensors is not None else load_file(path), path, metadata=new)

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_a_file_cut_anywhere_is_refused(self, data):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "m.safetensors"
            MaskSet.from_arrays(TWO_FOUR, random_masks(0)).save(path)
            raw = path.read_bytes()
            path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
            with pytest.raises(FormatError, match=r"m\.safetensors"):
                MaskSet.load(path)

    @pytest.mark.parametrize(
        "metadata",
        [
            {"format": None},
            {"format": "other"},
            {"version": "2"},
            {"version": "3"},
            {"transposed": '["layer.0.weight"]'},
            {"version": "2", "transposed": '["layer.9.weight"]'},
            {"version": "2", "transposed": "3"},
            {"n": "4"},
            {"n": "x"},
            {"m": None},
            {"shapes": None},
            {"shapes": "{"},
            {"shapes": "[]"},
            {"shapes": "{}"},
            {"axis": "0"},
        ],
        ids=str,
    )
    def test_wrong_metadata_is_refused(self, path, metadata):
        self.rewrite(path, **metadata)
        with pytest.raises(FormatError, match=r"masks\.safetensors"):
            MaskSet.load(path)

    @pytest.mark.parametrize("shape", [[8], [1, 2, 3], [0, 4], "negative", [2, "x"], [4, 1000], None])
    def test_shapes_that_do_not_fit_are_refused(self, path, shape):
        with safe_open(path, "np") as file:
            shapes = json.loads(file.metadata()["shapes"])
        if shape == "negative":  # of the right size, but
            shape = [-n for n in shapes["layer.0.weight"]]
        self.rewrite(path, shapes=json.dumps(shapes | {"layer.0.weight": shape}))
        with pytest.raises(FormatError, match=r"masks\.safetensors"):
            MaskSet.load(path)

    def test_another_dtype_is_refused(self, path):
        self.rewrite(path, {name: t.astype(np.float32) for name, t in load_file(path).items()})
        with pytest.raises(FormatError, match="wrong size"):
            MaskSet.load(path)

    def test_a_missing_tensor_is_refused(self, path):
        tensors = load_file(path)
        tensors.pop("layer.0.weight")
        self.rewrite(path, tensors)
        with pytest.raises(FormatError, match="different weights"):
            MaskSet.load(path)

    def test_no_file_and_a_folder_are_input_errors(self, tmp_path):
        with pytest.raises(InputError, match="does not exist"):
            MaskSet.load(tmp_path / "nope.safetensors")
        with pytest.raises(InputError):
            MaskSet.load(tmp_path)

    def test_text_is_refused(self, path):
        path.write_text("hello, this is no mask file")
        with pytest.raises(FormatError, match="not a complete safetensors"):
            MaskSet.load(path)


def test_masks_say_that_they_are_transposable_only_if_every_one_is(tmp_path):
    strict = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], dtype=bool)
    made = MaskSet.from_arrays(TWO_FOUR, {"a": strict}, transposable=True)
    made.save(tmp_path / "m.safetensors")
    read = MaskSet.load(tmp_path / "m.safetensors")
    assert read.transposable
    assert read.rename({"a": "b"}).transposable
    assert read.sha256() == MaskSet.from_arrays(TWO_FOUR, {"a": strict}).sha256()
    read.check_strict("m")
    rows_alone = np.tile([True, True, False, False], (4, 1))
    with pytest.raises(PatternError, match="mask of b does not keep exactly 2 of every 4 along both axes"):
        MaskSet.from_arrays(TWO_FOUR, {"a": strict, "b": rows_alone}, transposable=True)
    lie = MaskSet(pattern=TWO_FOUR, packed={"b": np.packbits(rows_alone)}, shapes={"b": (4, 4)}, transposable=True)
    assert list(lie.find_broken()) == ["b"]
    with pytest.raises(PatternError, match=r"m: the mask of b .* along both axes"):
        lie.check_strict("m")


def test_files_that_do_not_say_it_are_not_transposable_and_no_other_word_is_taken(tmp_path):
    path = tmp_path / "m.safetensors"
    MaskSet.from_arrays(TWO_FOUR, {"a": TWO_FOUR.top(np.ones((4, 4)))}).save(path)
    assert not MaskSet.load(path).transposable
    with safe_open(path, "np") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "transposable" not in metadata
    save_file(tensors, path, metadata=metadata | {"transposable": "perhaps"})
    with pytest.raises(FormatError, match="`transposable` is 'perhaps'"):
        MaskSet.load(path)

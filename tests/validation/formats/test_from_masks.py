"""Mask files have to hold the pattern that they claim."""

from __future__ import annotations

import numpy as np
import pytest

from maskpro_deploy.errors import FormatError
from maskpro_deploy.masks import MaskSet
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.validation import validate

TWO_FOUR = NMPattern(2, 4)


def mask_set(mask):
    return MaskSet(pattern=TWO_FOUR, packed={"a.weight": np.packbits(mask)}, shapes={"a.weight": mask.shape})


@pytest.mark.parametrize("name", ["masks.safetensors", "another-name.safetensors"])
def test_a_mask_file_is_known_by_name_or_content(tmp_path, name):
    mask_set(TWO_FOUR.top(np.random.default_rng(0).random((6, 20)))).save(tmp_path / name)
    report = validate(tmp_path / name)
    assert report.holds
    assert (report.kind, report.pattern, report.tensors[0].groups) == ("masks", TWO_FOUR, 30)


@pytest.mark.parametrize("seed", range(10))
def test_one_flipped_bit_is_found(tmp_path, seed):
    rng = np.random.default_rng(seed)
    mask = TWO_FOUR.top(rng.random((6, 20)))
    at = tuple(rng.integers((6, 20)))
    mask[at] ^= True
    mask_set(mask).save(tmp_path / "masks.safetensors")
    report = validate(tmp_path / "masks.safetensors")
    assert not report.holds
    assert report.tensors[0].first == ((int(at[0]), int(at[1] - at[1] % 4)),)


def test_a_file_that_only_bears_the_name_is_refused(tmp_path):
    (tmp_path / "masks.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(FormatError, match="not a mask file"):
        validate(tmp_path / "masks.safetensors")

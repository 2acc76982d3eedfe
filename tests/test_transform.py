"""Changes of basis: what they do to a tensor, what they refuse, and their way through a file."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from maskpro_deploy.errors import FormatError, InputError
from maskpro_deploy.transform import Place, Transform, combine, read_transform

RANDOM = np.random.default_rng(0)


def rotation(parts: int, size: int) -> npt.NDArray[np.float32]:
    return np.linalg.qr(RANDOM.standard_normal((parts, size, size)))[0].astype(np.float32)


def permutations(parts: int, size: int) -> npt.NDArray[np.int32]:
    return np.stack([RANDOM.permutation(size) for _ in range(parts)]).astype(np.int32)


def of(basis: npt.NDArray[Any], **places: int) -> Transform:
    return Transform(bases={"b": basis}, places={name: (Place(axis, "b"),) for name, axis in places.items()})


def test_a_channel_is_the_old_one_at_its_entry() -> None:
    weight = RANDOM.standard_normal((6, 8)).astype(np.float32)
    order = permutations(1, 8)
    assert np.array_equal(of(order, w=1).apply("w", weight), weight[:, order[0]])
    order = permutations(1, 6)
    assert np.array_equal(of(order, w=0).apply("w", weight), weight[order[0]])


def test_every_part_is_changed_once_for_each_head_that_shares_it() -> None:
    order = permutations(2, 4)  # two key/value heads of four channels, three query heads for each
    weight = RANDOM.standard_normal((5, 24)).astype(np.float32)
    moved = of(order, w=1).apply("w", weight).reshape(5, 2, 3, 4)
    for part in range(2):
        for head in range(3):
            assert np.array_equal(moved[:, part, head], weight.reshape(5, 2, 3, 4)[:, part, head][:, order[part]])


@pytest.mark.parametrize("basis", [permutations(2, 4), rotation(2, 4)], ids=["permutation", "rotation"])
def test_outputs_and_inputs_in_one_basis_multiply_to_the_same(basis: npt.NDArray[Any]) -> None:
    value = RANDOM.standard_normal((8, 10)).astype(np.float32)  # (K D, in)
    output = RANDOM.standard_normal((7, 16)).astype(np.float32)  # (out, K R D) with R = 2
    both = of(basis, value=0, output=1)

    def product(value: npt.NDArray[Any], output: npt.NDArray[Any]) -> npt.NDArray[Any]:
        repeated = np.repeat(value.reshape(2, 1, 4, 10), 2, axis=1).reshape(16, 10)
        result: npt.NDArray[Any] = output @ repeated
        return result

    moved = product(both.apply("value", value), both.apply("output", output))
    assert np.allclose(moved, product(value, output), atol=1e-5)
    assert not np.allclose(both.apply("value", value), value)


def test_permuted_values_keep_their_bits_and_dtype() -> None:
    weight = np.arange(16, dtype=np.float16).reshape(2, 8)
    moved = of(permutations(1, 8), w=1).apply("w", weight)
    assert moved.dtype == np.float16
    assert np.array_equal(np.sort(moved, axis=1), weight)
    assert moved.flags.c_contiguous


def test_tensors_without_a_place_and_no_change_at_all() -> None:
    weight = RANDOM.standard_normal((2, 8))
    assert np.array_equal(of(permutations(1, 8), w=1).apply("other", weight), weight)
    assert not Transform()
    assert Transform().sha256() == ""
    assert np.array_equal(Transform().apply("w", weight), weight)


def test_several_changes_as_one() -> None:
    rows, columns = permutations(1, 6), permutations(1, 8)
    first = Transform(bases={"r": rows}, places={"w": (Place(0, "r"),)})
    second = Transform(bases={"c": columns}, places={"w": (Place(1, "c"),), "v": (Place(0, "c"),)})
    weight = RANDOM.standard_normal((6, 8))
    assert np.array_equal(combine([first, second]).apply("w", weight), weight[rows[0]][:, columns[0]])


def test_what_is_read_is_what_was_described() -> None:
    made = combine([of(permutations(2, 4), v=0, o=1)])
    again = read_transform(made.describe_places(), made.bases, "file")
    assert again.places == made.places
    assert again.sha256() == made.sha256() != ""


def test_another_order_has_another_hash() -> None:
    one, other = of(np.array([[0, 1, 2, 3]], np.int32), w=1), of(np.array([[1, 0, 2, 3]], np.int32), w=1)
    assert one.sha256() != other.sha256()


@pytest.mark.parametrize(
    ("places", "basis"),
    [
        ("[]", permutations(1, 4)),
        ("{", permutations(1, 4)),
        (json.dumps({"w": [[1]]}), permutations(1, 4)),
        (json.dumps({"w": [[2, "b"]]}), permutations(1, 4)),
        (json.dumps({"w": [[1, "c"]]}), permutations(1, 4)),
        (json.dumps({"w": [[1, "b"]]}), np.array([[0, 0, 1, 2]], np.int32)),
        (json.dumps({"w": [[1, "b"]]}), np.array([0, 1], np.int32)),
        (json.dumps({"w": [[1, "b"]]}), 2 * rotation(1, 4)),
        (json.dumps({"w": [[1, "b"]]}), np.full((1, 2, 2), np.nan, np.float32)),
    ],
)
def test_damage_is_refused(places: str, basis: npt.NDArray[Any]) -> None:
    with pytest.raises(FormatError, match="file has a damaged change of basis"):
        read_transform(places, {"b": basis}, "file")


def test_a_model_that_it_does_not_fit_is_refused() -> None:
    transform = of(permutations(1, 8), w=1)
    transform.check_fits({"w": (3, 16)}, "masks", "model")
    with pytest.raises(InputError, match="needs a multiple of 8 channels of w, which has axis 1 of"):
        transform.check_fits({"w": (3, 12)}, "masks", "model")
    with pytest.raises(InputError, match="no such tensor"):
        transform.check_fits({}, "masks", "model")

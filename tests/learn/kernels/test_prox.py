"""The proximal step against its definition: no other point has a lower objective."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from maskpro_deploy.learn.kernels.prox import objective, prox, regulariser


def minimise(y: npt.NDArray[np.float64], strength: float, starts: int = 60) -> npt.NDArray[np.float64]:
    """The least objective that coordinate descent finds from many starts.  # (4, G) -> (G,)"""
    rng, size = np.random.default_rng(0), np.abs(y)
    best = np.full(y.shape[1], np.inf)
    for _ in range(starts):
        w = rng.uniform(0, 1.1, y.shape) * size * rng.integers(0, 2, y.shape)
        order = rng.permutation(4)
        for _ in range(200):
            for i in order:
                a, b, c = (w[j] for j in range(4) if j != i)
                w[i] = np.maximum(size[i] - strength * (a * b + b * c + c * a), 0)
        found = 0.5 * np.square(w - size).sum(0)
        for i in range(4):
            found += strength * np.delete(w, i, axis=0).prod(0)
        best = np.minimum(best, found)
    return best


@pytest.mark.parametrize(("strength", "scale"), [(0.25, 0.05), (0.25, 1.0), (1.0, 1.0), (4.0, 0.5)])
def test_no_point_is_better(strength: float, scale: float) -> None:
    y = torch.randn(4, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale
    w = prox(y, strength)
    gap = objective(w, y, strength).numpy() - minimise(y.numpy(), strength)
    assert gap.max() < 1e-4 * scale**2
    assert bool((w * y >= 0).all())  # signs stay
    assert bool((w.abs() <= y.abs()).all())


def test_at_most_two_weights_stay_as_they_are_and_all_others_shrink() -> None:
    y = torch.randn(4, 200, generator=torch.Generator().manual_seed(2))
    two = y * (torch.arange(4)[:, None] < 2)
    assert torch.equal(prox(two, 0.3), two)
    assert float(regulariser(two).max()) == 0
    assert bool((regulariser(prox(y, 0.3)) < regulariser(y)).all())
    assert torch.equal(prox(torch.zeros(4, 8), 0.3), torch.zeros(4, 8))


def test_a_strong_step_leaves_the_two_largest() -> None:
    y = torch.randn(4, 200, generator=torch.Generator().manual_seed(3)) + 3
    w = prox(y, 100.0)
    assert bool(((w != 0).sum(0) == 2).all())
    assert torch.equal(w[w != 0], y[w != 0])
    kept = torch.where(w != 0, y.abs(), torch.inf).amin(0)
    assert bool((kept >= torch.where(w == 0, y.abs(), 0).amax(0)).all())


def test_precision_and_the_place_in_the_group_do_not_matter() -> None:
    y = torch.randn(4, 500, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    w = prox(y, 0.5)
    torch.testing.assert_close(prox(y.float(), 0.5).double(), w, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(objective(prox(y.flip(0), 0.5), y.flip(0), 0.5), objective(w, y, 0.5), atol=1e-6, rtol=1e-6)

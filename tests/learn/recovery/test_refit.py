"""Masked least squares: the solution is the one of a direct solver, row by row on the kept columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskpro_deploy.learn.recovery.refit import refit
from maskpro_deploy.pattern import NMPattern

OUTPUTS, INPUTS, TOKENS = 12, 32, 200


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight and mask (O, C), what the layer sees (C, n), and what its outputs ought to be (O, n)."""
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.standard_normal((OUTPUTS, INPUTS)).astype(np.float32))
    mask = torch.from_numpy(NMPattern(2, 4).top(np.abs(weight.numpy())))
    mixed = rng.standard_normal((INPUTS, INPUTS)) @ rng.standard_normal((INPUTS, TOKENS))  # correlated inputs
    x = torch.from_numpy(mixed.astype(np.float32))
    return weight, mask, x, weight @ x + torch.from_numpy(rng.standard_normal((OUTPUTS, TOKENS)).astype(np.float32))


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_the_refit_is_the_least_squares_solution_on_the_kept_columns(damping: float) -> None:
    weight, mask, x, y = problem(0)
    found = refit(weight, mask, x @ x.t(), y @ x.t(), damping=damping, iterations=200)
    shift = damping * float((x @ x.t()).diagonal().mean())
    for row in range(OUTPUTS):
        kept = mask[row].numpy()
        columns = x.numpy()[kept].T  # (n, kept)
        ridge = np.sqrt(shift) * np.eye(int(kept.sum()))
        target = np.concatenate([y[row].numpy(), np.sqrt(shift) * weight[row].numpy()[kept]])
        expected, *_ = np.linalg.lstsq(np.concatenate([columns, ridge]), target, rcond=None)
        assert found[row].numpy()[kept] == pytest.approx(expected, rel=2e-3, abs=2e-4)


def test_what_is_not_kept_is_plus_zero_and_every_iteration_helps() -> None:
    weight, mask, x, y = problem(1)
    errors = []
    for iterations in (0, 1, 3, 10, 30):
        found = refit(weight, mask, x @ x.t(), y @ x.t(), damping=0.0, iterations=iterations)
        assert torch.equal(found != 0, mask)
        assert not torch.signbit(found[~mask]).any()
        errors.append(float((found @ x - y).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


def test_inputs_that_were_always_zero_leave_their_weights() -> None:
    weight, mask, x, y = problem(2)
    x[:8] = 0
    found = refit(weight, mask, x @ x.t(), y @ x.t())
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:, :8], torch.where(mask, weight, 0.0)[:, :8], atol=1e-5)

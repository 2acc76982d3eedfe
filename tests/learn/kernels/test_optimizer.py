"""Logits in few bytes: what the roundings cost, and that they lose nothing on average."""

from __future__ import annotations

import math

import pytest
import torch

from maskpro_deploy.learn.kernels.optimizer import NOISE, LogitOptimizer, move, noise, round_to_half


def update(optimizer: LogitOptimizer, logits: torch.Tensor, grad: torch.Tensor, key: int) -> None:
    moments = optimizer.part("a", logits, slice(0, logits.shape[1]))
    dither = noise((logits.shape[0], logits.shape[1]), key, logits.device)
    move(logits, moments, grad, dither, optimizer.scale, kept=2, betas=optimizer.betas)


def spread_noise(count: int) -> torch.Tensor:
    return (torch.arange(count) * 2654435761 % 8192).int()


@pytest.mark.parametrize("value", [0.1, -0.1, 3.14159, -7.77, 1e-3, 20.001])
def test_rounding_is_unbiased_and_to_a_neighbour(value: float) -> None:
    rounded = round_to_half(torch.full((8192,), value), spread_noise(8192)).double()
    step = 2.0 ** (math.floor(math.log2(abs(value))) - 10)
    assert float((rounded - value).abs().max()) < step * 1.0001
    assert float(rounded.mean()) == pytest.approx(value, abs=0.01 * step)


def test_what_a_float16_holds_stays() -> None:
    values = torch.tensor([0.0, 1.0, -0.5, 1024.0, 65504.0]).clamp_max(60000)
    assert torch.equal(
        round_to_half(values.half().float(), torch.tensor([0, 8191, 4000, 8191, 1], dtype=torch.int32)), values.half()
    )


def test_large_logits_end_inside_the_range() -> None:
    rounded = round_to_half(torch.tensor([1e9, -1e9]), torch.tensor([8191, 8191], dtype=torch.int32))
    assert torch.isfinite(rounded).all()


def test_it_moves_logits_as_adam_in_full_precision_does() -> None:
    torch.manual_seed(0)
    optimizer, logits = LogitOptimizer(), torch.zeros(4, 4096, dtype=torch.float16)
    exact, first, second = (torch.zeros(4, 4096, dtype=torch.float64) for _ in range(3))
    scales = torch.logspace(-9, 0, 4096)
    direction = torch.randn(4, 4096)
    for step in range(1, 21):
        grad = (direction + torch.randn(4, 4096)) * scales
        grad -= grad.mean(0)  # as those of a mask's logits are
        optimizer.begin(0.1)
        update(optimizer, logits, grad.clone(), key=step * 12345)
        first = 0.9 * first + 0.1 * grad.double()
        second = 0.95 * second + 0.05 * grad.double().square()
        exact -= 0.1 * (first / (1 - 0.9**step)) / (second / (1 - 0.95**step)).sqrt().clamp_min(1e-12)
    error = ((logits.double() - logits.double().mean(0)) - (exact - exact.mean(0))).abs()
    assert float(error.mean()) < 0.02 * float(exact.abs().mean())
    assert float(error.max()) < 0.15


def test_small_steps_are_not_lost() -> None:
    optimizer, logits = LogitOptimizer(), torch.tensor([16.0, 16.0, -16.0, -16.0]).half()[:, None].repeat(1, 4096)
    for step in range(100):
        optimizer.begin(1e-4)  # a float16 at 16 has steps of 0.0156
        update(optimizer, logits, torch.tensor([1.0, 1, -1, -1])[:, None].repeat(1, 4096), key=step * 7919)
    assert float(logits[0].double().mean()) == pytest.approx(16 - 100e-4, rel=0.0001)


def test_the_state_is_five_bytes_a_weight() -> None:
    optimizer, logits = LogitOptimizer(), torch.zeros(4, 4096, dtype=torch.float16)
    optimizer.begin(0.1)
    update(optimizer, logits, torch.randn(4, 4096), key=0)
    state = sum(t.nbytes for t in optimizer.tensors().values()) + logits.nbytes
    assert state == 5 * logits.numel()  # three masks of one bit each come on top: current, prior, best


def test_zero_gradients_move_nothing_and_give_numbers() -> None:
    optimizer, logits = LogitOptimizer(), torch.tensor([1.0, 0.5, -0.5, -1.0]).half()[:, None].repeat(1, 4096)
    before = logits.clone()
    optimizer.begin(0.1)
    update(optimizer, logits, torch.zeros(4, 4096), key=NOISE * 3 + 5)
    assert torch.equal(logits, before)

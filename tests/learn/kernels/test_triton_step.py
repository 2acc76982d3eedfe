"""The GPU's kernels do what torch's operations do. Without a GPU Triton's interpreter runs them, slowly."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.distributions.planes import apply_mask, centre, pack, top_of_centred, unpack
from maskpro_deploy.learn.kernels import triton_step
from maskpro_deploy.learn.kernels.contract import ByOperations, Chunk
from maskpro_deploy.learn.kernels.optimizer import LogitOptimizer, Moments, noise
from maskpro_deploy.learn.kernels.site_step import ByChunks, chunk_step
from maskpro_deploy.learn.kernels.triton_step import TritonStep, find_differences
from maskpro_deploy.learn.model.sites import Site
from maskpro_deploy.pattern import NMPattern

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported
kernels = pytest.importorskip(
    "maskpro_deploy.learn.kernels.triton_kernels", exc_type=ImportError, reason="Triton is not installed"
)

BETAS = (0.9, 0.95)
PATTERNS = ["1:2", "1:4", "2:4", "3:4", "1:8"]
FEW = settings(max_examples=12, deadline=None)


class State:
    """Groups in the middle of a run."""

    def __init__(self, pattern: NMPattern, groups: int, seed: int = 0, spread: float = 6.0) -> None:
        torch.manual_seed(seed)
        shape = (pattern.m, groups)
        self.pattern = pattern
        self.grad = torch.randn(pattern.m * groups).mul_(1e-5).to(DEVICE)
        self.weight = torch.randn(pattern.m * groups).to(DEVICE)
        self.logits = centre(torch.randn(shape) * spread, pattern.n).clamp_(-60000, 60000).half().to(DEVICE)
        first = torch.randint(-127, 128, shape, dtype=torch.int8)
        self.moments = Moments(first.to(DEVICE), (torch.rand(shape) * 1e-9).bfloat16().to(DEVICE))

    def after(self, key: int = 1 << 40, scale: float = 0.1) -> torch.Tensor:
        step = TritonStep(self.pattern, kernels)
        return step.move(self.grad, self.weight, self.logits, self.moments, key, scale, BETAS)

    def after_operations(self, scale: float = 0.1) -> torch.Tensor:
        step = ByOperations(conditional_bernoulli(self.pattern, DEVICE))
        dither = noise((self.logits.shape[0], self.logits.shape[1]), 0, DEVICE)
        return step(Chunk(self.grad, self.weight, self.logits, self.moments, dither, scale, BETAS))


@pytest.mark.parametrize("text", PATTERNS)
def test_it_agrees_with_the_operations(text: str) -> None:
    pattern = NMPattern.parse(text)
    assert (
        find_differences(TritonStep(pattern, kernels), pattern, ByOperations(conditional_bernoulli(pattern, DEVICE)), DEVICE)
        == ""
    )


def test_a_kernel_that_is_wrong_is_found_out() -> None:
    pattern = NMPattern(2, 4)
    step = TritonStep(pattern, kernels)
    step._constants["CODES"] ^= 0b11
    assert "logits" in find_differences(step, pattern, ByOperations(conditional_bernoulli(pattern, DEVICE)), DEVICE)


@FEW
@given(
    text=st.sampled_from(PATTERNS),
    groups=st.integers(1, 700),
    spread=st.sampled_from([0.0, 0.1, 6.0, 40.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_masks_are_exact_and_those_of_the_logits(text: str, groups: int, spread: float, seed: int) -> None:
    pattern = NMPattern.parse(text)
    state, other = State(pattern, groups, seed, spread), State(pattern, groups, seed, spread)
    bits = state.after()
    other.after_operations()
    assert torch.equal(bits, pack(top_of_centred(state.logits, pattern.n)))
    assert (unpack(bits, pattern.m * groups).view(groups, pattern.m).sum(1) == pattern.n).all()
    assert torch.allclose(state.logits.float(), other.logits.float(), rtol=2**-9, atol=1e-5)


def test_the_key_alone_decides_on_the_roundings() -> None:
    runs = []
    for key in (5, 5, 6):
        state = State(NMPattern(2, 4), 300)
        state.after(key)
        runs.append(state.logits)
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_small_steps_are_not_lost_on_average() -> None:
    state = State(NMPattern(2, 4), 2000)
    state.logits.fill_(0).add_(torch.tensor([3.0, 2.0, -2.0, -3.0], dtype=torch.float16)[:, None].to(DEVICE))
    state.moments.first.zero_()
    state.moments.second.fill_(1e-30)
    state.grad = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(2000).to(DEVICE)
    state.weight.fill_(1)
    before = state.logits.float()
    state.after(scale=1e-3)  # a quarter of a float16's step there
    moved = (state.logits.float() - before)[0] - (state.logits.float() - before)[1]
    one = 1e-3 * 0.1 / (1 - 0.95) ** 0.5  # Adam's first step, without its correction
    assert abs(float(moved.mean()) + 2 * one) < 0.2 * one  # the other kept weight moves as far the other way


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_what_is_no_number_is_not_hidden() -> None:
    state = State(NMPattern(2, 4), 64)
    state.grad[17] = float("nan")
    state.after()
    assert not torch.isfinite(state.logits).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 8), (5, 12), (40, 64)])
def test_a_masked_weight(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape).to(DEVICE, dtype)
    bits = torch.randint(0, 256, (-(-weight.numel() // 8),), dtype=torch.uint8).to(DEVICE)
    found = triton_step._apply_mask(kernels, weight, bits)
    assert torch.equal(found, apply_mask(weight, bits))
    assert not torch.signbit(found[found == 0]).any()


def test_a_site_moves_as_a_whole() -> None:
    pattern = NMPattern(2, 4)
    family = conditional_bernoulli(pattern, DEVICE)
    sites = []
    for step in (TritonStep(pattern, kernels), ByChunks(chunk_step(family, DEVICE))):
        torch.manual_seed(3)
        site = Site("layer.weight", torch.nn.Linear(32, 24, bias=False).to(DEVICE), family, torch.randn(4, 192).to(DEVICE))
        optimizer = LogitOptimizer()
        optimizer.begin(0.1)
        step(optimizer, site, torch.randn(24, 32).to(DEVICE) * 1e-4, 7)
        assert torch.equal(site.kept, site.argmax())
        sites.append(site.logits.float())
    assert torch.allclose(*sites, rtol=2**-9, atol=1e-5)


def test_without_kernels_that_work_it_goes_operation_by_operation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = NMPattern(2, 4)
    family = conditional_bernoulli(pattern, DEVICE)
    other = ByChunks(chunk_step(family, DEVICE))
    triton_step.load.cache_clear()
    try:
        assert triton_step.triton_step(pattern, other, ByOperations(family), DEVICE).moved_by == "triton"
        assert triton_step.triton_step(NMPattern(4, 8), other, ByOperations(family), DEVICE) is other
        assert not caplog.messages

        def fails(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no compiler\nwas found")

        monkeypatch.setattr(TritonStep, "move", fails)
        assert triton_step.triton_step(pattern, other, ByOperations(family), DEVICE) is other
        assert "does not work here (no compiler was found)" in caplog.text
    finally:
        triton_step.load.cache_clear()

"""The step of kept weights in native code is the step operation by operation.

A machine without any C compiler skips this; on one with a compiler nothing here passes by falling back.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions.planes import pack, top
from maskpro_deploy.learn.kernels import native_code as native
from maskpro_deploy.learn.kernels.kept_weights import KeptByOperations, KeptChunk, KeptState, KeptStep
from maskpro_deploy.learn.kernels.optimizer import Moments, noise
from maskpro_deploy.learn.kernels.weight_step import kept_step
from maskpro_deploy.pattern import NMPattern

CPU = torch.device("cpu")
PATTERNS = ["1:2", "1:4", "2:4", "3:4", "1:8", "7:8", "2:3", "1:5", "4:8", "3:7", "1:16", "8:16", "15:16"]

pytestmark = pytest.mark.skipif(native._compiler() is None, reason="there is no C compiler on this machine")


def native_step(text: str) -> KeptStep:
    step = kept_step(NMPattern.parse(text), CPU)
    assert step.moved_by == "native"  # it did not fall back
    return step


class State:
    """Groups in the middle of a run: some of all those of a layer, as a chunk is."""

    def __init__(
        self, text: str, groups: int, dtype: torch.dtype, *, grad: torch.dtype | None = None, flips: bool = True, seed: int = 0
    ) -> None:
        self.pattern = pattern = NMPattern.parse(text)
        generator = torch.Generator().manual_seed(seed)
        n, m, before, after = pattern.n, pattern.m, 8, 5
        shape, chunk = (n, before + groups + after), slice(before, before + groups)
        self.all_weights = torch.randn(shape[1], m, generator=generator).to(dtype)
        first = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        second = torch.rand(shape, generator=generator).mul_(1e-9).bfloat16()
        low = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        self.all_state = KeptState(Moments(first, second), low if dtype == torch.bfloat16 else None)
        self.weight, self.state = self.all_weights[chunk], self.all_state.part(chunk)
        self.grad = torch.randn(groups, m, generator=generator).mul_(1e-5).to(grad or dtype)
        masks = [pack(top(torch.randn(m, groups, generator=generator), n)) for _ in range(2)]
        self.under, self.after_it = masks[0], masks[1] if flips else None
        self.outside = torch.ones(shape[1], dtype=torch.bool)
        self.outside[chunk] = False
        self.dither = noise((n, groups), seed, CPU)

    def take(self, step: KeptStep) -> None:
        chunk = (self.grad, self.weight, self.under, self.after_it, self.state, self.dither)
        step(KeptChunk(*chunk, 3e-3, 1e-3, (0.9, 0.95)))

    def everything(self) -> list[torch.Tensor]:
        return [self.all_weights.t(), *self.all_state.tensors().values()]


def check_equal(one: State, other: State) -> None:
    few = 3 + one.weight.numel() / 500  # sums that lie on the edge between two numbers
    steps = one.weight.float() - other.weight.float()
    assert float((steps.abs() / (other.weight.float().abs() + 3e-3)).max()) < (
        2**-7 if one.weight.dtype == torch.bfloat16 else 1e-6
    )
    if one.weight.dtype == torch.bfloat16:
        assert int((steps != 0).sum()) <= few
        assert one.state.low is not None
        assert other.state.low is not None
        apart = (one.state.low.int() - other.state.low.int()).abs()
        assert int((apart > 0).sum()) <= few
        assert int(((apart > 1) & (apart < 255)).sum()) <= 2  # by one, or by one around the byte's end; else near zero
    for a, b in zip(one.state.tensors().values(), other.state.tensors().values(), strict=True):
        assert int((a != b).sum()) <= few
    assert int((one.state.moments.first.int() - other.state.moments.first.int()).abs().max()) <= 1
    assert torch.allclose(one.state.moments.second.float(), other.state.moments.second.float(), rtol=2**-7, atol=0)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("flips", [True, False])
def test_it_does_what_torch_does(text: str, dtype: torch.dtype, flips: bool) -> None:
    one, other = (State(text, 1003, dtype, flips=flips) for _ in range(2))
    untouched = [x[:, one.outside].clone() for x in one.everything()]
    before = one.weight.clone()
    one.take(native_step(text))
    other.take(KeptByOperations())
    check_equal(one, other)
    assert float((one.weight != before).float().mean()) > 0.2 * one.pattern.n / one.pattern.m
    assert all(torch.equal(a, b[:, one.outside]) for a, b in zip(untouched, one.everything(), strict=True))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(PATTERNS), st.integers(1, 700), st.integers(0, 1 << 30), st.sampled_from([torch.bfloat16, torch.float32]))
def test_any_number_of_groups(text: str, groups: int, seed: int, dtype: torch.dtype) -> None:
    one, other = (State(text, groups, dtype, seed=seed) for _ in range(2))
    one.take(native_step(text))
    other.take(KeptByOperations())
    check_equal(one, other)


def test_a_gradient_may_be_finer_than_the_weight() -> None:
    one, other = (State("2:4", 500, torch.bfloat16, grad=torch.float32) for _ in range(2))
    one.take(native_step("2:4"))
    other.take(KeptByOperations())
    check_equal(one, other)
    coarse = State("2:4", 500, torch.bfloat16, grad=torch.bfloat16)
    coarse.take(native_step("2:4"))
    assert not torch.equal(one.state.moments.second, coarse.state.moments.second)


@pytest.mark.parametrize("openmp", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_threads_and_flushing_change_no_bit(openmp: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:  # where torch has another one, Python's threads do it
        monkeypatch.setattr(native, "_openmp", lambda: None)
    elif native._openmp() is None:
        pytest.skip("torch has no GNU OpenMP here")
    groups, before, results = 5 * native._THREAD_WEIGHTS // 4 + 3, torch.get_num_threads(), []
    try:
        for threads, flushed in ((1, False), (2, False), (3, True), (1, True)):
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushed)
            state = State("2:4", groups, dtype)
            state.grad.mul_(1e-15)
            state.take(native_step("2:4"))
            results.append(state.everything())
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_what_it_has_no_way_for_goes_to_torch() -> None:
    assert kept_step(NMPattern(1, 32), CPU).moved_by == "torch"
    one, other = (State("2:4", 64, torch.bfloat16) for _ in range(2))
    for state in (one, other):
        state.grad = state.grad.t().contiguous().t()  # strided
    one.take(native_step("2:4"))
    other.take(KeptByOperations())
    assert all(torch.equal(a, b) for a, b in zip(one.everything(), other.everything(), strict=True))

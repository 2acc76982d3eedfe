"""The step of the logits in native code is the step operation by operation.

A machine without any C compiler skips this; on one with a compiler nothing here passes by falling back.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.distributions.planes import centre, pack, top_of_centred, unpack
from maskpro_deploy.learn.kernels import native_code as native
from maskpro_deploy.learn.kernels.contract import ByOperations, Chunk, ChunkStep
from maskpro_deploy.learn.kernels.native_step import NativeStep
from maskpro_deploy.learn.kernels.optimizer import Moments, noise
from maskpro_deploy.learn.kernels.site_step import ByChunks, chunk_step, warn_if_moved_otherwise
from maskpro_deploy.pattern import NMPattern

CPU = torch.device("cpu")
BETAS = (0.9, 0.95)
PATTERNS = ["1:2", "1:4", "2:4", "3:4", "1:8", "7:8", "2:3", "1:5", "4:8", "3:7", "1:16", "8:16"]

needs_compiler = pytest.mark.skipif(native._compiler() is None, reason="there is no C compiler on this machine")


def native_step(text: str) -> NativeStep:
    step = chunk_step(conditional_bernoulli(NMPattern.parse(text)), CPU)
    assert isinstance(step, NativeStep)  # it did not fall back
    return step


class State:
    """Groups in the middle of a run: some of all those of a layer, as a chunk is."""

    def __init__(self, text: str, groups: int, dtype: torch.dtype, spread: float = 6.0, seed: int = 0) -> None:
        self.pattern = pattern = NMPattern.parse(text)
        generator = torch.Generator().manual_seed(seed)
        m, before, after = pattern.m, 8, 5
        shape = (m, before + groups + after)
        self.grad = torch.randn(m * groups, generator=generator).mul_(1e-5).to(dtype)
        self.weight = torch.randn(m * groups, generator=generator).to(dtype)
        logits = centre(torch.randn(shape, generator=generator) * spread, pattern.n)
        self.all_logits = logits.clamp_(-60000, 60000).half()
        first = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        second = torch.rand(shape, generator=generator).mul_(1e-9).bfloat16()
        self.all_moments = Moments(first, second)
        chunk = slice(before, before + groups)
        self.logits, self.moments = self.all_logits[:, chunk], Moments(first[:, chunk], second[:, chunk])
        self.outside = torch.ones(shape[1], dtype=torch.bool)
        self.outside[chunk] = False
        self.dither = noise((m, groups), seed, CPU)

    def after(self, step: ChunkStep, scale: float = 0.1) -> torch.Tensor:
        return step(Chunk(self.grad, self.weight, self.logits, self.moments, self.dither, scale, BETAS))

    def after_torch(self, scale: float = 0.1) -> torch.Tensor:
        """Operation by operation; products in float32, which native code does not round to bfloat16."""
        self.grad, self.weight = self.grad.float(), self.weight.float()
        return self.after(ByOperations(conditional_bernoulli(self.pattern)), scale)


def steps_apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How many float16 lie between; those around zero count as one."""
    ordered = [torch.where(x < 0, -(x & 0x7FFF), x) for x in (a.view(torch.int16).int(), b.view(torch.int16).int())]
    return (ordered[0] - ordered[1]).abs()


def check_equal(one: State, other: State, bits: torch.Tensor) -> None:
    m, n = one.pattern.m, one.pattern.n
    few = 3 + one.logits.numel() / 500  # sums that lie on the edge between two numbers
    for a, b in ((one.logits, other.logits), (one.moments.second.view(torch.float16), other.moments.second.view(torch.float16))):
        distance = steps_apart(a.contiguous(), b.contiguous())
        near_zero = (a.float() - b.float()).abs() < 1e-6  # differences of large numbers: their own last bits, not the result's
        assert int((distance > 0).sum()) <= few
        assert ((distance <= 1) | near_zero).all()
    assert int((one.moments.first.int() - other.moments.first.int()).abs().max()) <= 1
    kept = unpack(bits, one.logits.numel()).view(-1, m)
    assert (kept.sum(1) == n).all()
    assert torch.equal(bits, pack(top_of_centred(one.logits.contiguous(), n)))  # ties and all


@needs_compiler
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("spread", [0.1, 6.0, 40.0, 30000.0])
def test_it_does_what_torch_does(text: str, dtype: torch.dtype, spread: float) -> None:
    one, other = State(text, 1003, dtype, spread), State(text, 1003, dtype, spread)
    untouched = [t[:, one.outside].clone() for t in (one.all_logits, one.all_moments.first, one.all_moments.second)]
    bits = one.after(native_step(text))
    other.after_torch()
    check_equal(one, other, bits)
    now = [t[:, one.outside] for t in (one.all_logits, one.all_moments.first, one.all_moments.second)]
    assert all(torch.equal(a, b) for a, b in zip(untouched, now, strict=True))


@needs_compiler
@settings(deadline=None, max_examples=30)
@given(st.sampled_from(PATTERNS), st.integers(1, 700), st.integers(0, 1 << 30), st.sampled_from([torch.bfloat16, torch.float32]))
def test_any_number_of_groups(text: str, groups: int, seed: int, dtype: torch.dtype) -> None:
    one, other = State(text, groups, dtype, seed=seed), State(text, groups, dtype, seed=seed)
    bits = one.after(native_step(text))
    other.after_torch()
    check_equal(one, other, bits)


@needs_compiler
@pytest.mark.parametrize("text", ["1:2", "2:4", "3:4", "1:8", "2:8", "4:8", "3:10"])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_its_gradient_is_the_covariance_by_enumeration(text: str, spread: float) -> None:
    """With no past, betas of 0 and logits at the finest of float16, a step is -scale * g / |g|: so the second moment is g²."""
    state = State(text, 500, torch.float32, spread)
    state.grad.mul_(1e5)
    state.moments.first.zero_()
    state.moments.second.zero_()
    logits, kept = state.logits.double(), torch.from_numpy(state.pattern.all_masks()).double()
    h = (state.grad.double() * state.weight.double()).view(-1, state.pattern.m).t()
    p = torch.softmax(kept @ logits, dim=0)
    along = kept @ h
    expected = kept.t() @ (p * (along - (p * along).sum(0)))
    native_step(text)(Chunk(state.grad, state.weight, state.logits, state.moments, state.dither, 0.0, (0.0, 0.5)))
    found = state.moments.second.double() * 2
    assert torch.allclose(found, expected**2, rtol=2.0**-8, atol=1e-12)


@needs_compiler
def test_ties_at_the_cut_are_resolved_as_torch_does() -> None:
    for text in PATTERNS:
        state = State(text, 999, torch.float32)
        values = torch.tensor([0.0, -0.0, 2.0**-24, -(2.0**-24), 2.0**-15, 1.0, -1.0])
        chosen = values[torch.randint(0, len(values), state.logits.shape, generator=torch.Generator().manual_seed(1))]
        state.logits.copy_(centre(chosen, state.pattern.n).half())
        state.grad.zero_()
        state.moments.first.zero_()
        bits = state.after(native_step(text))
        assert torch.equal(bits, pack(top_of_centred(state.logits.contiguous(), state.pattern.n)))
        assert (unpack(bits, state.logits.numel()).view(-1, state.pattern.m).sum(1) == state.pattern.n).all()


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_no_number_shows_in_the_logits_and_nowhere_else(dtype: torch.dtype, bad: float) -> None:
    one, other = State("2:4", 300, dtype), State("2:4", 300, dtype)
    one.grad[4 * 17 + 2] = other.grad[4 * 17 + 2] = bad
    one.after(native_step("2:4"))
    other.after_torch()
    finite = torch.isfinite(one.logits)
    assert not finite[:, 17].all()
    finite[:, 17] = True
    assert finite.all()
    assert not torch.isfinite(other.logits[:, 17]).all()
    payload = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)  # a NaN whose last bits carry when rounded
    state = State("2:4", 300, torch.float32)
    state.grad[0] = payload
    state.after(native_step("2:4"))
    assert torch.isnan(state.logits[:, 0]).any()


@needs_compiler
def test_logits_that_are_no_numbers_stay_so_and_zeros_move_nothing() -> None:
    state = State("2:4", 64, torch.float32)
    state.logits[1, 5] = float("nan")
    state.after(native_step("2:4"))
    assert torch.isnan(state.logits[1, 5])
    still = State("2:4", 64, torch.bfloat16)
    still.grad.zero_()
    still.moments.first.zero_()
    before = still.logits.clone()
    still.after(native_step("2:4"))
    assert (steps_apart(before, still.logits.contiguous()) <= 1).all()  # the cut is in the middle but for a rounding


@needs_compiler
def test_rounding_is_right_on_average() -> None:
    """One step from equal states, over many roundings: the mean of what is stored is what was to be stored."""
    groups, step = 1 << 14, native_step("1:2")
    state = State("1:2", groups, torch.float32)
    state.grad.fill_(1e-5)
    state.weight.view(-1, 2)[:] = torch.tensor([1.0, -1.0])
    state.moments.first.zero_()
    state.moments.second.zero_()
    state.logits.copy_(torch.tensor([[3.0], [-3.0]]))
    state.after(step, 1e-3)
    expected = 3.0 - 1e-3 * 0.1 / 0.05**0.5  # Adam's first step: (1 - beta1) g / sqrt((1 - beta2) g²)
    spacing = 2.0**-9  # of the float16 between 2 and 4
    found = state.logits[0].double()
    assert found.unique().tolist() == [3.0 - spacing, 3.0]
    assert abs(float(found.mean()) - expected) < 4 * spacing / (2 * groups**0.5)


@needs_compiler
@pytest.mark.parametrize("openmp", [True, False])
def test_threads_and_flushing_change_no_bit(openmp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not openmp:  # where torch has another one, Python's threads do it
        monkeypatch.setattr(native, "_openmp", lambda: None)
    elif native._openmp() is None:
        pytest.skip("torch has no GNU OpenMP here")
    groups, before, results = 5 * native._THREAD_WEIGHTS // 4 + 3, torch.get_num_threads(), []
    try:
        for threads, flushed in ((1, False), (2, False), (3, True), (1, True)):
            torch.set_num_threads(threads)
            torch.set_flush_denormal(flushed)
            state = State("2:4", groups, torch.bfloat16, spread=30.0)
            state.grad.mul_(1e-15)
            bits = state.after(native_step("2:4"))
            results.append((bits, state.logits, state.moments.first, state.moments.second))
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@needs_compiler
def test_what_it_has_no_way_for_goes_to_torch() -> None:
    assert ByChunks(chunk_step(conditional_bernoulli(NMPattern.parse("1:32")), CPU)).moved_by == "torch"
    one, other = State("2:4", 64, torch.float32), State("2:4", 64, torch.float32)
    one.grad, other.grad = (s.grad.double() for s in (one, other))
    one.weight, other.weight = (s.weight.double() for s in (one, other))
    assert torch.equal(one.after(native_step("2:4")), other.after(ByOperations(conditional_bernoulli(NMPattern(2, 4)))))
    assert torch.equal(one.logits, other.logits)


@needs_compiler
def test_gradients_finer_than_the_weights_keep_their_bits() -> None:
    fine, coarse = State("2:4", 5000, torch.float32), State("2:4", 5000, torch.float32)
    fine.weight = fine.weight.bfloat16()
    coarse.weight = fine.weight.float()
    assert torch.equal(fine.after(native_step("2:4")), coarse.after(native_step("2:4")))
    assert torch.equal(fine.logits, coarse.logits)


def test_a_run_that_goes_on_in_another_way_is_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_if_moved_otherwise("logits", "torch", "torch")
    warn_if_moved_otherwise("weights", None, "torch")
    assert not caplog.records
    warn_if_moved_otherwise("logits", "native", "torch")
    assert [r.getMessage() for r in caplog.records] == [
        "the logits were moved by native so far, from here on by torch: the last bits will differ."
    ]

"""A step as few kernels is the step operation by operation."""

from __future__ import annotations

import pytest
import torch

from maskpro_deploy.learn.distributions.conditional_bernoulli import conditional_bernoulli
from maskpro_deploy.learn.distributions.planes import centre, pack, top, unpack
from maskpro_deploy.learn.kernels.compiled import CompiledKeptStep, CompiledStep, covariance
from maskpro_deploy.learn.kernels.contract import ByOperations, Chunk, ChunkStep
from maskpro_deploy.learn.kernels.kept_weights import KeptByOperations, KeptChunk, KeptState
from maskpro_deploy.learn.kernels.optimizer import Moments, noise
from maskpro_deploy.pattern import NMPattern

CPU = torch.device("cpu")
BETAS = (0.9, 0.95)


def masks(pattern: NMPattern) -> tuple[tuple[bool, ...], ...]:
    return tuple(tuple(bool(x) for x in mask) for mask in pattern.all_masks())


@pytest.mark.parametrize("text", ["1:2", "1:4", "2:4", "3:4", "1:8"])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
def test_the_sum_over_masks_is_the_covariance(text: str, spread: float) -> None:
    torch.manual_seed(0)
    pattern = NMPattern.parse(text)
    logits = centre(torch.randn(pattern.m, 500, dtype=torch.float64) * spread, pattern.n)
    h = torch.randn(pattern.m, 500, dtype=torch.float64)
    kept = torch.from_numpy(pattern.all_masks()).double()  # (S, M)
    p = torch.softmax(kept @ logits, dim=0)  # (S, G)
    along = kept @ h
    expected = kept.t() @ (p * (along - (p * along).sum(0)))
    found = covariance(masks(pattern), logits, h)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-14)


class State:
    """Groups in the middle of a run."""

    def __init__(self, pattern: NMPattern, rows: int, columns: int) -> None:
        torch.manual_seed(rows)
        shape = (pattern.m, rows * columns // pattern.m)
        self.grad = torch.randn(rows * columns).mul_(1e-5).bfloat16()
        self.weight = torch.randn(rows * columns).bfloat16()
        self.logits = centre(torch.randn(shape) * 6, pattern.n).half()
        self.moments = Moments(torch.randint(-127, 128, shape, dtype=torch.int8), (torch.rand(shape) * 1e-9).bfloat16())
        self.dither = noise(shape, rows, CPU)

    def after(self, step: ChunkStep, scale: float) -> torch.Tensor:
        return step(Chunk(self.grad, self.weight, self.logits, self.moments, self.dither, scale, BETAS))


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:bf16 and fp16 are mixed:UserWarning")  # of the compiler
def test_compiled_it_does_the_same() -> None:
    pattern = NMPattern(2, 4)
    family = conditional_bernoulli(pattern)
    eager = ByOperations(family)

    class Refusing:
        moved_by = "nothing"

        def __call__(self, chunk: Chunk) -> torch.Tensor:
            raise AssertionError("it was not compiled")

    compiled = CompiledStep(pattern, Refusing())
    for rows, columns, scale in ((64, 96, 0.1), (32, 64, 0.05), (8, 24, 0.02)):  # other sizes and scales need no other code
        one, other = State(pattern, rows, columns), State(pattern, rows, columns)
        bits, expected = one.after(compiled, scale), other.after(eager, scale)
        # where a sum lies on the edge between two float16, its last bit decides: few do, and then by one step
        assert float((one.logits != other.logits).float().mean()) < 0.02
        assert torch.allclose(one.logits.float(), other.logits.float(), rtol=2e-3, atol=2e-3)
        assert int((one.moments.first.int() - other.moments.first.int()).abs().max()) <= 1
        assert torch.allclose(one.moments.second.float(), other.moments.second.float(), rtol=1e-2)
        assert float((bits != expected).float().mean()) < 0.02
        kept = unpack(bits, rows * columns).view(-1, pattern.m)
        assert (kept.sum(1) == pattern.n).all()


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")  # of the compiler
def test_compiled_kept_weights_move_the_same() -> None:
    refused: list[KeptChunk] = []
    step = CompiledKeptStep(refused.append)  # type: ignore[arg-type]
    for groups, scale in ((96, 3e-3), (200, 1e-3)):  # other sizes and scales need no other code
        chunks = []
        for _ in range(2):
            torch.manual_seed(groups)
            weight, grad = torch.randn(groups, 4).bfloat16(), torch.randn(groups, 4).bfloat16()
            first, low = (torch.randint(-127, 128, (2, groups), dtype=torch.int8) for _ in range(2))
            state = KeptState(Moments(first, torch.rand(2, groups).bfloat16()), low)
            under, after = (pack(top(torch.randn(4, groups), 2)) for _ in range(2))
            dither = noise((2, groups), groups, CPU)
            chunks.append(KeptChunk(grad, weight, under, after, state, dither, scale, 1e-4, BETAS))
        before = chunks[0].weight.clone()
        step(chunks[0])
        KeptByOperations()(chunks[1])
        assert not refused  # it was compiled
        one, other = ([c.weight.t(), *c.state.tensors().values()] for c in chunks)
        assert not torch.equal(chunks[0].weight, before)
        assert all(int((a != b).sum()) <= 2 for a, b in zip(one, other, strict=True))  # sums on the edge between two numbers
        assert torch.allclose(chunks[0].weight.float(), chunks[1].weight.float(), rtol=2**-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_shows_in_the_logits(bad: float) -> None:
    state = State(NMPattern(2, 4), 16, 16)
    state.grad[9] = bad
    state.after(ByOperations(conditional_bernoulli(NMPattern(2, 4))), 0.1)
    finite = torch.isfinite(state.logits)
    assert not finite[:, 2].any()
    finite[:, 2] = True
    assert finite.all()


def test_without_a_compiler_the_step_is_done_operation_by_operation(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pattern = NMPattern(1, 2)
    eager = ByOperations(conditional_bernoulli(pattern))
    step = CompiledStep(pattern, eager)

    def no_compiler(*_: object) -> torch.Tensor:
        raise RuntimeError("cannot find a working triton\ninstallation")

    monkeypatch.setattr(step._step, "_compiled", no_compiler)
    one, other = State(pattern, 16, 16), State(pattern, 16, 16)
    for _ in range(2):
        assert torch.equal(one.after(step, 0.1), other.after(eager, 0.1))
    assert torch.equal(one.logits, other.logits)
    assert [r.getMessage() for r in caplog.records] == [
        "torch.compile does not work here (cannot find a working triton installation): steps take longer."
    ]

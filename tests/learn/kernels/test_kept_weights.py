"""Kept weights that move: Adam in few bytes, whose roundings lose nothing on average, and state that follows the mask.

Every law holds in each way of doing the step that a CPU has: native code, where there is a compiler, and torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from maskpro_deploy.learn.distributions.planes import pack, top, unpack
from maskpro_deploy.learn.kernels import native_code
from maskpro_deploy.learn.kernels.kept_weights import (
    KeptByOperations,
    KeptChunk,
    KeptState,
    KeptStep,
    WeightOptimizer,
    gather_kept,
    scatter_kept,
    weight_schedule,
)
from maskpro_deploy.learn.kernels.optimizer import Moments, noise
from maskpro_deploy.learn.kernels.weight_step import kept_step, move_weights
from maskpro_deploy.learn.model.masked_linear import MaskedLinear
from maskpro_deploy.pattern import NMPattern

CPU = torch.device("cpu")
BETAS = (0.9, 0.95)
PATTERNS = ["2:4", "1:4", "4:8", "8:16", "2:3", "3:7"]
BOTH_DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bfloat16", "float32"])
Way = Callable[[NMPattern], KeptStep]


def in_native_code(pattern: NMPattern) -> KeptStep:
    step = kept_step(pattern, CPU)
    assert step.moved_by == "native"  # it did not fall back
    return step


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest) -> Way:
    if request.param == "torch":
        return lambda pattern: KeptByOperations()
    if native_code._compiler() is None:
        pytest.skip("there is no C compiler on this machine")
    return in_native_code


def random_bits(pattern: NMPattern, groups: int, seed: int) -> torch.Tensor:
    scores = torch.randn(pattern.m, groups, generator=torch.Generator().manual_seed(seed))
    return pack(top(scores, pattern.n))


def make_layer(
    text: str, dtype: torch.dtype = torch.bfloat16, outputs: int = 24, groups: int = 40, seed: int = 0
) -> MaskedLinear:
    """A layer under a random mask, whose dense weight is of size 1 and apart."""
    pattern = NMPattern.parse(text)
    linear = torch.nn.Linear(groups * pattern.m, outputs, bias=False)
    linear.weight.data = torch.randn(linear.weight.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    layer = MaskedLinear("layer.weight", linear, pattern)
    layer.kept = random_bits(pattern, layer.groups, seed)
    layer.train_weight()
    return layer


def kept_places(layer: MaskedLinear, bits: torch.Tensor | None = None) -> torch.Tensor:
    """# -> (O, C) boolean"""
    return unpack(layer.kept if bits is None else bits, layer.weight.numel()).view(layer.weight.shape)


def take(way: Way, optimizer: WeightOptimizer, layer: MaskedLinear, grad: torch.Tensor, rate: float, under=None) -> None:
    optimizer.begin(rate)
    key = 7919 * optimizer.step
    move_weights(optimizer, layer, grad, layer.kept if under is None else under, key, way(layer.pattern))


class PlainAdam:
    """Adam of the textbook, in float64 and without any rounding; decay as AdamW has it."""

    def __init__(self, weight: torch.Tensor, decay: float) -> None:
        self.weight, self.decay, self.step = weight.double(), decay, 0
        self.first, self.second = torch.zeros_like(self.weight), torch.zeros_like(self.weight)

    def take(self, grad: torch.Tensor, rate: float) -> None:
        self.step += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * grad.double()
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * grad.double().square()
        first, second = self.first / (1 - BETAS[0] ** self.step), self.second / (1 - BETAS[1] ** self.step)
        self.weight = self.weight * (1 - rate * self.decay) - rate * first / second.sqrt()


@BOTH_DTYPES
@pytest.mark.parametrize("text", ["2:4", "8:16"])
def test_over_many_steps_it_is_adam_in_full_precision(way: Way, text: str, dtype: torch.dtype) -> None:
    layer, optimizer = make_layer(text, dtype), WeightOptimizer(decay=0.1)
    exact, kept = PlainAdam(layer.weight, 0.1), kept_places(layer)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(layer.weight.shape, generator=generator)
    scales = torch.logspace(-7, -2, layer.weight.numel()).view(layer.weight.shape)
    for _ in range(60):
        grad = ((direction + torch.randn(layer.weight.shape, generator=generator)) * scales).to(dtype)
        take(way, optimizer, layer, grad, 1e-3)  # bfloat16 has steps of 4e-3 to 8e-3 around 1
        exact.take(grad, 1e-3)
    way_to_go, error = (exact.weight - layer.dense)[kept], (layer.weight.double() - exact.weight)[kept]
    last_bit = 2.0**-8 if dtype == torch.bfloat16 else 0.0  # relative, at most: how coarse what is stored is
    assert float(error.square().mean().sqrt()) < 0.03 * float(way_to_go.square().mean().sqrt()) + 0.6 * last_bit
    if dtype == torch.bfloat16:
        low = optimizer.states[layer.name].low
        assert low is not None
        error += (fine_weights(layer, low) - layer.weight.double())[kept]
    assert float(error.square().mean().sqrt()) < 0.03 * float(way_to_go.square().mean().sqrt())
    assert float(error.mean().abs()) < 0.004 * float(way_to_go.abs().mean())


def fine_weights(layer: MaskedLinear, low: torch.Tensor) -> torch.Tensor:
    """bfloat16 weights and their low bytes as the floats of 24 bits that they are.  # (O, C) float64"""
    kept = kept_places(layer).view(-1, layer.pattern.m)  # (G, M)
    bits = layer.weight.float().view(torch.int32).view(kept.shape)
    bits[kept] += low.t().reshape(-1).int() * 256  # the kept ones of each group, in their order
    return bits.view(torch.float32).double().view(layer.weight.shape)


def test_steps_far_below_the_last_bit_are_not_lost_on_average(way: Way) -> None:
    layer, optimizer = make_layer("2:4", outputs=128), WeightOptimizer()
    layer.weight.fill_(1.0)  # the next bfloat16 is 1 + 2^-7, the next number of 24 bits 1 + 2^-15
    rate = 0.375 * 2**-15
    for _ in range(100):
        take(way, optimizer, layer, torch.full(layer.weight.shape, -1e-5).bfloat16(), rate)
    low = optimizer.states[layer.name].low
    assert low is not None
    steps = (fine_weights(layer, low)[kept_places(layer)] - 1) / 2**-15
    assert torch.equal(steps, steps.round())
    assert 3 < float(steps.var()) < 40  # some take more steps, some fewer: about 100 * 0.375 * 0.625
    off = float(steps.mean()) - 37.5
    assert abs(off) < 5 * float(steps.std()) / steps.numel() ** 0.5 + 0.005 * 37.5  # 0.005: of float32's sums and the moments


@BOTH_DTYPES
@pytest.mark.parametrize("text", PATTERNS)
def test_a_dropped_weight_never_moves(way: Way, text: str, dtype: torch.dtype) -> None:
    layer, optimizer = make_layer(text, dtype), WeightOptimizer(decay=0.5)
    kept = kept_places(layer)
    for seed in range(3):
        grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        take(way, optimizer, layer, grad, 0.02)
    assert torch.equal(layer.weight[~kept], layer.dense[~kept])
    assert float((layer.weight[kept] != layer.dense[kept]).float().mean()) > 0.9


@BOTH_DTYPES
def test_decay_shrinks_kept_weights_and_them_alone(way: Way, dtype: torch.dtype) -> None:
    layer, optimizer = make_layer("2:4", dtype), WeightOptimizer(decay=0.5)
    kept, still = kept_places(layer), torch.zeros_like(layer.weight)
    for _ in range(20):
        take(way, optimizer, layer, still, 0.01)
    assert torch.equal(layer.weight[~kept], layer.dense[~kept])
    ratio = layer.weight[kept].double() / layer.dense[kept].double()
    assert float((ratio - (1 - 0.005) ** 20).abs().max()) < (2**-8 if dtype == torch.bfloat16 else 1e-5)


def test_a_weight_that_leaves_keeps_its_value_and_one_that_comes_back_starts_from_it(way: Way) -> None:
    layer, optimizer = make_layer("2:4"), WeightOptimizer()
    first, second = layer.kept, random_bits(layer.pattern, layer.groups, seed=9)
    grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    layer.kept = second
    take(way, optimizer, layer, grad, 0.01, under=first)
    left = kept_places(layer, first) & ~kept_places(layer, second)
    values = layer.weight[left].clone()
    assert float((values != layer.dense[left]).float().mean()) > 0.9  # the step was taken under the old mask
    take(way, optimizer, layer, grad, 0.01)
    layer.kept = first
    take(way, optimizer, layer, grad, 0.01, under=second)
    assert torch.equal(layer.weight[left], values)
    state, came_back = optimizer.states[layer.name], left.view(-1, 4)[kept_places(layer, first).view(-1, 4)].view(-1, 2).t()
    for x in state.tensors().values():
        assert not x[came_back].any()
        assert x[~came_back].any()
    untouched = layer.weight.clone()
    take(way, optimizer, layer, torch.zeros_like(grad), 0.01)
    assert torch.equal(layer.weight[left], untouched[left])  # with moments at zero and no gradient it stays


@pytest.mark.parametrize("text", PATTERNS)
@BOTH_DTYPES
def test_the_state_follows_the_mask(way: Way, text: str, dtype: torch.dtype) -> None:
    """Against a dictionary of every kept weight's own numbers."""
    pattern, groups = NMPattern.parse(text), 203
    shape, generator = (pattern.n, groups), torch.Generator().manual_seed(3)
    bytes_ = [torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator) for _ in range(2)]
    second = torch.rand(shape, generator=generator).bfloat16()
    under, after = (random_bits(pattern, groups, seed) for seed in (4, 5))
    after[: 12 * pattern.m] = under[: 12 * pattern.m]  # 96 groups stay as they are
    low = bytes_[1] if dtype == torch.bfloat16 else None
    still = torch.zeros(groups, pattern.m, dtype=dtype)

    def step(next_mask: torch.Tensor | None) -> KeptState:
        state = KeptState(Moments(bytes_[0].clone(), second.clone()), None if low is None else low.clone())
        weight = torch.ones_like(still)
        way(pattern)(KeptChunk(still, weight, under, next_mask, state, noise(shape, 0, CPU), 1e-3, 0.0, BETAS))
        return state

    before, found = step(None).tensors(), step(after).tensors()
    assert len(found) == (2 if low is None else 3)
    masks = [unpack(bits, still.numel()).view(-1, pattern.m).tolist() for bits in (under, after)]
    for kind, x in found.items():
        held = {}
        for g, row in enumerate(masks[0]):
            for k, place in enumerate(i for i, kept in enumerate(row) if kept):
                held[g, place] = before[kind][k, g].item()
        expected = torch.tensor(
            [[held.get((g, i), 0) for i, kept in enumerate(row) if kept] for g, row in enumerate(masks[1])]
        ).t()
        assert torch.equal(x.double(), expected.double()), kind


@BOTH_DTYPES
def test_a_saved_state_goes_on_to_the_same_bits(way: Way, dtype: torch.dtype) -> None:
    masks = [random_bits(NMPattern(2, 4), 24 * 40, seed) for seed in range(7)]

    def steps(layer: MaskedLinear, optimizer: WeightOptimizer, numbers: range) -> None:
        for i in numbers:
            under, layer.kept = masks[i], masks[i + 1]
            grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i)).to(dtype)
            take(way, optimizer, layer, grad, 0.01, under)

    whole, optimizer = make_layer("2:4", dtype), WeightOptimizer(decay=0.1)
    steps(whole, optimizer, range(6))
    part, first = make_layer("2:4", dtype), WeightOptimizer(decay=0.1)
    steps(part, first, range(3))
    saved = {name: x.clone() for name, x in first.tensors().items()}
    other = WeightOptimizer(decay=0.1, step=first.step)
    other.restore(part.name, saved, CPU)
    steps(part, other, range(3, 6))
    assert torch.equal(part.weight, whole.weight)
    assert all(torch.equal(x, optimizer.tensors()[name]) for name, x in other.tensors().items())
    assert sorted(saved) == sorted(optimizer.tensors())


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 4), (torch.float32, 3)])
def test_the_state_is_four_bytes_a_kept_weight_beside_bfloat16(way: Way, dtype: torch.dtype, size: int) -> None:
    layer, optimizer = make_layer("2:4", dtype), WeightOptimizer()
    take(way, optimizer, layer, torch.ones_like(layer.weight), 0.01)
    assert sum(x.nbytes for x in optimizer.tensors().values()) == size * int(kept_places(layer).sum())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@BOTH_DTYPES
def test_a_gradient_that_is_no_number_shows_in_its_weight_and_nowhere_else(way: Way, dtype: torch.dtype, bad: float) -> None:
    layer, optimizer = make_layer("2:4", dtype), WeightOptimizer()
    grad = torch.full(layer.weight.shape, 1e-3).to(dtype)
    place = tuple(kept_places(layer).nonzero()[17].tolist())
    grad[place] = bad
    take(way, optimizer, layer, grad, 0.01)
    finite = torch.isfinite(layer.weight)
    assert not finite[place]
    finite[place] = True
    assert finite.all()


def test_weights_that_start_at_zero_or_cross_it_stay_numbers(way: Way) -> None:
    """A low byte below zero belongs to a weight that is not zero: with a zero it would be the bits of a NaN."""
    layer, optimizer = make_layer("2:4"), WeightOptimizer(decay=0.1)
    layer.weight.view(-1)[::3] = 0.0
    layer.weight.view(-1)[1::3] *= 1e-4
    masks = [random_bits(layer.pattern, layer.groups, seed) for seed in range(41)]
    for i in range(40):
        under, layer.kept = masks[i], masks[i + 1]
        grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i)).bfloat16()
        take(way, optimizer, layer, grad, 3e-4, under)
        low, kept = optimizer.states[layer.name].low, kept_places(layer)
        assert low is not None
        assert torch.isfinite(layer.weight).all()
        assert torch.isfinite(fine_weights(layer, low)[kept]).all()


def test_a_weight_that_is_set_to_zero_between_steps_stays_a_number(way: Way) -> None:
    layer, optimizer = make_layer("2:4"), WeightOptimizer()
    grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    take(way, optimizer, layer, grad, 0.01)
    low = optimizer.states[layer.name].low
    assert low is not None
    assert (low < 0).any()
    layer.weight.zero_()
    take(way, optimizer, layer, grad, 0.01)
    assert torch.isfinite(layer.weight).all()


def test_a_nan_whose_last_bits_would_carry_does_not_become_a_zero(way: Way) -> None:
    for bits in (0x7FFFFFFF, -1):
        layer, optimizer = make_layer("2:4"), WeightOptimizer()
        grad = torch.tensor([bits], dtype=torch.int32).view(torch.float32).repeat(layer.weight.numel()).view(layer.weight.shape)
        take(way, optimizer, layer, grad, 0.01)
        kept = kept_places(layer)
        assert not torch.isfinite(layer.weight[kept]).any()
        assert torch.equal(layer.weight[~kept], layer.dense[~kept])


def test_work_in_chunks_covers_the_layer(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks only the noise is another one: no weight is left out, none moves twice."""
    from maskpro_deploy.learn.model import masked_linear

    found = []
    for weights in (1 << 18, 96):
        monkeypatch.setattr(masked_linear, "_CHUNK_WEIGHTS", weights)
        layer, optimizer = make_layer("2:4", torch.float32), WeightOptimizer()
        grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(5))
        take(way, optimizer, layer, grad, 0.01)
        found.append(layer.weight)
    assert torch.equal(*found)


def test_the_rate_warms_up_and_decays_to_nothing() -> None:
    rates = [weight_schedule(1 - i / 1000) for i in range(1001)]
    assert 0 < rates[0] < 0.05
    assert rates[1000] == 0
    assert max(rates) > 0.9
    peak = rates.index(max(rates))
    assert peak < 60
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_kept_values_go_out_and_back_in() -> None:
    layer = make_layer("2:3")
    values = gather_kept(layer.weight, layer.kept)
    assert values.numel() == layer.groups * 2
    back = scatter_kept(torch.full_like(layer.weight, 5.0), layer.kept, values)
    kept = kept_places(layer)
    assert torch.equal(back[kept], layer.weight[kept])
    assert (back[~kept] == 5.0).all()

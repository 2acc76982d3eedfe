"""What docs/theory.md states about each estimator, measured against enumeration on a problem small enough for it.

The problem: G groups of 2:4, a loss f(m; ξ) over all 6^G masks, for two batches ξ that are equally likely. Expectations are sums
over all masks and batches, so bias and variance are exact up to rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.conditional_bernoulli import Enumerated
from maskpro_deploy.learn.distributions.plackett_luce import PlackettLuce
from maskpro_deploy.learn.estimators.layerwise import own_gradient
from maskpro_deploy.learn.estimators.maskpro import advantages
from maskpro_deploy.pattern import NMPattern

PATTERN = NMPattern(2, 4)
MASKS = torch.from_numpy(PATTERN.all_masks())  # (6, 4)
FAMILIES = [Enumerated(PATTERN), PlackettLuce(PATTERN)]
ids = ["conditional Bernoulli", "Plackett-Luce"]


class Problem:
    """All masks of G groups, their probabilities and scores, and a loss.  # masks (A, M, G), scores (A, M G), loss (2, A)"""

    def __init__(self, family: Enumerated | PlackettLuce, groups: int = 2, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.logits = torch.randn(4, groups, generator=generator, dtype=torch.float64)
        choices = list(itertools.product(range(6), repeat=groups))
        self.masks = torch.stack([torch.stack([MASKS[s] for s in choice], dim=1) for choice in choices])
        self.p = torch.stack([family.log_prob(self.logits, m).sum() for m in self.masks]).exp()
        self.score = torch.stack([family.score(self.logits, m).flatten() for m in self.masks])
        kept = self.masks.double().flatten(1)  # (A, 4 G)
        hessian = torch.randn(2, kept.shape[1], kept.shape[1], generator=generator, dtype=torch.float64)
        slope = torch.randn(2, kept.shape[1], generator=generator, dtype=torch.float64)
        values = torch.einsum("ai,bij,aj->ba", kept, hessian, kept) + slope @ kept.t()
        difficulty = torch.tensor([8.0, 16.0])[:, None]  # of the two batches
        self.loss = difficulty + 0.3 * values  # positive, and batches differ more than masks do
        self.first = int(self.p.argmax())  # m_0

    def gradient(self) -> Tensor:
        """∂E[f]/∂θ.  # (4 G,)"""
        return (self.loss.mean(0) * self.p) @ self.score

    def moments(self, factor: Tensor) -> tuple[Tensor, float]:
        """Mean and total variance of factor(m, ξ) · score(m).  # (2, A) -> (4 G,), number"""
        estimate = factor[:, :, None] * self.score  # (2, A, 4 G)
        weight = self.p[None, :, None] / 2
        mean = (weight * estimate).sum((0, 1))
        return mean, float((weight * (estimate - mean).square()).sum())


@pytest.fixture(params=FAMILIES, ids=ids)
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(request.param)


def test_vanilla_policy_gradient_is_unbiased(problem: Problem) -> None:
    mean, variance = problem.moments(problem.loss)
    torch.testing.assert_close(mean, problem.gradient())
    assert variance > 0


def test_the_loss_residual_is_unbiased_and_has_less_variance_where_no_mask_halves_the_loss(problem: Problem) -> None:
    first = problem.loss[:, problem.first, None]
    assert bool((2 * problem.loss > first).all())  # the condition of the statement
    mean, variance = problem.moments(problem.loss - first)
    torch.testing.assert_close(mean, problem.gradient())
    vanilla = problem.moments(problem.loss)[1]
    assert variance < 0.2 * vanilla
    # and the difference is exactly E[f_0 (2 f - f_0) |score|²]
    weight = problem.p / 2
    length = problem.score.square().sum(1)
    gap = (weight * first * (2 * problem.loss - first) * length).sum()
    assert vanilla - variance == pytest.approx(float(gap))


def test_without_that_condition_the_residual_can_have_more_variance() -> None:
    problem = Problem(FAMILIES[0])
    problem.loss = 0.1 + (problem.loss - problem.loss.min())
    problem.loss[:, problem.first] = problem.loss.max() * 3  # a bad initial mask
    vanilla = problem.moments(problem.loss)[1]
    assert problem.moments(problem.loss - problem.loss[:, problem.first, None])[1] > vanilla


def test_a_renewed_initial_mask_brings_the_lower_variance_back_and_no_bias(problem: Problem) -> None:
    bad = int(problem.p.argmin())
    problem.loss[:, bad] = 3 * problem.loss.max()  # every other mask halves its loss
    vanilla = problem.moments(problem.loss)[1]
    for initial, lower in ((bad, False), (problem.first, True)):
        mean, variance = problem.moments(problem.loss - problem.loss[:, initial, None])
        torch.testing.assert_close(mean, problem.gradient())
        assert (variance < vanilla) == lower


def test_the_moving_average_as_published_shrinks_the_gradient_by_its_weight_and_does_not_turn_it(problem: Problem) -> None:
    residual = problem.loss - problem.loss[:, problem.first, None]
    before = 0.7
    tracked = 0.99 * before + 0.01 * residual  # it contains the residual that it is taken from
    mean, _ = problem.moments(residual - tracked)
    torch.testing.assert_close(mean, 0.99 * problem.gradient())


def test_the_moving_average_lowers_the_variance_up_to_twice_the_weighted_mean_residual(problem: Problem) -> None:
    residual = problem.loss - problem.loss[:, problem.first, None]
    weight, length = problem.p / 2, problem.score.square().sum(1)
    best = float((weight * residual * length).sum() / (weight * length).sum() / 2)
    plain = problem.moments(residual)[1]
    variances = {share: problem.moments(residual - share * best)[1] for share in (-0.5, 0.5, 1.0, 1.5, 2.0, 2.5)}
    assert min(variances, key=lambda share: variances[share]) == 1.0
    assert all((variances[share] < plain) == (0 < share < 2) for share in variances if share != 2.0)
    assert variances[2.0] == pytest.approx(plain)


def pairs_moments(problem: Problem, weigh: Callable[[list[float]], list[float]], batch: int = 0) -> tuple[Tensor, float]:
    """Mean and variance of the gradient from two independent samples of one batch."""
    count, f = len(problem.p), problem.loss[batch].tolist()
    told = torch.tensor([weigh([f[a], f[b]]) for a in range(count) for b in range(count)], dtype=torch.float64)  # (A², 2)
    estimate = (told[:, :1] * problem.score.repeat_interleave(count, 0) + told[:, 1:] * problem.score.repeat(count, 1)) / 2
    weight = torch.outer(problem.p, problem.p).flatten()[:, None]
    mean = (weight * estimate).sum(0)
    return mean, float((weight * (estimate - mean).square()).sum())


def test_leave_one_out_of_independent_samples_is_unbiased_and_has_less_variance(problem: Problem) -> None:
    exact = (problem.loss[0] * problem.p) @ problem.score
    plain_mean, plain = pairs_moments(problem, lambda f: f)
    mean, variance = pairs_moments(problem, lambda f: [f[0] - f[1], f[1] - f[0]])
    torch.testing.assert_close(plain_mean, exact)
    torch.testing.assert_close(mean, exact)
    assert variance < 0.2 * plain


def antithetic(problem: Problem, family: Enumerated, steps: int = 48) -> tuple[Tensor, Tensor, Tensor]:
    """Places of u and of its mirror for a fine grid of uniforms, and the scores' sum of each.  # (U,), (U,), number"""
    grid = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
    codes = {tuple(m.flatten().tolist()): i for i, m in enumerate(problem.masks)}
    uniforms = torch.cartesian_prod(grid, grid).t()  # (2, U): one uniform for each of two groups
    first, second = (
        torch.stack([family.sample(problem.logits[:, g : g + 1].expand(-1, len(u[g])), u[g][None]) for g in range(2)], dim=-1)
        for u in (uniforms, 1 - uniforms)
    )  # (M, U, G)
    places = [torch.tensor([codes[tuple(m.flatten().tolist())] for m in x.transpose(0, 1)]) for x in (first, second)]
    return places[0], places[1], torch.tensor(1.0 / uniforms.shape[1], dtype=torch.float64)


def test_an_antithetic_pair_has_the_right_marginals_and_a_partner_as_baseline_would_bias_it() -> None:
    family = Enumerated(PATTERN)
    problem = Problem(family)
    first, second, weight = antithetic(problem, family)
    f = problem.loss[0]
    score = problem.score
    grid = (torch.bincount(first, minlength=len(problem.p)) * weight).double()
    assert float((grid - torch.bincount(second, minlength=len(problem.p)) * weight).abs().max()) < 1e-9
    exact = (f * grid) @ score - f[problem.first] * (grid @ score)  # on the grid's own distribution

    def mean(a: Tensor, b: Tensor) -> Tensor:
        return weight * (a[:, None] * score[first] + b[:, None] * score[second]).sum(0) / 2

    residual = f - f[problem.first]
    torch.testing.assert_close(mean(residual[first], residual[second]), exact, atol=1e-9, rtol=1e-6)
    wrong = mean(f[first] - f[second], f[second] - f[first])
    assert float((wrong - exact).norm()) > 0.1 * float(exact.norm())
    told = advantages([3.0, 5.0, 7.0, 1.0], argmax_loss=100.0)
    assert told == [3.0 - 4.0, 5.0 - 4.0, 7.0 - 4.0, 1.0 - 4.0]  # the other pair's mean, never the partner's
    assert advantages([3.0, 5.0], argmax_loss=2.0) == [1.0, 3.0]


def test_an_antithetic_pair_replaces_a_baseline_and_does_not_add_to_a_good_one() -> None:
    family = Enumerated(PATTERN)
    problem = Problem(family)
    first, second, weight = antithetic(problem, family)

    def variances(f: Tensor) -> tuple[float, float]:
        """Of the mean of two independent samples, and of a pair."""
        g = f[:, None] * problem.score
        mean = weight * g[first].sum(0)
        single = float(weight * (g[first] - mean).square().sum())
        shared = float(weight * ((g[first] - mean) * (g[second] - mean)).sum())
        pair = float(weight * ((g[first] + g[second]) / 2 - mean).square().sum())
        # so a pair is better if and only if its halves correlate negatively
        assert pair == pytest.approx(single / 2 + shared / 2)
        return single / 2, pair

    f = problem.loss[0]
    independent, pair = variances(f)
    assert pair < 0.8 * independent  # what both halves share, here the size of the loss, cancels to a part
    independent, pair = variances(f - float(problem.p @ f))
    assert pair > independent  # with that gone already, half of the information is the same twice


def test_the_noise_of_one_loss_grows_with_the_number_of_groups() -> None:
    # f is a sum over groups: the gradient of the first group is the same, the variance of its estimate is not
    variances = []
    for groups in (1, 2, 3):
        problem = Problem(FAMILIES[0], groups)
        value = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
        problem.logits[:] = torch.tensor([0.5, 0.0, -0.5, 0.2], dtype=torch.float64)[:, None]
        p = Enumerated(PATTERN).probabilities(problem.logits[:, :1]).squeeze(1)
        problem.p = torch.tensor([float(torch.prod(p[list(c)])) for c in itertools.product(range(6), repeat=groups)]).double()
        problem.score = torch.stack([Enumerated(PATTERN).score(problem.logits, m).flatten() for m in problem.masks])
        f = torch.einsum("i,aig->a", value, problem.masks.double())
        f = f - (problem.p * f).sum()  # the best constant baseline
        of_first = problem.score.view(-1, 4, groups)[:, :, 0]
        mean = (problem.p * f) @ of_first
        variances.append(float((problem.p[:, None] * (f[:, None] * of_first - mean).square()).sum()))
    assert variances[1] - variances[0] == pytest.approx(variances[2] - variances[1], rel=1e-6)
    assert variances[1] > variances[0]


def pathwise_mean(problem: Problem, gradient: Tensor, family: Enumerated) -> tuple[Tensor, float]:
    """Mean and variance of Cov(m) ∂f/∂m at a sampled mask; `gradient` is ∂f/∂m at every mask.  # (A, M, G)"""
    estimate = torch.stack([family.pathwise(problem.logits, h).flatten() for h in gradient])
    mean = problem.p @ estimate
    return mean, float((problem.p[:, None] * (estimate - mean).square()).sum())


def test_pathwise_is_exact_for_a_loss_that_is_linear_in_each_group() -> None:
    family = Enumerated(PATTERN)
    problem = Problem(family)
    c = torch.randn(4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    linear = torch.einsum("ig,aig->a", c, problem.masks.double())
    mean, variance = pathwise_mean(problem, c.expand(len(problem.p), -1, -1), family)
    torch.testing.assert_close(mean, (problem.p * linear) @ problem.score)
    assert variance < 1e-20
    # bilinear: linear in either group given the other. Sampling is unbiased, the argmax mask alone is not
    b = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    kept = problem.masks.double()
    bilinear = torch.einsum("ai,ij,aj->a", kept[:, :, 0], b, kept[:, :, 1])
    gradient = torch.stack([torch.stack([b @ m[:, 1], b.t() @ m[:, 0]], dim=1) for m in kept])
    exact = (problem.p * bilinear) @ problem.score
    mean, variance = pathwise_mean(problem, gradient, family)
    torch.testing.assert_close(mean, exact)
    assert variance < problem.moments(bilinear.expand(2, -1))[1]  # and far less noise than the policy gradient
    at_argmax = family.pathwise(problem.logits, gradient[problem.first]).flatten()
    assert float((at_argmax - exact).norm()) > 0.05 * float(exact.norm())


def test_pathwise_is_biased_by_the_curvature_within_a_group() -> None:
    family = Enumerated(PATTERN)
    problem = Problem(family)
    kept = problem.masks.double()
    curved = kept[:, 0, 0] * kept[:, 1, 0]  # two weights of one group that only matter together
    gradient = torch.zeros_like(kept)
    gradient[:, 0, 0], gradient[:, 1, 0] = kept[:, 1, 0], kept[:, 0, 0]
    exact = (problem.p * curved) @ problem.score
    mean, _ = pathwise_mean(problem, gradient, family)
    assert float((mean - exact).norm()) > 0.05 * float(exact.norm())


@pytest.mark.parametrize("correlated", [False, True])
def test_the_layer_reward_gives_the_policy_gradient_of_one_group_up_to_products_of_its_weights(correlated: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    family = Enumerated(PATTERN)
    weight = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    logits = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    best = family.mode(logits).t().reshape(1, 8)
    inputs = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    if not correlated:  # the four inputs of a group are orthogonal, those of different groups are not
        inputs = torch.cat([torch.linalg.qr(inputs[:, :4])[0], torch.linalg.qr(inputs[:, 4:])[0]], dim=1)
    dense = (inputs + 0.3 * torch.randn(40, 8, generator=generator, dtype=torch.float64)) @ weight.t()

    def reward(mask: Tensor) -> Tensor:
        return 0.5 * (inputs @ (weight * mask).t() - dense).square().sum()

    exact = torch.zeros(4, 2, dtype=torch.float64)
    cross = torch.zeros(4, 2, dtype=torch.float64)  # the policy gradient of the products that are left out
    for g in range(2):
        part = slice(4 * g, 4 * g + 4)
        p, mean = family.probabilities(logits[:, g : g + 1]).squeeze(1), family.marginals(logits[:, g : g + 1]).squeeze(1)
        q = (inputs[:, part].t() @ inputs[:, part]) * torch.outer(weight[0, part], weight[0, part])
        for s, mask in enumerate(MASKS):
            full = best.clone()
            full[0, part] = mask
            exact[:, g] += p[s] * (mask.double() - mean) * reward(full)
            change = mask.double() - best[0, part].double()
            products = 0.5 * (change @ q @ change - (q.diagonal() * change.square()).sum())
            cross[:, g] += p[s] * (mask.double() - mean) * products
    masked = weight * best
    h = weight * own_gradient(weight, masked, inputs @ masked.t() - dense, inputs)
    estimate = family.pathwise(logits, h.view(2, 4).t())
    torch.testing.assert_close(estimate, exact - cross, atol=1e-5, rtol=1e-5)  # its own arithmetic is float32
    assert (float(cross.norm()) > 0.01 * float(exact.norm())) == correlated


def test_gumbel_softmax_has_a_bias_that_falls_and_a_variance_that_grows_with_its_temperature() -> None:
    gates = torch.tensor([0.5, 0.0, -0.5, 0.2, 0.1, -0.3], dtype=torch.float64)
    c = torch.tensor([0.0, 1.0, -1.0, 2.0], dtype=torch.float64)
    value = MASKS.double() @ c  # the loss of every mask
    p = torch.softmax(gates, 0)
    exact = p * (value - p @ value)
    uniform = torch.rand(400_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    bias, variance = {}, {}
    for tau in (4.0, 1.0, 0.25):
        y = torch.softmax((gates - (-uniform.log()).log()) / tau, dim=1)
        gradient = y * (value - (y @ value)[:, None]) / tau  # of the loss of the soft mask
        bias[tau] = float((gradient.mean(0) - exact).norm() / exact.norm())
        variance[tau] = float(gradient.var(0).sum())
    assert bias[4.0] > 2 * bias[1.0] > 4 * bias[0.25]
    assert variance[4.0] < variance[1.0] < variance[0.25]

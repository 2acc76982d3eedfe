r"""Conditional Bernoulli, "exactly N of M": p(m) = exp⟨θ, m⟩ / Σ_{m'} exp⟨θ, m'⟩.

The derivative of the marginals $\mu = E[m]$ is the covariance: ∂μ/∂θ = Cov(m). The pathwise estimator uses it to carry ∂L/∂m to
∂L/∂θ (Ahmed et al., SIMPLE, ICLR 2023, eq. 4 and 5).

Everything is written in flips: with the cut t, weight i leaves the mode with the factor x_i = exp(-|θ_i - t|) ≤ 1, and

    p(m) = Π_{i flipped in m} x_i / Z,     Z = Σ_m Π_{i flipped in m} x_i  in [1, C(M, N)].

All terms are positive and at most one, whatever the logits: an underflow is a probability that is zero. Z and all that follows
from it come from enumeration for patterns of up to `MAX_MASKS` masks, and beyond that from the recursion over the weights

    F_i[n] = u_i F_{i-1}[n] + v_i F_{i-1}[n-1],     (u_i, v_i) = (x_i, 1) where the mode keeps i, (1, x_i) elsewhere,

that is, the elementary symmetric polynomials of exp(θ) (Chen, Dempster and Liu, Biometrika 81, 1994), in N·M steps.

Shapes: `M` weights in a group, `G` groups, `S = C(M, N)` masks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from maskpro_deploy.learn.distributions.planes import centre, top
from maskpro_deploy.pattern import NMPattern

MAX_MASKS = 70  # 4:8; beyond that the recursion is cheaper than enumeration
_CLAMP = 20.0  # e^-20 is below the resolution of float32; the closed form of 2:4 takes the fourth power of e^20
_GROUPS, _GROUPS_GPU = 4096, 1 << 17  # in one go of the recursion: its tables stay in a CPU's cache


def conditional_bernoulli(pattern: NMPattern, device: torch.device | str = "cpu") -> Enumerated | Recursive:
    """The conditional Bernoulli distribution, computed in the way that is faster for the pattern."""
    return Enumerated(pattern, device) if pattern.num_masks <= MAX_MASKS else Recursive(pattern)


def number_masks(mask: Tensor) -> Tensor:
    """The number whose binary digits are a mask's.  # (M, G) boolean -> (G,)"""
    return (mask.long() << torch.arange(len(mask), device=mask.device)[:, None]).sum(0)


class _Common:
    """What both ways share: everything that follows from the marginals."""

    pattern: NMPattern
    marginals: Callable[[Tensor], Tensor]

    def score(self, logits: Tensor, mask: Tensor) -> Tensor:
        """∂ log p(m) / ∂θ = m - μ.  # (M, G), (M, G) boolean -> (M, G)"""
        return mask.to(logits.dtype) - self.marginals(logits)

    def mode(self, logits: Tensor) -> Tensor:
        return top(logits, self.pattern.n)


class Enumerated(_Common):
    """By enumeration of all masks, and in closed form for 2:4; the logits live on the given device."""

    uniforms = 1

    def __init__(self, pattern: NMPattern, device: torch.device | str = "cpu") -> None:
        self.pattern = pattern
        self.masks = torch.from_numpy(pattern.all_masks()).to(device)  # (S, M)
        self._bits = number_masks(self.masks.t())  # (S,)

    def _log_weights(self, logits: Tensor) -> Tensor:
        """Log of Π x_i over the flips of every mask: at most 0.  # (M, G) -> (S, G)"""
        d = centre(logits, self.pattern.n)
        kept = self.masks.to(d.dtype)
        return torch.addmm(kept @ d.clamp_max(0), 1 - kept, d.clamp_min(0), alpha=-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """p(m) of every mask.  # (M, G) -> (S, G)"""
        return torch.softmax(self._log_weights(logits), dim=0)

    def log_prob(self, logits: Tensor, mask: Tensor) -> Tensor:
        log_p = torch.log_softmax(self._log_weights(logits), dim=0)
        state = (self._bits[:, None] == number_masks(mask)).int().argmax(0)
        return log_p.gather(0, state[None]).squeeze(0)

    def marginals(self, logits: Tensor) -> Tensor:
        return self.masks.t().to(logits.dtype) @ self.probabilities(logits)

    def entropy(self, logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(self._log_weights(logits), dim=0)
        return -(log_p.exp() * log_p).sum(0)

    def stay(self, logits: Tensor) -> Tensor:
        return torch.logsumexp(self._log_weights(logits), dim=0).neg_().exp_()

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Draw one mask a group by inverting the cumulative distribution.  # (M, G), (1, G) in [0, 1) -> (M, G) boolean"""
        p = self.probabilities(logits)
        state = torch.zeros_like(uniform[0], dtype=torch.uint8)
        cumulative = torch.zeros_like(uniform[0])
        for s in range(p.shape[0] - 1):  # plane by plane: several times faster than cumsum over the first axis
            cumulative += p[s]
            state += (uniform[0] >= cumulative).view(torch.uint8)
        rows = torch.nn.functional.embedding(state.int(), self.masks.float())  # (G, M)
        return rows.t().contiguous() > 0

    def pathwise(self, logits: Tensor, grad_mask: Tensor, *, is_centred: bool = False) -> Tensor:
        """Cov(m) h with h = ∂L/∂m.

        Computed as E[m (⟨m, h⟩ - E⟨m, h⟩)], with ⟨m, h⟩ relative to the mode's: nothing large cancels in groups that are certain.
        """
        if (self.pattern.n, self.pattern.m) == (2, 4):
            return _pathwise_2_4(logits if is_centred else centre(logits, 2), grad_mask)
        p = self.probabilities(logits)
        kept = self.masks.to(logits.dtype)
        along = kept @ grad_mask  # (S, G): <m, h>
        along -= (self.mode(logits) * grad_mask).sum(0)
        along -= (p * along).sum(0)
        along *= p
        return kept.t() @ along


def _pathwise_2_4(logits: Tensor, h: Tensor) -> Tensor:
    """Cov(m) h for 2:4 in closed form.

    With e = exp(θ), θ relative to the cut, and {i, j, k, l} = {0, 1, 2, 3}:

        Cov_ij = -e_i e_j (e_k² + e_k e_l + e_l²) / Z²,     (Cov h)_i = Σ_j Cov_ij (h_j - h_i),

    the latter as the rows of a covariance of masks sum to zero. No difference of large numbers is left.

    Pairs are taken three at a time, (0, j) with j = 1, 2, 3 next to the other two weights (2, 3), (3, 1), (1, 2): planes 1 and 2
    follow plane 3 once more, so that each of the four is a slice. Few large operations cost less than many small ones.
    """
    groups = logits.shape[1]
    e, g = logits.new_empty(6, groups), logits.new_empty(6, groups)
    torch.exp(logits.clamp(-_CLAMP, _CLAMP), out=e[:4])
    g[:4] = h
    e[4:], g[4:] = e[1:3], g[1:3]
    square = e * e
    near, far = e[1:4] * e[0], e[2:5] * e[3:6]  # e_0 e_j and e_k e_l  # (3, G)
    sums = near + far
    scale = sums[0].add_(sums[1]).add_(sums[2]).square_().reciprocal_()  # 1 / Z²
    of_near = (square[2:5] + square[3:6]).add_(far).mul_(near).mul_(g[0] - g[1:4])  # what weight 0 owes to weight j
    of_far = logits.new_empty(5, groups)
    torch.add(square[1:4], near, out=of_far[:3])
    of_far[:3].add_(square[0]).mul_(far).mul_(g[2:5] - g[3:6])
    of_far[3:] = of_far[:2]
    out = torch.empty_like(h)
    torch.add(of_near[0], of_near[1], out=out[0])
    out[0].add_(of_near[2])
    torch.sub(of_far[2:5], of_far[1:4], out=out[1:])
    out[1:].sub_(of_near)
    return out.mul_(scale)


class Recursive(_Common):
    """By recursion over the weights, for patterns with too many masks to enumerate."""

    def __init__(self, pattern: NMPattern) -> None:
        self.pattern, self.uniforms = pattern, pattern.m  # for every weight one: keep it or not

    def log_prob(self, logits: Tensor, mask: Tensor) -> Tensor:
        d = centre(logits, self.pattern.n)
        flipped = torch.where(mask, d.clamp_max(0), -d.clamp_min(0)).sum(0)
        return flipped - _blocks(self._last, logits).log()

    def _last(self, logits: Tensor) -> Tensor:
        """Z.  # (M, G) -> (G,)"""
        return self._table(*self._factors(logits), range(self.pattern.m))[-1][self.pattern.n]

    def stay(self, logits: Tensor) -> Tensor:
        return _blocks(self._last, logits).reciprocal_()

    def marginals(self, logits: Tensor) -> Tensor:
        return _blocks(lambda x: self._split_kept_and_dropped(x)[0], logits)

    def entropy(self, logits: Tensor) -> Tensor:
        """Log Z + Σ_i P(i flipped) |θ_i - t|: a sum of positive terms."""

        def block(x: Tensor) -> Tensor:
            kept, dropped = self._split_kept_and_dropped(x)
            d = centre(x, self.pattern.n)
            flipped = torch.where(d >= 0, dropped, kept)
            return self._last(x).log() + (flipped * d.abs()).sum(0)

        return _blocks(block, logits)

    def sample(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Decide weight by weight, each given those before it.  # (M, G), (M, G) in [0, 1) -> (M, G) boolean"""

        def block(x: Tensor, draw: Tensor) -> Tensor:
            u, v = self._factors(x)
            suffix = self._table(u, v, range(self.pattern.m - 1, -1, -1))  # suffix[i]: of the last i weights
            left = torch.full(x.shape[1:], self.pattern.n, dtype=torch.int64, device=x.device)[None]
            kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
            for i in range(self.pattern.m):
                rest, whole = suffix[self.pattern.m - 1 - i], suffix[self.pattern.m - i]
                keep = v[i] * rest.gather(0, (left - 1).clamp_min(0)).squeeze(0)
                chosen = (draw[i] * whole.gather(0, left).squeeze(0) < keep) & (left[0] > 0)
                kept[i] = chosen
                left = left - chosen.long()
            return kept

        return _blocks(block, logits, uniform)

    def pathwise(self, logits: Tensor, grad_mask: Tensor, *, is_centred: bool = False) -> Tensor:
        """Cov(m) h with h = ∂L/∂m: the derivative of E[flips] where every flip factor x_i grows by ±h_i x_i."""

        def block(x: Tensor, h: Tensor) -> Tensor:
            n, m = self.pattern.n, self.pattern.m
            u, v = self._factors(x)
            high = u < v  # the mode keeps it: leaving is the flip; at the cut itself both factors are 1 and either will do
            du, dv = torch.where(high, -u * h, 0.0), torch.where(high, 0.0, v * h)
            f, df = self._table_and_slope(u, v, du, dv, range(m))
            b, db = self._table_and_slope(u, v, du, dv, range(m - 1, -1, -1))
            z, dz = f[m][n], df[m][n]
            out = torch.empty_like(x)
            for i in range(m):
                before, after, d_before, d_after = f[i], b[m - 1 - i], df[i], db[m - 1 - i]
                keep, d_keep = _convolve(before, after, d_before, d_after, n - 1)
                drop, d_drop = _convolve(before, after, d_before, d_after, n)
                flip = torch.where(high[i], u[i] * drop, v[i] * keep)
                d_flip = torch.where(high[i], du[i] * drop + u[i] * d_drop, dv[i] * keep + v[i] * d_keep)
                slope = (d_flip - flip * dz / z) / z
                out[i] = torch.where(high[i], -slope, slope)
            return out

        return _blocks(block, logits, grad_mask)

    def _factors(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of dropping and of keeping each weight, at most 1.  # (M, G) -> (M, G), (M, G)"""
        d = centre(logits, self.pattern.n)
        return d.clamp_min(0).neg_().exp_(), d.clamp_max(0).exp_()

    def _table(self, u: Tensor, v: Tensor, order: range) -> list[Tensor]:
        """F_0 ... F_M over the weights in the given order.  # (M, G) -> M + 1 times (N + 1, G)"""
        first = u.new_zeros(self.pattern.n + 1, u.shape[1])
        first[0] = 1
        table = [first]
        for i in order:
            following = table[-1] * u[i]
            following[1:].addcmul_(table[-1][:-1], v[i])
            table.append(following)
        return table

    def _table_and_slope(self, u: Tensor, v: Tensor, du: Tensor, dv: Tensor, order: range) -> tuple[list[Tensor], list[Tensor]]:
        """`_table` and its derivative along (du, dv)."""
        table = self._table(u, v, order)
        slopes = [torch.zeros_like(table[0])]
        for place, i in enumerate(order):
            slope = slopes[-1] * u[i]
            slope.addcmul_(table[place], du[i])
            slope[1:].addcmul_(slopes[-1][:-1], v[i]).addcmul_(table[place][:-1], dv[i])
            slopes.append(slope)
        return table, slopes

    def _split_kept_and_dropped(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """P(m_i = 1) and P(m_i = 0), each without cancellation.  # (M, G) -> (M, G), (M, G)"""
        n, m = self.pattern.n, self.pattern.m
        u, v = self._factors(logits)
        f, b = self._table(u, v, range(m)), self._table(u, v, range(m - 1, -1, -1))
        kept, dropped = torch.empty_like(logits), torch.empty_like(logits)
        for i in range(m):
            kept[i] = v[i] * _product(f[i], b[m - 1 - i], n - 1)
            dropped[i] = u[i] * _product(f[i], b[m - 1 - i], n)
        return kept / f[m][n], dropped / f[m][n]


def _product(before: Tensor, after: Tensor, count: int) -> Tensor:
    """Σ_n before[n] after[count - n].  # (N + 1, G), (N + 1, G) -> (G,)"""
    return (before[: count + 1] * after[: count + 1].flip(0)).sum(0)


def _convolve(before: Tensor, after: Tensor, d_before: Tensor, d_after: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`_product` and its derivative."""
    return _product(before, after, count), _product(d_before, after, count) + _product(before, d_after, count)


def _blocks(function: Callable[..., Tensor], *planes: Tensor) -> Tensor:
    """Apply a function to blocks of groups, so that its tables stay in the cache; groups are the last axis."""
    groups = planes[0].shape[-1]
    size = _GROUPS if planes[0].device.type == "cpu" else _GROUPS_GPU
    if groups <= size:
        return function(*planes)
    return torch.cat([function(*(p[..., i : i + size] for p in planes)) for i in range(0, groups, size)], dim=-1)

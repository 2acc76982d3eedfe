"""What is measured of a model's products: each shape at each number of tokens.

Shapes: `M` tokens, `K` inputs, `N` outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskpro_deploy.errors import ConfigError, check_range

_COPIES_BYTES = 32 << 20  # enough for a sample of a millisecond, and quick to make


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One shape at one number of tokens."""

    k: int  # the weight, `# (K, N)`
    n: int
    m: int  # tokens
    count: int  # how often a token goes through such a product in the model
    copies: int  # products in one sample

    @property
    def label(self) -> str:
        """Such as "576 x 1536 (x 60), M 16"."""
        return f"{self.k} x {self.n} (x {self.count}), M {self.m}"

    @property
    def operations(self) -> int:
        """Multiplications and additions of one product."""
        return 2 * self.m * self.k * self.n


def plan_cases(products: Mapping[tuple[int, int], int], tokens: Sequence[int]) -> list[KernelCase]:
    """Shape by shape, the numbers of tokens of each.

    Args:
        products: (K, N) -> how many the model has.
        tokens: values of M.

    Raises:
        ConfigError: there is no product, or an M below 1.
    """
    if not products:
        raise ConfigError("the graph has no matrix product with a constant weight: there is nothing to measure.")
    for m in tokens:
        check_range("--tokens", m, least=1)
    return [
        KernelCase(k=k, n=n, m=m, count=count, copies=min(count, max(1, _COPIES_BYTES // (4 * k * n))))
        for (k, n), count in products.items()
        for m in tokens
    ]

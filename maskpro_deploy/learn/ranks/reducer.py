"""Gradients of all ranks, summed layer by layer inside the backward pass.

Each layer's gradient leaves for the other ranks in bf16 as soon as the backward pass has it, and is taken when the sum is there,
while the pass goes on with the layers before it: the gradients of a few layers are in memory, never those of the model. All ranks
send the layers in one order. A layer that this rank's tokens did not reach (an expert that none of them chose) sends zeros.

Shapes: `O` outputs, `C` inputs of a layer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from maskpro_deploy.learn.model.masked_linear import L, SiteHook
from maskpro_deploy.learn.ranks.group import Pending, Ranks

_IN_FLIGHT = 4  # sums that are waited for at a time


class GradientReducer(SiteHook[L]):
    """Stands between the layers of a model and who learns on them.

    Args:
        hook: who learns.
        layers: all of them, in the order of a forward pass.
        ranks: the processes.
    """

    def __init__(self, hook: SiteHook[L], layers: Sequence[L], ranks: Ranks) -> None:
        self._hook, self._ranks = hook, ranks
        self._order = list(reversed(layers))
        self._ready: dict[str, Tensor] = {}
        self._next = 0  # of the order, to be sent
        self._sent: deque[tuple[L, Pending, torch.dtype]] = deque()

    def draw_mask(self, site: L) -> Tensor:
        return self._hook.draw_mask(site)

    def needs_gradient(self, site: L) -> bool:
        return self._hook.needs_gradient(site)

    def compute_outputs(self, site: L, x: Tensor) -> Tensor:
        return self._hook.compute_outputs(site, x)

    def take_gradient(self, site: L, grad_weight: Tensor) -> None:
        """Send what can be sent.  # (O, C)"""
        held = self._ready.get(site.name)
        self._ready[site.name] = grad_weight if held is None else held + grad_weight
        self._send(finish=False)

    def finish(self) -> None:
        """The backward pass is over: send what is left, and let all sums be taken."""
        self._send(finish=True)
        while self._sent:
            self._take()
        self._next = 0

    def _send(self, *, finish: bool) -> None:
        while self._next < len(self._order):
            site = self._order[self._next]
            if not self._hook.needs_gradient(site):
                self._next += 1
                continue
            grad = self._ready.pop(site.name, None)
            if grad is None and not finish:
                return
            dtype = site.weight.dtype if grad is None else grad.dtype
            sent = site.weight.new_zeros(site.weight.shape, dtype=torch.bfloat16) if grad is None else grad.bfloat16()
            self._next += 1
            self._sent.append((site, self._ranks.start_sum(sent), dtype))
            if len(self._sent) > _IN_FLIGHT:
                self._take()

    def _take(self) -> None:
        site, pending, dtype = self._sent.popleft()
        self._hook.take_gradient(site, pending.wait().to(dtype))

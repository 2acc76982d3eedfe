"""Adam for what is small: torch's own, with values and both moments in float32."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STATE = ("step", "exp_avg", "exp_avg_sq")  # torch's names
_BETAS = (0.9, 0.95)


class ExactAdam:
    """torch's AdamW over some float32 tensors, which it moves in place; keys are `kind/name`."""

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.0, betas: tuple[float, float] = _BETAS) -> None:
        self._own = dict(tensors)
        self._optimizer = torch.optim.AdamW(self._own.values(), betas=betas, weight_decay=decay)

    def __getitem__(self, key: str) -> Tensor:
        return self._own[key]

    def add(self, key: str, grad: Tensor) -> None:
        """Take a gradient for the coming step; several of one tensor add up."""
        before = self._own[key].grad
        self._own[key].grad = grad if before is None else before + grad

    def move(self, rate: float) -> None:
        """Take a step with the gradients that are there, and forget them."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()

    def values(self) -> dict[str, Tensor]:
        """A copy of the tensors."""
        return {key: x.detach().clone() for key, x in self._own.items()}

    def restore_values(self, values: Mapping[str, Tensor]) -> None:
        """Put values back."""
        for key, x in self._own.items():
            x.copy_(values[key])

    def tensors(self) -> dict[str, Tensor]:
        """The optimiser's state, by `kind_what/name`."""
        states = self._optimizer.state
        return {_name_state(key, what): x for key, own in self._own.items() for what, x in states.get(own, {}).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take a saved state."""
        for key, own in self._own.items():
            state = {what: tensors[_name_state(key, what)] for what in _STATE if _name_state(key, what) in tensors}
            if state:  # torch keeps the count of steps on the CPU
                self._optimizer.state[own] = {w: x.clone() if w == "step" else x.to(own.device) for w, x in state.items()}


def _name_state(key: str, what: str) -> str:
    kind, _, name = key.partition("/")
    return f"{kind}_{what}/{name}"

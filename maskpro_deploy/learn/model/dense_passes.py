"""How far a model with some changed layers is from the dense one, by forward passes that begin where the first change is.

What a block of the dense model gives is kept for every block, so that the blocks before a change need not run again. A model
whose blocks hand on more than hidden states runs as a whole instead.

Shapes: `B` sequences, `T` tokens in a sequence, `D` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from maskpro_deploy.errors import InputError
from maskpro_deploy.learn.model.calibration import decoder_blocks
from maskpro_deploy.learn.model.model import LearningModel, keep_hooks
from maskpro_deploy.learn.model.objective import Taught, next_token_loss


class DensePasses:
    """The dense model's hidden states on batches of tokens (B, T), to compare with.

    It takes the memory of one hidden state a block and token.
    """

    def __init__(self, model: LearningModel, batches: Sequence[Tensor]) -> None:
        self._model, self._batches = model, list(batches)
        try:
            self._blocks: Mapping[str, nn.Module] = decoder_blocks(model.model)
        except InputError:
            self._blocks = {}
        self._outputs: list[list[Any]] = []  # of every batch: what each block gave
        self._hidden: list[Tensor] = []  # and the last hidden states (B, T, D)
        with torch.inference_mode():
            for tokens in self._batches:
                given: list[Any] = []
                with keep_hooks(block.register_forward_hook(_note(given)) for block in self._blocks.values()):
                    self._hidden.append(model.compute_hidden(tokens, differentiable=False))
                self._outputs.append(given)
        if any(len(given) != len(self._blocks) or not all(map(_is_state, given)) for given in self._outputs):
            self._blocks = {}

    @property
    def count(self) -> int:
        """Batches that are compared on."""
        return len(self._batches)

    def keep(self, count: int) -> None:
        """Compare on the first few batches alone."""
        del self._batches[count:], self._outputs[count:], self._hidden[count:]

    @torch.inference_mode()
    def measure_divergence(self, changed: Sequence[str]) -> float:
        """KL(dense ‖ the model as it is now), a mean over tokens; nats. `changed` names the weights that differ."""
        first = self._find_first(changed)
        total, seen = 0.0, 0
        for tokens, given, dense in zip(self._batches, self._outputs, self._hidden, strict=True):
            with _skip(list(self._blocks.values())[:first], given):
                hidden = self._model.compute_hidden(tokens, differentiable=False)
            head = self._model.output_head
            taught = Taught(dense.flatten(0, 1), head)
            loss = next_token_loss(hidden.flatten(0, 1), head, tokens.flatten(), taught, 1.0)
            total += float(loss) * tokens.numel()
            seen += tokens.numel()
        return total / seen

    def _find_first(self, changed: Sequence[str]) -> int:
        """How many blocks come before all that changed."""
        places = [i for name in changed for i, block in enumerate(self._blocks) if name.startswith(f"{block}.")]
        return min(places) if len(places) == len(changed) else 0


def _note(given: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    def note(module: nn.Module, args: Any, output: Any) -> None:
        given.append(output)

    return note


def _is_state(output: Any) -> bool:
    """Whether a block gave hidden states and nothing more."""
    return isinstance(output, Tensor) or (isinstance(output, tuple) and len(output) == 1)


@contextmanager
def _skip(blocks: Sequence[nn.Module], outputs: Sequence[Any]) -> Iterator[None]:
    """Have blocks give what they gave before, without running."""
    for block, output in zip(blocks, outputs, strict=False):
        block.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for block in blocks:
            del block.forward

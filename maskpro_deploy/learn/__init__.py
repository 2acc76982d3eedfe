"""Learn strict N:M masks for a language model, and train the weights that they keep.

    from maskpro_deploy import LearnConfig, NMPattern, learn_masks

    masks = learn_masks("demo", "builtin", LearnConfig(pattern=NMPattern.parse("2:4"), budget_s=300))

What enters: a checkpoint and text. What leaves: masks, or a sparse checkpoint. May import: torch_lm and below.

`api` is the way in, `recovery.api` that of training the kept weights; `choices` lists the estimators, priors, objectives,
distributions and methods there are; `loop` is what all runs go by. The rooms, each above the next: `recovery`, `estimators` and
`priors`, `model`, `kernels`, `distributions`. Names load on first use, so that the command line can offer the choices without
torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskpro_deploy.learn.api import LearnResult as LearnResult
    from maskpro_deploy.learn.api import learn_checkpoint as learn_checkpoint
    from maskpro_deploy.learn.api import learn_masks as learn_masks
    from maskpro_deploy.learn.config import LearnConfig as LearnConfig
    from maskpro_deploy.learn.loop import Point as Point
    from maskpro_deploy.learn.recovery.api import RecoverResult as RecoverResult
    from maskpro_deploy.learn.recovery.api import recover as recover
    from maskpro_deploy.learn.recovery.api import recover_checkpoint as recover_checkpoint
    from maskpro_deploy.learn.recovery.config import RecoverConfig as RecoverConfig

_WHERE = {
    "LearnConfig": "config",
    "LearnResult": "api",
    "Point": "loop",
    "RecoverConfig": "recovery.config",
    "RecoverResult": "recovery.api",
    "learn_checkpoint": "api",
    "learn_masks": "api",
    "recover": "recovery.api",
    "recover_checkpoint": "recovery.api",
}
__all__ = [
    "LearnConfig", "LearnResult", "Point", "RecoverConfig", "RecoverResult", "learn_checkpoint", "learn_masks", "recover",
    "recover_checkpoint",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"maskpro_deploy.learn.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

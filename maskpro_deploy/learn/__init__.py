"""Learn strict N:M masks for a language model.

    from maskpro_deploy import LearnConfig, NMPattern, learn_masks

    masks = learn_masks("demo", "builtin", LearnConfig(pattern=NMPattern.parse("2:4"), budget_s=300))

What enters: a checkpoint and text. What leaves: masks, or a sparse checkpoint. May import: torch_lm and below.

`api` is the way in; `choices` lists the estimators, priors, objectives and distributions there are; `trainer` has the loop.
The rooms, each above the next: `estimators` and `priors`, `model`, `kernels`, `distributions`. Names load on first use, so that
the command line can offer the choices without torch.
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

_WHERE = {"LearnConfig": "config", "LearnResult": "api", "Point": "loop", "learn_checkpoint": "api", "learn_masks": "api"}
__all__ = ["LearnConfig", "LearnResult", "Point", "learn_checkpoint", "learn_masks"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"maskpro_deploy.learn.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

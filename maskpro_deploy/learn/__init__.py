"""Learn strict N:M masks for a language model.

    from maskpro_deploy import LearnConfig, NMPattern, learn_masks

    masks = learn_masks("demo", "builtin", LearnConfig(pattern=NMPattern.parse("2:4"), budget_s=300))

The idea in four modules: `distribution` (a linear-space distribution over the masks of a group), `sites` (layers that sample
masks and turn weight gradients into logit gradients), `priors` (where learning starts), `trainer` (the loop).
"""

from __future__ import annotations

from maskpro_deploy.learn.api import LearnResult, learn_checkpoint, learn_masks
from maskpro_deploy.learn.config import LearnConfig
from maskpro_deploy.learn.trainer import Point

__all__ = ["LearnConfig", "LearnResult", "Point", "learn_checkpoint", "learn_masks"]

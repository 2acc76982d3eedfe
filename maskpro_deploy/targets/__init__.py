"""Opening what a user names - a bundle, a checkpoint, a server's address - as something that can be measured.

What enters: paths, names and providers. What leaves: models that give logits, arms of a benchmark, servers that answer. May
import: exporters, runtime and all below them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskpro_deploy.targets.models import find_target as find_target
    from maskpro_deploy.targets.models import open_target as open_target

__all__ = ["find_target", "open_target"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # on first use: the server's command needs none of this
        from maskpro_deploy.targets import models

        return getattr(models, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Take a language model to strict N:M sparsity and into production.

The light names are here at once; those that need torch, onnxruntime or onnx load on first use:

    from maskpro_deploy import NMPattern, MaskSet, learn_masks, validate
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maskpro_deploy._version import __version__ as __version__

if TYPE_CHECKING:
    from maskpro_deploy.errors import MaskProError as MaskProError
    from maskpro_deploy.learn import LearnConfig as LearnConfig
    from maskpro_deploy.learn import RecoverConfig as RecoverConfig
    from maskpro_deploy.learn import learn_masks as learn_masks
    from maskpro_deploy.learn import recover as recover
    from maskpro_deploy.masks import MaskSet as MaskSet
    from maskpro_deploy.pattern import NMPattern as NMPattern
    from maskpro_deploy.validation import ValidationReport as ValidationReport
    from maskpro_deploy.validation import validate as validate

_WHERE = {
    "MaskProError": "errors",
    "NMPattern": "pattern",
    "MaskSet": "masks",
    "LearnConfig": "learn",
    "RecoverConfig": "learn",
    "learn_masks": "learn",
    "recover": "learn",
    "ValidationReport": "validation",
    "validate": "validation",
}
__all__ = [
    "LearnConfig",
    "MaskProError",
    "MaskSet",
    "NMPattern",
    "RecoverConfig",
    "ValidationReport",
    "__version__",
    "learn_masks",
    "recover",
    "validate",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"maskpro_deploy.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

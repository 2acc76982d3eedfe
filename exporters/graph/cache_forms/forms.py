"""The forms of the key/value cache that a graph can have.

The transformer is described once (`layers.py` and the architectures); how it remembers the past is a form. All forms of a
bundle read the same data file and give the same tokens.

    cat      the cache grows by Concat        onnxruntime, onnxruntime-genai, TensorRT    rows padded on the left
    static   the cache has a fixed length     TensorRT in place, onnxruntime              rows need no padding
    gqa      GroupQueryAttention has it       onnxruntime, fast at long contexts          rows padded on the right
"""

from __future__ import annotations

from typing import Protocol

from maskpro_deploy.exporters.graph.cache_forms.cat import Cat
from maskpro_deploy.exporters.graph.cache_forms.common import KVForm
from maskpro_deploy.exporters.graph.cache_forms.gqa import Gqa
from maskpro_deploy.exporters.graph.cache_forms.static import Static


class MakeForm(Protocol):
    """Makes a form for caches of a length (which only `static` fixes); `alone`: no other form reads the same data file."""

    def __call__(self, length: int, *, alone: bool = False) -> KVForm: ...


FORMS: dict[str, MakeForm] = {
    "cat": lambda length, *, alone=False: Cat(),
    "static": lambda length, *, alone=False: Static(length),
    "gqa": lambda length, *, alone=False: Gqa(packed=alone),
}

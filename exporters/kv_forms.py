"""The forms of the key/value cache that a graph can have.

The transformer is described once (`layers.py` and the architectures); how it remembers the past is a form. All forms of a
bundle read the same data file and give the same tokens.

    cat      the cache grows by Concat        onnxruntime, onnxruntime-genai, TensorRT    rows padded on the left
    static   the cache has a fixed length     TensorRT in place, onnxruntime              rows need no padding
    gqa      GroupQueryAttention has it       onnxruntime, fast at long contexts          rows padded on the right
"""

from __future__ import annotations

from collections.abc import Callable

from maskpro_deploy.exporters.kv_cat import Cat
from maskpro_deploy.exporters.kv_common import KVForm
from maskpro_deploy.exporters.kv_gqa import Gqa
from maskpro_deploy.exporters.kv_static import Static

# name -> the form for caches of a length (which only `static` fixes)
FORMS: dict[str, Callable[[int], KVForm]] = {
    "cat": lambda length: Cat(),
    "static": Static,
    "gqa": lambda length: Gqa(),
}

"""The forms of the key/value cache that a graph can have: the one list of them, for exporters, runtime and command line.

A transformer is described once; how its graph remembers the past is a form. All forms of a bundle read the same data file and
give the same tokens. To add one: an entry here, the graph's operators in a file of its name in `exporters/graph/cache_forms`, and
what feeds it where graphs are run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskpro_deploy.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheForm:
    """What is known of a form without its graph."""

    name: str  # in `--forms`, `--form` and the manifest
    summary: str  # what the cache does, and what runs such graphs, in words
    runs_on: str
    inputs: tuple[str, ...]  # the graph's inputs besides tokens and cache
    padding: Literal["left", "right", "none"]  # where rows of different lengths are padded between their tokens
    opset: int = 23  # version of the standard operators that it needs
    grows: bool = True  # the cache is longer after each call; else it has a fixed length (`manifest.Graph.length`)
    tensorrt: bool = False  # TensorRT builds engines of it
    onnxruntime_gpu: bool = False  # onnxruntime runs it on a GPU here
    genai: Literal["growing", "shared buffer", ""] = ""  # how onnxruntime-genai holds its cache; "" if it cannot drive the form


CACHE_FORMS = {
    form.name: form
    for form in (
        CacheForm(
            name="cat",
            summary="grows by Concat",
            runs_on="onnxruntime, onnxruntime-genai, TensorRT",
            inputs=("attention_mask", "position_ids"),
            padding="left",
            tensorrt=True,
            onnxruntime_gpu=True,
            genai="growing",
        ),
        CacheForm(
            name="static",
            summary="fixed length, TensorScatter at `write_indices`",
            runs_on="TensorRT in place, onnxruntime",
            opset=24,
            inputs=("position_ids", "write_indices"),
            grows=False,
            padding="none",
            tensorrt=True,
        ),
        CacheForm(
            name="gqa",
            summary="GroupQueryAttention's, grows or shared",
            runs_on="onnxruntime, fast at long contexts; onnxruntime-genai",
            inputs=("attention_mask", "position_ids"),
            padding="right",
            genai="shared buffer",
        ),
    )
}
DEFAULT_FORM = next(iter(CACHE_FORMS))
ENGINE_FORMS = tuple(form.name for form in CACHE_FORMS.values() if form.tensorrt)
GENAI_FORMS = tuple(form.name for form in CACHE_FORMS.values() if form.genai)


def cache_form(name: str) -> CacheForm:
    """The form of a graph, by its name in a manifest (FormatError: a later version made it)."""
    if name not in CACHE_FORMS:
        raise FormatError(
            f"the bundle has a graph with the cache form {name!r}; this version knows {', '.join(CACHE_FORMS)}.\n"
            f"Export the bundle again, or run it with the version that made it."
        )
    return CACHE_FORMS[name]

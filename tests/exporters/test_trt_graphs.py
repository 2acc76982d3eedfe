"""TensorRT-RTX's parser takes every kind of graph, and its builder makes an engine of it, without a GPU.

Every architecture is parsed in both forms, in fp16 and in one other way to store weights; builds take seconds each, so a few of
them cover the operators, forms and types between them. `scripts/check_engines` builds all.
"""

from __future__ import annotations

import pytest
from architectures import DECODERS, make
from engine_jobs import jobs, run

from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.extras import missing

pytestmark = [
    pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed"),
    pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed"),
]
OTHERS = (("bf16", None), ("fp16", "int8"), ("fp16", "int4"), ("fp16", "fp8"))
STORED = {name: (("fp16", None), OTHERS[i % 4]) for i, name in enumerate(DECODERS)}
THROUGH_MOBIUS = {"granite": (("fp16", None),), "gpt_neox": (("fp16", "int4"),)}
FORMS = ("cat", "static")
# softcap spelled out; two windows and ropes, normed heads; cut heads and two tables; LayerNorm
BUILT = {
    ("gemma2", "fp16", None): "cat",
    ("gemma3", "bf16", None): "static",
    ("phi4 with longrope", "fp16", "int8"): "static",
    ("gpt2", "fp16", "int4"): "cat",
    ("qwen3", "fp16", "fp8"): "static",
}


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint, tmp_path_factory):
    """Makes bundles of the two forms, each once."""
    root, made = tmp_path_factory.mktemp("engines"), {}

    def make_one(name, dtype, quantize):
        checkpoint = root / name.replace(" ", "-")
        if not checkpoint.exists():
            make(name, checkpoint, tiny_checkpoint)
        out = root / f"{checkpoint.name}-{dtype}-{quantize}"
        if out not in made:
            config = ExportConfig(dtype=dtype, quantize=quantize, forms=FORMS, max_length=64)
            made[out] = export(checkpoint, out, config, compare=False)
        return out

    return make_one


def results(bundle, cases):
    """Parse all graphs of some bundles in one process: (name, dtype, quantize, form) -> layers, or the error."""
    todo = [job for case in cases for job in jobs(bundle(*case), build=False)]
    return dict(zip(((*case, form) for case in cases for form in FORMS), run(todo, timeout=600), strict=True))


def check(found):
    refused = {case: said for case, said in found.items() if not isinstance(said, int) or said < 50}
    assert not refused, refused


def test_every_architecture_is_parsed_in_both_forms(bundle):
    cases = [(name, *stored) for name, ways in STORED.items() for stored in ways]
    assert {stored for ways in STORED.values() for stored in ways} == {("fp16", None), *OTHERS}
    found = results(bundle, cases)
    assert len(found) == 2 * 2 * len(DECODERS)
    check(found)


@pytest.mark.skipif(bool(missing("architectures")), reason="the extra architectures is not installed")
def test_graphs_of_the_front_end_are_parsed(bundle):
    check(results(bundle, [(name, *stored) for name, ways in THROUGH_MOBIUS.items() for stored in ways]))


def test_engines_of_all_forms_types_and_kinds_of_operators_are_built(bundle):
    assert {dtype for _, dtype, _ in BUILT} == {"fp16", "bf16"}
    assert {quantize for *_, quantize in BUILT} == {None, "int8", "int4", "fp8"}
    assert set(BUILT.values()) == set(FORMS)
    todo = [jobs(bundle(*case), build=True)[FORMS.index(form)] for case, form in BUILT.items()]
    found = dict(zip(BUILT, run(todo, timeout=600), strict=True))
    assert all(isinstance(said, int) and said > 100_000 for said in found.values()), found

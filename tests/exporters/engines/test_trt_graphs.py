"""TensorRT-RTX builds an engine of every kind of graph, without a GPU.

Every architecture is built in both forms, in fp16 and in one other way to store weights, for several targets at once.
`scripts/check_engines` builds all ways.
"""

from __future__ import annotations

import pytest
from architectures import DECODERS, make
from engine_jobs import jobs, run

from maskpro_deploy.exporters import ExportConfig, export
from maskpro_deploy.system.extras import missing

pytestmark = [
    pytest.mark.skipif(bool(missing("tensorrt-rtx")), reason="tensorrt-rtx is not installed"),
    pytest.mark.skipif(bool(missing("learn")), reason="the learn extra is not installed"),
]
OTHERS = (("bf16", None), ("fp16", "int8"), ("fp16", "int4"), ("fp16", "fp8"))
STORED = {name: (("fp16", None), OTHERS[i % 4]) for i, name in enumerate(DECODERS)}
THROUGH_MOBIUS = {"granite": (("fp16", None),), "gpt_neox": (("fp16", "int4"),)}
FORMS = ("cat", "static")
TARGETS = ("sm86", "sm89", "sm120")
WITH_FP8 = TARGETS[1:]


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


def check_built(bundle, cases):
    """Build all graphs of some bundles, (name, dtype, quantize) each, in one process."""
    targets = {case: WITH_FP8 if case[-1] == "fp8" else TARGETS for case in cases}
    todo = [job for case in cases for job in jobs(bundle(*case), build=True, targets=targets[case])]
    found = dict(zip(((*case, form) for case in cases for form in FORMS), run(todo, timeout=1200), strict=True))
    assert len(found) == 2 * len(cases)
    refused = {case: said for case, said in found.items() if not isinstance(said, int) or said < 100_000}
    assert not refused, refused


def test_every_architecture_is_built_in_both_forms(bundle):
    assert {stored for ways in STORED.values() for stored in ways} == {("fp16", None), *OTHERS}
    check_built(bundle, [(name, *stored) for name, ways in STORED.items() for stored in ways])


@pytest.mark.skipif(bool(missing("architectures")), reason="the extra architectures is not installed")
def test_graphs_of_the_front_end_are_built(bundle):
    check_built(bundle, [(name, *stored) for name, ways in THROUGH_MOBIUS.items() for stored in ways])

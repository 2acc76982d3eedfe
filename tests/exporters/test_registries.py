"""The lists of cache forms, weight kinds and architectures: every entry works, and help, settings and docs follow from them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from architectures import DECODERS

from maskpro_deploy.cache_forms import CACHE_FORMS, ENGINE_FORMS, GENAI_FORMS, cache_form
from maskpro_deploy.commands.export import command
from maskpro_deploy.errors import FormatError
from maskpro_deploy.exporters import ExportConfig
from maskpro_deploy.exporters.architectures.registry import TEMPLATES
from maskpro_deploy.exporters.checks.logit_figures import TOLERANCES
from maskpro_deploy.exporters.engines.config import EngineConfig
from maskpro_deploy.exporters.frontends.templates import MOBIUS_AGREES
from maskpro_deploy.exporters.graph.cache_forms.base import make_form
from maskpro_deploy.exporters.graph.data_file import ELEMENT_TYPES
from maskpro_deploy.exporters.graph.quantization import Quantization
from maskpro_deploy.exporters.graph.weight_kinds import METHODS, WEIGHT_KINDS
from maskpro_deploy.exporters.layouts import graph_path

FAMILIES = Path(__file__).parents[2] / "docs" / "families.md"
DOCS = (FAMILIES.parent / "export.md").read_text()


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |")


@pytest.mark.skipif(not FAMILIES.exists(), reason="scripts/check_families has not written it yet")
def test_what_mobius_is_trusted_with_is_what_the_table_of_families_shows():
    makers: dict[str, set[str]] = {}
    for line in FAMILIES.read_text().splitlines():
        if row := re.fullmatch(r"\| ([^|]+) \| (template|mobius-onnx|transformers) \|", line):
            makers.setdefault(row[1].partition(",")[0], set()).add(row[2])
    assert {kind for kind in MOBIUS_AGREES & makers.keys() if makers[kind] != {"mobius-onnx"}} == set()


def rows_below(header):
    """The rows of the table with this header, in order."""
    lines = DOCS[DOCS.index(header) :].splitlines()[2:]
    return lines[: lines.index("")]


@pytest.mark.parametrize("name", CACHE_FORMS)
def test_a_form_has_operators_and_settings_take_it(name):
    form = CACHE_FORMS[name]
    assert form.name == name
    assert make_form(name, 16).facts is form
    assert ExportConfig(forms=(name,)).forms == (name,)
    assert (name in ENGINE_FORMS, name in GENAI_FORMS) == (form.tensorrt, bool(form.genai))
    if form.tensorrt:
        assert EngineConfig(form=name).form == name


def test_a_form_of_a_later_version_is_refused():
    with pytest.raises(FormatError, match=r"cache form 'ring'; this version knows cat, static, gqa\."):
        cache_form("ring")


@pytest.mark.parametrize("name", WEIGHT_KINDS)
def test_a_weight_kind_holds_its_range_and_settings_take_it(name):
    kind = WEIGHT_KINDS[name]
    assert kind.name == name
    ends = np.asarray([kind.smallest, 0, kind.largest], np.float32)
    np.testing.assert_array_equal(ends.astype(kind.dtype).astype(np.float32), ends)
    assert kind.dtype in ELEMENT_TYPES
    assert name in TOLERANCES
    assert set(kind.heads) <= WEIGHT_KINDS.keys()
    assert set(kind.methods) <= METHODS.keys()
    assert Quantization.make(name, None).of_head().kind == kind.heads[0]
    for method in kind.methods:
        assert ExportConfig(quantize=name, method=method).quantization == Quantization.make(name, None)


def test_the_help_of_export_names_all_of_them():
    options = {option.opts[0]: option.metavar for option in command.params if option.opts[0].startswith("--")}
    assert options["--forms"] == ",".join(CACHE_FORMS)
    assert options["--quantize"] == "|".join(WEIGHT_KINDS)
    assert options["--method"] == "|".join(METHODS)


def test_every_architecture_has_a_tiny_model_that_is_compared_with_transformers():
    assert TEMPLATES.keys() - {"llama"} <= {kind for kind, _ in DECODERS.values()}


def test_the_tables_of_the_docs_follow_from_the_lists():
    assert rows_below("| `model_type` |") == [row(f"`{name}`", t.models, t.special) for name, t in TEMPLATES.items()]
    assert rows_below("| form |") == [
        row(f"`{name}`", f"`{graph_path('bundle', name, name, None, 'fp32')}`", form.summary, form.runs_on, form.padding)
        for name, form in CACHE_FORMS.items()
    ]
    assert rows_below("| `--quantize` |") == [
        row(
            f"`{name}`",
            kind.bits,
            f"{kind.smallest} to {kind.largest}",
            f"{kind.default_block or 'all'}{'' if kind.blocks else ', always'}",
            ", ".join(kind.heads),
            ", ".join(kind.methods),
        )
        for name, kind in WEIGHT_KINDS.items()
    ]

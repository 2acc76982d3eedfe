"""Graphs that other tools make: what is sparse passes, and nothing passes with one dense weight.

`scripts/check_foreign_graphs` has many more of them.
"""

from __future__ import annotations

import os

import pytest
from foreign_cases import quick_cases
from foreign_graphs import Case, Workshop
from foreign_verdicts import REFUSED, judge

CASES = quick_cases()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("foreign"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_a_foreign_graph_gets_the_right_verdict(case, workshop, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    said = judge(workshop.make(case, dense=False), workshop.make(case, dense=True))
    assert not said.wrong
    if case.label in REFUSED:
        assert REFUSED[case.label] in said.refused
    else:
        assert not said.refused


def test_a_quantisation_that_fills_zeros_is_noticed(workshop):
    sparse = workshop.make(Case("torchscript/encoder", ("hqq",)), dense=False)
    assert judge(sparse, sparse).broken


def test_few_sparse_graphs_are_refused():
    labels = [case.label for case in CASES]
    assert len(set(labels)) == len(labels) >= 100
    assert len(REFUSED.keys() & set(labels)) < 0.02 * len(labels)

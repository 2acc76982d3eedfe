"""Short runs of `scripts/check_verdicts` and `scripts/fuzz`: no wrong verdict, and nothing but reports and plain errors."""

from __future__ import annotations

import os
from collections import Counter

import pytest
from file_cases import BUILDERS, build
from fuzz_cases import fuzz_once, make_corpus


def test_random_files_of_all_formats_get_the_right_verdict(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # files of a second need not outlive the machine
    seen = Counter()
    for seed in range(300):
        folder = tmp_path / str(seed)
        folder.mkdir()
        case = build(seed, folder)
        said = case.verdict()
        assert case.is_right(said), f"seed {seed}: {case.label}: {said}"
        seen[case.label.split()[0], case.holds] += 1
    formats = {name for name, _ in seen}
    assert formats == {"safetensors", "checkpoint", "masks", "npz", "bitmask", "onnx", "bundle"}
    assert all(seen[name, True] and seen[name, False] for name in formats)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def test_the_corpus_has_every_kind_that_can_hold(corpus):
    assert len(corpus) == len(set(BUILDERS)) - 1  # one builder makes only damaged files


@pytest.mark.parametrize("block", range(10))
def test_damaged_files_end_in_a_report_or_a_plain_error(corpus, block):
    outcomes = Counter(fuzz_once(seed, corpus) for seed in range(30 * block, 30 * (block + 1)))
    assert outcomes["FormatError"] > 5

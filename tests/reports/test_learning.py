from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from maskpro_deploy.data import Text, load_text
from maskpro_deploy.learn import LearnConfig, LearnResult, learn_checkpoint
from maskpro_deploy.pattern import NMPattern
from maskpro_deploy.reports.blocks import render
from maskpro_deploy.reports.learning import build_page

LARGEST = 300_000  # bytes of a page


def learn(dense: Path, out: Path, weights: str) -> tuple[LearnResult, LearnConfig]:
    config = LearnConfig(
        pattern=NMPattern(2, 4), steps=6, window=32, batch_tokens=128, calibration_tokens=128, heldout_tokens=256,
        evaluations=2, learning_rate=0.2, dtype="float32", weights=weights,
    )  # fmt: skip
    text, heldout = (Text(name=n, documents=load_text(n).documents[:2]) for n in ("builtin", "builtin:heldout"))
    return learn_checkpoint(dense, out, text, heldout, config, device="cpu"), config


Run = tuple[str, LearnResult, str]  # what happens to the weights, the result, its page


@pytest.fixture(scope="module", params=["frozen", "train", "lora"])
def run(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    result, config = learn(tiny_checkpoint, tmp_path_factory.mktemp("learned") / "sparse", request.param)
    return request.param, result, render(build_page(result, config, result.rows(), "maskpro-deploy learn"))


def titles(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_a_page_shows_the_weights_where_they_move_and_only_there(run: Run) -> None:
    weights, result, page = run
    moved = weights != "frozen"
    assert bool(result.moved_by_layer) == moved
    assert ("Weights moved, layer by layer" in titles(page)) == moved
    assert (">weights moved (%)<" in page) == moved
    assert ("2:4 mask and weights: " in page) == moved


def test_a_page_has_the_curve_the_movement_a_piece_of_the_mask_and_every_layer(run: Run) -> None:
    _, result, page = run
    assert titles(page)[:5] == ["Results", "Learning curve", "Movement", "A piece of the mask", "Groups changed, layer by layer"]
    assert f">training ({result.objective})<" in page
    by_layer = result.summary()["groups_changed_by_layer"]
    assert max(by_layer.values()) > 0
    for name, share in by_layer.items():
        block, kind = name.split(".")[2], name.split(".")[4]
        assert f"<title>block {block}, {kind}: {100 * share:.1f} %</title>" in page


def test_a_page_needs_nothing_but_itself_and_stays_small(run: Run) -> None:
    page = run[2]
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)  # the names of SVG and XLink are no addresses
    assert not re.search(r"url\((?!#)|@import|<script|<link|<img|<image|src=", page)
    assert len(page) < LARGEST

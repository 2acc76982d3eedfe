from __future__ import annotations

import math
from dataclasses import replace

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from maskpro_deploy.learn import Point
from maskpro_deploy.reports import curves
from maskpro_deploy.reports.curves import Phase

REFERENCES = {"dense": 2.0, "prior": 5.0, "not measured": math.nan}


def curve(count: int, tokens: int, *, flips: float = 0.0, entropy: float = 0.0, moved: float = 0.0) -> list[Point]:
    """Points of a run; figures are those of its end."""
    part = [i / (count - 1) for i in range(count)]
    return [
        Point(
            step=i, tokens=tokens * i, seconds=10.0 * i, sample_loss=4.0 - part[i] if i else None, heldout_loss=4.5 - part[i],
            flips=flips * part[i], entropy=entropy, moved=moved * part[i], epochs=0.1 * i, memory=10**9,
        )
        for i in range(count)
    ]  # fmt: skip


MASKS = Phase("masks", curve(5, 1000, flips=0.1, entropy=0.5), "ce+kl")
WEIGHTS = Phase("weights", curve(4, 3000, moved=0.02), "ce+kl")


def test_the_tokens_of_a_phase_follow_those_of_the_one_before() -> None:
    third = Phase("more", curve(3, 10))
    assert curves.list_starts([MASKS, WEIGHTS, third]) == [0, 4000, 13000]
    held_out = curves.join_losses([MASKS, WEIGHTS])["held out"]
    x = [t for t, _ in held_out if not math.isnan(t)]
    assert x == sorted(x) == [0, 1000, 2000, 3000, 4000, 4000, 7000, 10000, 13000]
    assert [loss for _, loss in held_out[:5]] == [p.heldout_loss for p in MASKS.curve]


def test_a_line_is_interrupted_between_phases_and_nowhere_else() -> None:
    for points in curves.join_losses([MASKS, WEIGHTS]).values():
        gaps = [i for i, (x, y) in enumerate(points) if math.isnan(x) and math.isnan(y)]
        assert len(gaps) == 1
        assert points[gaps[0] - 1][0] == 4000
    assert not any(math.isnan(x) for points in curves.join_losses([MASKS]).values() for x, _ in points)


def test_training_losses_of_other_objectives_are_other_lines() -> None:
    lines = curves.join_losses([MASKS, WEIGHTS._replace(objective="kl")])
    assert set(lines) == {"training (ce+kl)", "training (kl)", "held out"}


def test_a_loss_that_is_not_in_nats_is_not_drawn_among_losses_that_are() -> None:
    phases = [MASKS._replace(objective="block"), WEIGHTS]
    assert len(curves.join_losses(phases)["training (ce+kl)"]) == len(WEIGHTS.curve) - 1
    assert "What masks minimised has another unit" in curves.draw_losses(phases, REFERENCES).caption


def test_the_learning_curve_names_phases_and_references_that_are_known() -> None:
    svg = curves.draw_losses([MASKS, WEIGHTS], REFERENCES).plot.text
    for name in ("masks", "weights", "held out", "training (ce+kl)", "dense", "prior"):
        assert f">{name}<" in svg
    assert ">not measured<" not in svg
    assert ">masks<" not in curves.draw_losses([MASKS], REFERENCES).plot.text


@pytest.mark.parametrize(
    ("phases", "drawn"),
    [
        ([MASKS], {"groups changed (%)", "entropy (nats)"}),
        ([WEIGHTS], {"weights moved (%)"}),
        ([MASKS, WEIGHTS], {"groups changed (%)", "entropy (nats)", "weights moved (%)"}),
        ([Phase("still", curve(3, 10))], set()),
    ],
    ids=["masks", "weights", "both", "still"],
)
def test_what_did_not_move_is_not_drawn(phases: list[Phase], drawn: set[str]) -> None:
    sections = curves.draw_movements(phases)
    svg = "".join(section.plot.text for section in sections)  # type: ignore[union-attr]
    assert {m.axis for m in curves._MOVEMENTS if f">{m.axis}<" in svg} == drawn
    header = curves.tabulate_points(phases).header
    assert {m.axis for m in curves._MOVEMENTS if m.column in header} == drawn


def test_the_table_has_a_row_for_every_measurement_and_says_its_phase() -> None:
    table = curves.tabulate_points([MASKS, WEIGHTS])
    assert [row[0] for row in table.rows] == ["masks"] * 5 + ["weights"] * 4
    assert table.header[0] == "phase"
    assert curves.tabulate_points([MASKS]).header[0] == "step"
    first = replace(MASKS.curve[0], heldout_loss=1.0)
    assert f"{math.e:.2f}" in curves.tabulate_points([Phase("masks", [first])]).rows[0]

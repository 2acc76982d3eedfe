"""The order of windows: everything is seen, texts have their shares at any time, and the seed decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.errors import ConfigError
from maskpro_deploy.learn.window_order import Part, WindowOrder

PARTS = st.lists(st.builds(Part, st.integers(1, 30), st.integers(1, 3)), min_size=1, max_size=4)


@given(PARTS, st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_sees_every_window_and_each_text_in_its_turns(parts: list[Part], seed: int, epoch: int) -> None:
    order = WindowOrder(parts, seed)
    drawn = order.draw(epoch)
    assert len(drawn) == len(order)
    assert set(drawn) == set(range(sum(part.windows for part in parts)))
    borders = np.cumsum([0, *(part.windows for part in parts)])
    turns = sum(part.turns for part in parts)
    for start in range(0, len(drawn), turns):
        owners = Counter(int(np.searchsorted(borders, w, side="right")) - 1 for w in drawn[start : start + turns])
        assert len(parts) == 1 or owners == {i: part.turns for i, part in enumerate(parts)}


@given(PARTS, st.integers(0, 5))
def test_a_text_is_seen_to_its_end_before_it_comes_again(parts: list[Part], seed: int) -> None:
    drawn = WindowOrder(parts, seed).draw(0)
    start = 0
    for part in parts:
        own = drawn[(drawn >= start) & (drawn < start + part.windows)]
        for begin in range(0, len(own) - part.windows + 1, part.windows):
            assert len(set(own[begin : begin + part.windows])) == part.windows
        start += part.windows


def test_one_text_is_shuffled_as_always() -> None:
    order = WindowOrder([Part(50)], 3)
    assert np.array_equal(order.draw(2), np.random.default_rng((3, 2)).permutation(50))
    assert not np.array_equal(order.draw(0), order.draw(1))
    assert not np.array_equal(order.draw(0), WindowOrder([Part(50)], 4).draw(0))


@pytest.mark.parametrize("parts", [[], [Part(0)], [Part(3), Part(0)]])
def test_nothing_to_see_is_refused(parts: list[Part]) -> None:
    with pytest.raises(ConfigError, match="no text"):
        WindowOrder(parts, 0)

"""Batches over the cache: a sequence's logits do not depend on its company."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.backends.session import GraphSession, positions
from maskpro_deploy.runtime.sessions.batches import Batch, Prefill, left_mask

TOLERANCE = 1e-4
prompts = st.lists(st.integers(0, 319), min_size=1, max_size=20)


def read(session: GraphSession, *rows: list[int], columns: int = 7) -> tuple[np.ndarray, Batch]:
    """Logits after each prompt, and the batch."""
    prefill = Prefill(rows)
    while not prefill.finished:
        logits = prefill.advance(session, columns)
    return logits[:, -1], prefill.batch()


def alone(session: GraphSession, tokens: list[int]) -> np.ndarray:
    return session.logits(np.array([tokens]))[0, -1]


@settings(deadline=None, max_examples=25)
@given(rows=st.lists(prompts, min_size=1, max_size=4), columns=st.integers(1, 25))
def test_reading_together_in_chunks_is_reading_alone(session: GraphSession, rows: list[list[int]], columns: int) -> None:
    logits, _ = read(session, *rows, columns=columns)
    for row, tokens in zip(logits, rows, strict=True):
        np.testing.assert_allclose(row, alone(session, tokens), atol=TOLERANCE)


@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_joining_and_leaving_leaves_the_others_alone(session: GraphSession, data: st.DataObject) -> None:
    """Any history of joins, leaves and steps: each row's logits are those of its whole text read alone."""
    rows = [data.draw(prompts)]
    logits, batch = read(session, *rows)
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["join", "leave", "step"]))
        if action == "join" and len(rows) < 5:
            new = data.draw(st.lists(prompts, min_size=1, max_size=2))
            more, other = read(session, *new)
            rows, logits, batch = [*rows, *new], np.concatenate([logits, more]), batch.join(other)
        elif action == "leave":
            keep = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, max_size=5))
            rows, logits, batch = [rows[i] for i in keep], logits[keep], batch.keep(keep)
        else:
            tokens = np.array([data.draw(st.integers(0, 319)) for _ in rows])
            logits, batch = batch.step(session, tokens)
            rows = [[*row, int(t)] for row, t in zip(rows, tokens, strict=True)]
        assert batch.lengths.tolist() == [len(r) for r in rows]
        assert batch.cache.batch == len(rows)
        for row, tokens_of_row in zip(logits, rows, strict=True):
            np.testing.assert_allclose(row, alone(session, tokens_of_row), atol=TOLERANCE)


def test_leaving_takes_common_padding_along(session: GraphSession) -> None:
    _, batch = read(session, [1, 2, 3, 4, 5, 6], [7, 8])
    assert batch.cache.length == 6
    assert batch.keep([1]).cache.length == 2


def test_an_old_cache_stays_valid(session: GraphSession) -> None:
    """Steps on top of it, and caches that are made and dropped meanwhile, leave it as it was."""
    _, cache = session.forward(np.array([[5, 6, 7]]))
    first, longer = session.forward(np.array([[8]]), cache)
    session.forward(np.array([[9]]), longer)
    del longer
    session.forward(np.array([[1, 2, 3]]))
    second, _ = session.forward(np.array([[8]]), cache)
    np.testing.assert_array_equal(first, second)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), extra=st.integers(0, 4), new=st.integers(1, 3))
def test_positions_count_from_each_rows_own_start(lengths: list[int], extra: int, new: int) -> None:
    columns = max(lengths) + extra
    mask = left_mask(np.array(lengths), columns)
    assert mask.sum(axis=1).tolist() == lengths
    new = min(new, columns)
    for row, length in zip(positions(mask, new), lengths, strict=True):
        assert row.tolist() == [max(0, length - new + j) for j in range(new)]


def test_a_mask_that_does_not_fit_is_refused(session: GraphSession) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        session.forward(np.array([[1, 2]]), None, np.ones((1, 3), np.int64))

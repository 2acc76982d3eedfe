"""What is put together from pieces of caches is read as the text itself, in every form, at any place, with any padding."""

from __future__ import annotations

import numpy as np
import pytest
from dirty_device import device_session
from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.backends.cache_pieces import assemble, cut
from maskpro_deploy.backends.caches import PackedCache, SlotCache
from maskpro_deploy.backends.session import GraphSession
from maskpro_deploy.cache_forms import CACHE_FORMS
from maskpro_deploy.runtime.sessions.batches import Prefill

PIECE = 3
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=tuple(CACHE_FORMS))
def device(request, forms_bundle):
    return device_session(forms_bundle, request.param)


def read(session: GraphSession, prompts: list[list[int]]) -> PackedCache | SlotCache:
    prefill = Prefill(prompts)
    prefill.advance(session, prefill.width)
    assert isinstance(prefill.cache, PackedCache | SlotCache)
    return prefill.cache


prompts = st.lists(st.lists(st.integers(0, 319), min_size=2, max_size=12), min_size=1, max_size=3)


@settings(max_examples=30)
@given(rows=prompts, data=st.data())
def test_prompts_on_top_of_pieces_give_the_logits_of_whole_prompts(device, session, rows, data):
    """Rows use none of a prompt's tokens, some or nearly all; the new memory is full of NaN."""
    cache = read(device, rows)
    pieces = [
        [cut(cache, i, cache.length - len(row) + start, PIECE) for start in range(0, len(row) - PIECE + 1, PIECE)]
        for i, row in enumerate(rows)
    ]
    least = max(len(row) - min(len(p) * PIECE, len(row) - 1) for row, p in zip(rows, pieces, strict=True))
    columns = data.draw(st.integers(least, max(map(len, rows))), label="columns to read")
    lengths = np.array([max(0, len(row) - columns) for row in rows], np.int64)
    if not lengths.any():
        return
    prefill = Prefill(rows, assemble(type(cache), pieces, lengths, max(map(len, rows))))
    del cache
    logits = prefill.advance(device, prefill.width)[:, -1]
    batch = prefill.batch()
    after, batch = batch.step(device, np.zeros(len(rows), np.int64))
    for row, last, next_one in zip(rows, logits, after, strict=True):
        expected = session.logits(np.array([[*row, 0]]))[0]
        np.testing.assert_allclose(last, expected[-2], atol=TOLERANCE)
        np.testing.assert_allclose(next_one, expected[-1], atol=TOLERANCE)


def test_pieces_do_not_depend_on_the_cache_they_were_cut_out_of(device, session):
    text = list(range(20, 32))
    cache = read(device, [text])
    piece = cut(cache, 0, 0, PIECE)
    _, longer = device.forward(np.array([[5]]), cache)
    del cache, longer
    read(device, [[7] * 12, [8] * 5])
    logits, _ = device.forward(np.array([text[PIECE:]]), assemble(_kind(device), [[piece]], np.array([PIECE]), 12))
    np.testing.assert_allclose(logits[0, -1], session.logits(np.array([text]))[0, -1], atol=TOLERANCE)


def _kind(device):
    return PackedCache if device.graph.form == "cat" else SlotCache

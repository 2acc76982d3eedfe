"""Which profile takes a call, and what all of them together can serve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.runtime.sessions.executor import Reach, choose, longest


def ranges(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: tuple(sorted(pair)))


REACH = st.builds(
    lambda rows, new, past, more: Reach(rows=rows, new=new, past=past, total=past[1] + more),
    ranges(1, 5),
    ranges(1, 6),
    ranges(0, 12),
    st.integers(1, 6),
)
REACHES = st.lists(REACH, min_size=1, max_size=4)


def takes(reach, rows, new, past):
    """Whether a profile takes a call, spelled out."""
    inside = (
        reach.rows[0] <= rows <= reach.rows[1] and reach.new[0] <= new <= reach.new[1] and reach.past[0] <= past <= reach.past[1]
    )
    return inside and past + new <= reach.total


@given(REACHES, st.integers(1, 6), st.integers(0, 13), st.integers(1, 8))
def test_the_chosen_profile_takes_the_call_and_none_reads_more(reaches, rows, past, wanted):
    possible = [(new, i) for i, reach in enumerate(reaches) for new in range(1, wanted + 1) if takes(reach, rows, new, past)]
    found = choose(reaches, rows, past, wanted)
    if not possible:
        assert found is None
        return
    index, new = found
    assert takes(reaches[index], rows, new, past)
    assert new == max(new for new, _ in possible)


@given(REACHES)
def test_whatever_is_promised_can_be_decoded_token_by_token(reaches):
    rows, length, several = longest(reaches)
    for batch in range(1, rows + 1):
        for past in range(length):
            assert any(takes(reach, batch, 1, past) for reach in reaches)
    for batch in range(1, several + 1):
        assert choose(reaches, batch, 0, 1) is not None or batch == 1
    if rows == 0:
        assert not all(any(takes(reach, 1, 1, past) for reach in reaches) for past in (0, 1))


def test_of_profiles_that_read_as_much_the_closest_is_taken():
    wide = Reach(rows=(1, 8), new=(1, 512), past=(0, 1536), total=2048)
    decode = Reach(rows=(1, 8), new=(1, 1), past=(0, 2047), total=2048)
    one = Reach(rows=(1, 1), new=(1, 1), past=(0, 2047), total=2048)
    assert choose([wide, decode, one], 1, 100, 1) == (2, 1)
    assert choose([wide, decode, one], 2, 100, 1) == (1, 1)
    assert choose([wide, decode, one], 2, 0, 300) == (0, 300)
    assert choose([wide, decode, one], 2, 2000, 300) == (1, 1)
    assert longest([wide, decode, one]) == (8, 2048, 8)
    assert longest([wide]) == (8, 1537, 8)
    assert longest([decode]) == (8, 2048, 1)

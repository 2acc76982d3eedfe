"""Which profile takes a call, and what all of them together can serve."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.backends.profiles import ProfileCoverage, choose_profile, serving_bounds


def ranges(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda pair: tuple(sorted(pair)))


COVERAGE = st.builds(
    lambda rows, new, past, more: ProfileCoverage(rows=rows, new=new, past=past, total=past[1] + more),
    ranges(1, 5),
    ranges(1, 6),
    ranges(0, 12),
    st.integers(1, 6),
)
COVERAGES = st.lists(COVERAGE, min_size=1, max_size=4)


def takes(coverage, rows, new, past):
    """Whether a profile takes a call, spelled out."""
    pairs = ((coverage.rows, rows), (coverage.new, new), (coverage.past, past))
    return all(least <= value <= most for (least, most), value in pairs) and past + new <= coverage.total


@given(COVERAGES, st.integers(1, 6), st.integers(0, 13), st.integers(1, 8))
def test_the_chosen_profile_takes_the_call_and_none_reads_more(coverages, rows, past, wanted):
    possible = [
        (new, i) for i, coverage in enumerate(coverages) for new in range(1, wanted + 1) if takes(coverage, rows, new, past)
    ]
    found = choose_profile(coverages, rows, past, wanted)
    if not possible:
        assert found is None
        return
    index, new = found
    assert takes(coverages[index], rows, new, past)
    assert new == max(new for new, _ in possible)


@given(COVERAGES)
def test_whatever_is_promised_can_be_decoded_token_by_token(coverages):
    rows, length, several = serving_bounds(coverages)
    for batch in range(1, rows + 1):
        for past in range(length):
            assert any(takes(coverage, batch, 1, past) for coverage in coverages)
    for batch in range(1, several + 1):
        assert choose_profile(coverages, batch, 0, 1) is not None or batch == 1
    if rows == 0:
        assert not all(any(takes(coverage, 1, 1, past) for coverage in coverages) for past in (0, 1))


def test_of_profiles_that_read_as_much_the_closest_is_taken():
    wide = ProfileCoverage(rows=(1, 8), new=(1, 512), past=(0, 1536), total=2048)
    decode = ProfileCoverage(rows=(1, 8), new=(1, 1), past=(0, 2047), total=2048)
    one = ProfileCoverage(rows=(1, 1), new=(1, 1), past=(0, 2047), total=2048)
    assert choose_profile([wide, decode, one], 1, 100, 1) == (2, 1)
    assert choose_profile([wide, decode, one], 2, 100, 1) == (1, 1)
    assert choose_profile([wide, decode, one], 2, 0, 300) == (0, 300)
    assert choose_profile([wide, decode, one], 2, 2000, 300) == (1, 1)
    assert serving_bounds([wide, decode, one]) == (8, 2048, 8)
    assert serving_bounds([wide]) == (8, 1537, 8)
    assert serving_bounds([decode]) == (8, 2048, 1)

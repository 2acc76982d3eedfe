"""Text that grows token by token, and stop texts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from maskpro_deploy.runtime.generate.text_stream import Detokenizer, StopFilter
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer


@settings(deadline=None)
@given(tokens=st.lists(st.integers(0, 319), max_size=40))
def test_growing_text_adds_up_to_the_whole(text_tokenizer: TextTokenizer, tokens: list[int]) -> None:
    detokenizer = Detokenizer(text_tokenizer)
    pieces = [detokenizer.add(t) for t in tokens]
    assert "".join([*pieces, detokenizer.flush()]) == text_tokenizer.decode(tokens)


@settings(deadline=None)
@given(text=st.text(max_size=20))
def test_no_half_character_is_ever_given_out(text_tokenizer: TextTokenizer, text: str) -> None:
    detokenizer = Detokenizer(text_tokenizer)
    sofar = ""
    for token in text_tokenizer.encode(text):
        sofar += detokenizer.add(token)
        assert text.startswith(sofar)


def test_endless_garbage_is_not_held_back_for_ever(text_tokenizer: TextTokenizer) -> None:
    (stray,) = [t for t in range(320) if text_tokenizer.token_bytes(t) == b"\x80"]
    detokenizer = Detokenizer(text_tokenizer)
    assert any(detokenizer.add(stray) for _ in range(100))


short_text = st.text(alphabet="ab", max_size=12)


@given(text=short_text, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3), data=st.data())
def test_the_result_does_not_depend_on_how_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    def run(pieces: list[str]) -> tuple[str, bool]:
        stop_filter, out = StopFilter(stops), ""
        for piece in pieces:
            passed, stopped = stop_filter.add(piece)
            out += passed
            if stopped:
                return out, True
        return out + stop_filter.flush(), False

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    out, stopped = run(pieces)
    assert (out, stopped) == run([text])
    assert stopped == any(stop in text for stop in stops)
    assert not any(stop in out for stop in stops)
    assert text.startswith(out)


def test_what_may_become_a_stop_is_held_back() -> None:
    stop_filter = StopFilter(["END"])
    assert stop_filter.add("the E") == ("the ", False)
    assert stop_filter.add("N") == ("", False)
    assert stop_filter.add("vy") == ("ENvy", False)
    assert stop_filter.add("EN") == ("", False)
    assert stop_filter.add("D of it") == ("", True)

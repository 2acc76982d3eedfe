from __future__ import annotations

import pytest

from maskpro_deploy.bench.load.schedule import cut_text_windows, draw_random_tokens, take_prompts
from maskpro_deploy.errors import ConfigError


def test_random_prompts_have_their_length_and_only_known_ids() -> None:
    make = draw_random_tokens([3, 5, 9], input_len=40, output_len=7)
    request = make((0, 1))
    assert len(request.prompt) == request.input_len == 40
    assert set(request.prompt) == {3, 5, 9}
    assert request.output_len == 7
    assert request == make((0, 1))
    assert request != make((0, 2))


def test_text_prompts_are_running_text() -> None:
    make = cut_text_windows(["one two three", "four five six seven"], words=3, output_len=1)
    every = "one two three four five six seven"
    assert all(str(make((i,)).prompt) in every and len(str(make((i,)).prompt).split()) == 3 for i in range(20))
    assert len({make((i,)).prompt for i in range(50)}) == 5  # all places


def test_given_prompts_all_come_before_one_comes_again() -> None:
    make = take_prompts(["a", "b", "c"], output_len=2)
    for start in (0, 3, 6):
        assert {make((7, 0, start + i)).prompt for i in range(3)} == {"a", "b", "c"}


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="--input-len 0"):
        draw_random_tokens([1, 2], 0, 1)
    with pytest.raises(ConfigError, match="--output-len 0"):
        draw_random_tokens([1, 2], 1, 0)
    with pytest.raises(ConfigError, match="two token ids"):
        draw_random_tokens([1], 1, 1)
    with pytest.raises(ConfigError, match="has 2 words"):
        cut_text_windows(["too short"], 3, 1)
    with pytest.raises(ConfigError, match="no prompts"):
        take_prompts([], 1)

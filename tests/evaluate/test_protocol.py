"""How text becomes windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from maskpro_deploy.data import Text, load_tokenizer
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.evaluate import EvalProtocol
from maskpro_deploy.evaluate.protocol import scored_tokens


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path) -> Tokenizer:
    return load_tokenizer(tiny_checkpoint)


TEXT = Text(name="two", documents=("The first text, of some length.", "The second text, a little longer than that."))


def test_documents_are_joined_by_the_separator(tokenizer: Tokenizer) -> None:
    windows = EvalProtocol(window=4).windows(TEXT, tokenizer, separator=2, bos_token=None).tokens
    stream = [*tokenizer.encode(TEXT.documents[0]).ids, 2, *tokenizer.encode(TEXT.documents[1]).ids, 2]
    assert windows.ravel().tolist() == stream[: len(stream) // 4 * 4]


def test_documents_are_joined_by_blank_lines_and_tokenised_at_once(tokenizer: Tokenizer) -> None:
    windows = EvalProtocol(window=4, joining="blank-line").windows(TEXT, tokenizer, separator=2, bos_token=None).tokens
    stream = tokenizer.encode("\n\n".join(TEXT.documents)).ids
    assert windows.ravel().tolist() == stream[: len(stream) // 4 * 4]


def test_the_begin_of_text_token_stands_once_at_the_very_start(tokenizer: Tokenizer) -> None:
    without = EvalProtocol(window=4).windows(TEXT, tokenizer, separator=2, bos_token=1).tokens.ravel()
    with_bos = EvalProtocol(window=4, bos="first").windows(TEXT, tokenizer, separator=2, bos_token=1).tokens.ravel()
    assert with_bos[0] == 1
    shared = min(len(with_bos) - 1, len(without))
    assert with_bos[1 : 1 + shared].tolist() == without[:shared].tolist()


def test_the_number_of_windows_can_be_bounded(tokenizer: Tokenizer) -> None:
    everything = EvalProtocol(window=4).windows(TEXT, tokenizer, separator=2, bos_token=None).tokens
    first = EvalProtocol(window=4, max_windows=2).windows(TEXT, tokenizer, separator=2, bos_token=None).tokens
    assert first.tolist() == everything[:2].tolist()


def test_text_shorter_than_a_window_is_an_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"two has .* tokens, less than one window of 4000"):
        EvalProtocol(window=4000).windows(TEXT, tokenizer, separator=2, bos_token=None)


def test_a_model_without_a_begin_of_text_token_cannot_start_with_one(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="--bos none"):
        EvalProtocol(window=4, bos="first").windows(TEXT, tokenizer, separator=2, bos_token=None)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"window": 1}, "--window 1"),
        ({"joining": "glue"}, "--joining"),
        ({"bos": "x"}, "--bos"),
        ({"max_windows": 0}, "--max-windows"),
        ({"stride": 0}, "--stride 0"),
        ({"stride": 513}, "--stride 513"),
        ({"bos": "tokenizer"}, "--joining blank-line or space"),
    ],
)
def test_settings_out_of_range_name_the_flag(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        EvalProtocol(**settings)  # type: ignore[arg-type]


def test_the_protocol_is_stated_whole() -> None:
    assert EvalProtocol(window=128).to_json() == {
        "window": 128,
        "joining": "separator",
        "bos": "none",
        "max_windows": None,
        "stride": 128,
        "scored": "tokens 2 to 128 of each window",
        "mean": "of the negative log-likelihood over all scored tokens; perplexity is its exponential",
    }


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 60))
def test_every_token_after_the_first_is_scored_once_with_enough_before_it(window: int, stride: int, extra: int) -> None:
    stride = min(stride, window - 1)
    stream = np.arange(window + extra)
    starts = range(0, extra + 1, stride)
    scored = []
    for number, start in enumerate(starts):
        count = scored_tokens(number, window, stride)
        piece = stream[start : start + window]
        assert number == 0 or window - count >= window - stride  # tokens before the first scored one
        scored += piece[-count:].tolist()
    assert scored == list(range(1, starts[-1] + window))


def test_overlapping_windows_start_every_stride_tokens(tokenizer: Tokenizer) -> None:
    stream = EvalProtocol(window=2).windows(TEXT, tokenizer, separator=2, bos_token=None).tokens.ravel()
    found = EvalProtocol(window=6, stride=2).windows(TEXT, tokenizer, separator=2, bos_token=None)
    assert [w.tolist() for w in found.tokens] == [stream[s : s + 6].tolist() for s in range(0, len(found.tokens) * 2, 2)]
    assert found.total_scored == 5 + 2 * (len(found.tokens) - 1)
    assert 0 <= found.unread < 2


def test_the_tokenizer_may_add_what_it_adds_to_any_text(tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.post_processor = TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    with_bos = EvalProtocol(window=4, joining="space", bos="tokenizer").windows(TEXT, own, separator=2, bos_token=None)
    without = EvalProtocol(window=4, joining="space").windows(TEXT, own, separator=2, bos_token=None)
    assert with_bos.tokens.ravel()[0] == 1
    shared = min(with_bos.tokens.size - 1, without.tokens.size)
    assert with_bos.tokens.ravel()[1 : 1 + shared].tolist() == without.tokens.ravel()[:shared].tolist()


def test_tokens_after_the_last_window_are_counted(tokenizer: Tokenizer) -> None:
    everything = EvalProtocol(window=4).windows(TEXT, tokenizer, separator=2, bos_token=None)
    first = EvalProtocol(window=4, max_windows=1).windows(TEXT, tokenizer, separator=2, bos_token=None)
    assert first.unread == everything.unread + 4 * (len(everything.tokens) - 1)

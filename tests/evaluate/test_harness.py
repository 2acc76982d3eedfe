"""The adapter gives what lm-evaluation-harness's own Hugging Face model gives, on checkpoints and on bundles."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from maskpro_deploy.data import HELD_OUT, Text, load_text
from maskpro_deploy.errors import CheckFailed, ConfigError, InputError
from maskpro_deploy.evaluate import EvalProtocol, perplexity
from maskpro_deploy.evaluate.harness import HarnessConfig, HarnessLM
from maskpro_deploy.lm_eval_model import adapt
from maskpro_deploy.targets.models import RunConfig, find_target, open_target

LENGTH = 64
RUN = RunConfig(provider="cpu", threads=1)
TEXT = load_text(HELD_OUT).documents


def ask(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def theirs(tiny_checkpoint: Path) -> HFLM:
    return HFLM(pretrained=str(tiny_checkpoint), device="cpu", dtype="float32", batch_size=3, max_length=LENGTH)


@pytest.fixture(scope="module", params=["checkpoint", "bundle", "bundle, static cache"])
def ours(request: pytest.FixtureRequest, tiny_checkpoint: Path, tiny_bundle: Path) -> HarnessLM:
    folder = tiny_checkpoint if request.param == "checkpoint" else tiny_bundle
    run = dataclasses.replace(RUN, form="static") if "static" in request.param else RUN
    return adapt(find_target(str(folder)), run, batch_size=4, max_length=LENGTH)


CONTINUATIONS = [
    ("The cat", " sat on the mat."),
    ("", "a text without any context"),
    ("A context that ends in a space ", "goes on"),
    (TEXT[0][:900], TEXT[0][900:940]),  # longer than the model reads: cut on the left
    ("<|start|>It begins with the token already", " and goes on"),
    *((text[:n], text[n : n + 9]) for n, text in zip(range(5, 75, 10), TEXT[1:], strict=False)),
]


def test_log_likelihoods_of_continuations(ours: HarnessLM, theirs: HFLM) -> None:
    found = ours.loglikelihood(ask("loglikelihood", *CONTINUATIONS))
    expected = theirs.loglikelihood(ask("loglikelihood", *CONTINUATIONS), disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([e[0] for e in expected], rel=1e-4)
    assert [f[1] for f in found] == [e[1] for e in expected]


def test_the_likeliest_continuation_is_called_so(ours: HarnessLM) -> None:
    context = "Once there was"
    ids = ours.tok_encode(context)
    for _ in range(3):
        ids.append(int(ours._lm.logits(np.array([ids]))[0, -1].argmax()))
    likely = ours.tok_decode(ids)[len(context) :]
    if ours.tok_encode(context + likely) == ids:
        assert ours.loglikelihood(ask("loglikelihood", (context, likely)))[0][1] is True


def test_log_likelihoods_of_whole_texts(ours: HarnessLM, theirs: HFLM) -> None:
    texts = [(text[: 30 + 250 * i],) for i, text in enumerate(TEXT[:5])]  # shorter than a window, and several windows
    found = ours.loglikelihood_rolling(ask("loglikelihood_rolling", *texts))
    expected = theirs.loglikelihood_rolling(ask("loglikelihood_rolling", *texts), disable_tqdm=True)
    assert found == pytest.approx(expected, rel=1e-4)


def test_perplexity_is_that_of_the_harness_on_the_same_file(tiny_checkpoint: Path, ours: HarnessLM, theirs: HFLM) -> None:
    # the harness predicts T tokens in each window after one token of context; here these are windows of T + 1, stride T
    text = TEXT[0]
    tokenizer = find_target(str(tiny_checkpoint)).tokenizer
    while len(tokenizer.encode(text).ids) % LENGTH:
        text = text[:-1]
    protocol = EvalProtocol(window=LENGTH + 1, stride=LENGTH, joining="blank-line", bos="first")
    windows = protocol.windows(Text(name="x", documents=(text,)), tokenizer, separator=None, bos_token=1)
    assert windows.unread == 0
    found = perplexity(ours._lm, windows.tokens, stride=windows.stride)
    total = theirs.loglikelihood_rolling(ask("loglikelihood_rolling", (text,)), disable_tqdm=True)[0]
    assert found.perplexity == pytest.approx(math.exp(-total / found.tokens), rel=1e-4)


PROMPTS = [(text[: 5 + 9 * i], {"until": stops, "max_gen_toks": 9}) for i, (text, stops) in enumerate(
    zip(TEXT, (["\n"], ["e"], ["th", "on"], ["\n"], [], ["zzz"]), strict=False)
)]  # fmt: skip


def test_generated_texts(ours: HarnessLM, theirs: HFLM) -> None:
    long = (TEXT[6][:900], {"until": ["\n"], "max_gen_toks": 9})
    found = ours.generate_until(ask("generate_until", *PROMPTS, long))
    assert found == theirs.generate_until(ask("generate_until", *PROMPTS, long), disable_tqdm=True)


def test_batches_change_nothing(tiny_bundle: Path, ours: HarnessLM) -> None:
    single = HarnessLM(ours._lm, ours._text, HarnessConfig(max_length=LENGTH, end_of_text=2, begin_of_text=1, batch_size=1))
    requests = ask("loglikelihood", *CONTINUATIONS)
    assert [a for a, _ in ours.loglikelihood(requests)] == pytest.approx([a for a, _ in single.loglikelihood(requests)], rel=1e-4)
    assert ours.generate_until(ask("generate_until", *PROMPTS)) == single.generate_until(ask("generate_until", *PROMPTS))


def test_choices_of_one_token_are_read_together(ours: HarnessLM) -> None:
    lm = Stops(ours._lm, 1 + 1)
    shared = HarnessLM(lm, ours._text, HarnessConfig(max_length=LENGTH, end_of_text=2, begin_of_text=1, batch_size=1))
    rows = [((), [5, 6, 7], [token]) for token in (8, 9, 10, 11)]
    found = shared._loglikelihood_tokens(rows)  # the second call to the model, and the last it allows
    assert found == ours._loglikelihood_tokens(rows)
    assert len({value for value, _ in found}) == 4


class Kept(dict[str, Any]):
    """Answers in memory."""

    def put(self, request: str, answer: Any) -> None:
        self[request] = answer


class Stops:
    """A model that is interrupted after some calls."""

    def __init__(self, lm: Any, calls: int) -> None:
        self._lm, self._calls = lm, iter(range(calls))

    def _call(self) -> None:
        if next(self._calls, None) is None:
            raise KeyboardInterrupt

    def logits(self, tokens: Any) -> Any:
        self._call()
        return self._lm.logits(tokens)

    def forward(self, tokens: Any, cache: Any = None, attention_mask: Any = None) -> Any:
        self._call()
        return self._lm.forward(tokens, cache, attention_mask)


def test_a_run_that_was_stopped_asks_only_what_is_left(ours: HarnessLM) -> None:
    config = HarnessConfig(max_length=LENGTH, end_of_text=2, begin_of_text=1, batch_size=3)
    kept = Kept()
    requests = ask("loglikelihood", *CONTINUATIONS)
    with pytest.raises(KeyboardInterrupt):
        HarnessLM(Stops(ours._lm, 3), ours._text, config, kept).loglikelihood(requests)
    assert len(kept) == 6
    again = HarnessLM(Stops(ours._lm, 1 + 2), ours._text, config, kept)
    found = again.loglikelihood(requests)
    assert found == HarnessLM(ours._lm, ours._text, config).loglikelihood(requests)
    nothing = HarnessLM(Stops(ours._lm, 1), ours._text, config, kept)
    assert nothing.loglikelihood(requests) == found


def test_chat_messages_become_the_models_own_prompt(ours: HarnessLM) -> None:
    prompt = ours.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert prompt == "<|start|>user\nHello<|end|>\n<|start|>assistant\n"
    assert ours.apply_chat_template([{"role": "user", "content": "Hello"}], add_generation_prompt=False).endswith("<|end|>\n")


def test_what_cannot_be_answered_is_an_error(ours: HarnessLM) -> None:
    with pytest.raises(InputError, match="random samples"):
        ours.generate_until(ask("generate_until", ("a", {"do_sample": True, "temperature": 0.7})))
    with pytest.raises(InputError, match="generates 64 tokens"):
        ours.generate_until(ask("generate_until", ("a", {"max_gen_toks": LENGTH})))
    with pytest.raises(InputError, match="longer than"):
        ours.loglikelihood(ask("loglikelihood", ("a", TEXT[0])))
    for settings in ({"batch_size": 0}, {"max_length": 1}):
        with pytest.raises(ConfigError):
            HarnessConfig(**{"max_length": 8, "end_of_text": 0, **settings})


def test_logits_that_are_not_numbers_are_an_error(ours: HarnessLM) -> None:
    class Broken:
        def logits(self, tokens: Any) -> Any:
            return np.full((*tokens.shape, 320), np.nan, np.float32)

        forward = logits

    broken = HarnessLM(Broken(), ours._text, HarnessConfig(max_length=LENGTH, end_of_text=2))  # type: ignore[arg-type]
    with pytest.raises(CheckFailed, match="not numbers"):
        broken.loglikelihood(ask("loglikelihood", ("a", "b")))


@pytest.fixture
def both(tiny_checkpoint: Path, tiny_bundle: Path) -> tuple[Any, Any]:
    return tuple(open_target(find_target(str(f)), RUN) for f in (tiny_checkpoint, tiny_bundle))  # type: ignore[misc]


def test_a_cache_and_padding_on_the_left_change_no_logits(both: tuple[Any, Any]) -> None:
    tokens = np.random.default_rng(0).integers(3, 300, (2, 20))
    for lm in both:
        whole = lm.logits(tokens)
        padded = np.concatenate([np.zeros((2, 3), np.int64), tokens], axis=1)
        mask = np.ones((2, 23), np.int64)
        mask[:, :3] = 0
        first, cache = lm.forward(padded[:, :15], None, mask[:, :15])
        second, _ = lm.forward(padded[:, 15:], cache, mask)
        joined = np.concatenate([first[:, 3:], second], axis=1)
        assert np.abs(joined - whole).max() < 1e-3

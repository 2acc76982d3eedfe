"""The text generator: equal answers in any company, limits, aborts, drain, breakdown."""

from __future__ import annotations

import queue
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gated_session import GatedSession

from maskpro_deploy import runtime
from maskpro_deploy.errors import ConfigError, FormatError, InputError
from maskpro_deploy.runtime import (
    ContextLengthError,
    GeneratorDeadError,
    OrtSession,
    OverloadedError,
    RuntimeConfig,
    SamplingParams,
    TextGenerator,
    load,
)
from maskpro_deploy.runtime.generate.generator import Pace, TookTooLongError
from maskpro_deploy.runtime.generate.sampling import NumericError
from maskpro_deploy.runtime.generate.sequence import Event, FailureEvent, TokenEvent
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer

PROMPTS = [
    "The ship left the harbour at dawn, and nobody on the quay could say when it would return.",
    "a",
    "Twelve eggs",
    "She had never seen snow; the first flakes made her laugh out loud.",
    "Why?",
    "An engine with four places has to make the fifth one wait.",
    "Bread, salt, water.",
]


def test_greedy_answers_are_the_sessions_own(generator: TextGenerator, session: OrtSession) -> None:
    tokens = generator.tokenizer.encode(PROMPTS[0])
    (answer,) = generator.generate([tokens], SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    assert list(answer.tokens) == session.greedy(tokens, 12)
    assert answer.text == generator.tokenizer.decode(answer.tokens)
    assert answer.prompt_tokens == len(tokens)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("params", [{"temperature": 0.0}, {"seed": 5}, {"seed": 9, "top_p": 0.8, "repetition_penalty": 1.2}])
def test_answers_do_not_depend_on_company(generator: TextGenerator, params: dict[str, float]) -> None:
    """Seven prompts for four places, in two orders, against each by itself."""
    settings = SamplingParams(max_tokens=24, logprobs=0, **params)
    alone = [generator.generate([p], settings)[0] for p in PROMPTS]
    together = generator.generate(PROMPTS, settings)
    order = random.Random(1).sample(range(len(PROMPTS)), len(PROMPTS))
    shuffled = generator.generate([PROMPTS[i] for i in order], settings)
    for i, answer in enumerate(alone):
        for other in (together[i], shuffled[order.index(i)]):
            assert (other.tokens, other.text, other.finish_reason) == (answer.tokens, answer.text, answer.finish_reason)
            np.testing.assert_allclose([s.logprob for s in other.scores], [s.logprob for s in answer.scores], atol=1e-4)


def test_the_load_is_what_there_is_at_any_time(gated: GatedSession, gated_generator: TextGenerator) -> None:
    """After all readers have gone and nothing has happened since, nothing runs and nothing waits."""
    asked = [gated_generator.submit([[5, 6]], SamplingParams(max_tokens=50), lambda event: None) for _ in range(4)]
    gated.allow(3)
    for _ in range(4):
        gated.entered.acquire(timeout=30)
    load = gated_generator.load
    assert load.running + load.waiting == 4
    gated_generator.abort([s for sequences in asked for s in sequences])
    gated.allow(1)
    assert gated_generator.drain(30)
    assert (gated_generator.load.running, gated_generator.load.waiting, gated_generator.load.cached_tokens) == (0, 0, 0)


def test_without_a_seed_answers_differ(generator: TextGenerator) -> None:
    first, second = generator.generate(["x", "x"], SamplingParams(max_tokens=20))
    assert first.tokens != second.tokens


def test_several_choices_of_one_seed_differ_and_repeat(generator: TextGenerator) -> None:
    def run() -> dict[int, list[int]]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        sequences = generator.submit([[5, 6], [7]], SamplingParams(seed=2, max_tokens=10, ignore_eos=True), events.put, n=2)
        collect(events, len(sequences))
        return {s.choice: s.tokens for s in sequences}

    first = run()
    assert first == run()
    assert sorted(first) == [0, 1, 2, 3]
    assert first[0] != first[1]
    (single,) = generator.generate([[7]], SamplingParams(seed=2, max_tokens=10, ignore_eos=True))
    assert list(single.tokens) == first[2], "the first choice of a prompt is what it would be by itself"


def collect(events: queue.SimpleQueue[Event], choices: int) -> list[Event]:
    """All events until that many choices have ended."""
    seen: list[Event] = []
    while choices:
        event = events.get(timeout=30)
        seen.append(event)
        choices -= isinstance(event, FailureEvent) or (isinstance(event, TokenEvent) and event.finish_reason is not None)
    return seen


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(generator: TextGenerator) -> None:
    whole = generator.generate([PROMPTS[0]], SamplingParams(seed=1, max_tokens=40, ignore_eos=True))[0]
    stop = whole.text[5:8]
    (answer,) = generator.generate([PROMPTS[0]], SamplingParams(seed=1, max_tokens=40, ignore_eos=True, stop=(stop,)))
    assert answer.finish_reason == "stop"
    assert answer.text == whole.text[: whole.text.index(stop)]
    assert len(answer.tokens) < 40


def test_stop_tokens_end_the_answer_unless_too_early(generator: TextGenerator) -> None:
    tokens = generator.generate(["b"], SamplingParams(temperature=0, max_tokens=10, ignore_eos=True))[0].tokens
    at = 4
    first_at = tokens.index(tokens[at])
    stopping = {"temperature": 0.0, "max_tokens": 10, "ignore_eos": True, "stop_token_ids": (tokens[at],)}
    (answer,) = generator.generate(["b"], SamplingParams(**stopping))  # type: ignore[arg-type]
    assert answer.finish_reason == "stop"
    assert answer.tokens == tokens[: first_at + 1]
    assert answer.text == generator.tokenizer.decode(tokens[:first_at])
    (longer,) = generator.generate(["b"], SamplingParams(min_tokens=first_at + 2, **stopping))  # type: ignore[arg-type]
    assert len(longer.tokens) > first_at + 1


def test_end_of_text_ends_the_answer_unless_ignored(generator: TextGenerator) -> None:
    (eos,) = generator.shape.eos_token_ids
    forced = {"logit_bias": {eos: 100.0}, "temperature": 0.0, "max_tokens": 5}
    (answer,) = generator.generate(["c"], SamplingParams(**forced))  # type: ignore[arg-type]
    assert (answer.tokens, answer.text, answer.finish_reason) == ((eos,), "", "stop")
    (answer,) = generator.generate(["c"], SamplingParams(ignore_eos=True, **forced))  # type: ignore[arg-type]
    assert (answer.tokens, answer.finish_reason) == ((eos,) * 5, "length")
    (answer,) = generator.generate(["c"], SamplingParams(min_tokens=3, **forced))  # type: ignore[arg-type]
    assert len(answer.tokens) == 4
    assert eos not in answer.tokens[:3]


def test_reading_only_gives_scores_and_no_tokens(generator: TextGenerator) -> None:
    (answer,) = generator.generate([[1, 2, 3]], SamplingParams(max_tokens=0, prompt_logprobs=2))
    assert answer.tokens == ()
    assert [s.token for s in answer.prompt_scores] == [1, 2, 3]
    assert [len(s.top) for s in answer.prompt_scores] == [0, 2, 2]


def test_what_does_not_fit_the_context_is_refused_with_both_numbers(generator: TextGenerator) -> None:
    with pytest.raises(ContextLengthError, match=r"200 tokens.*100.*300.*256"):
        generator.generate([[1] * 200], SamplingParams(max_tokens=100))
    (answer,) = generator.generate([[1] * 250], SamplingParams(max_tokens=6, ignore_eos=True))
    assert len(answer.tokens) == 6


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ([], {}, "empty"),
        ([320], {}, "vocabulary"),
        ([-1], {}, "vocabulary"),
        ([1], {"logit_bias": {320: 1.0}}, "logit_bias"),
        ([1], {"stop_token_ids": (-1,)}, "stop_token_ids"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(
    generator: TextGenerator, prompt: list[int], params: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        generator.generate([prompt], SamplingParams(**params))  # type: ignore[arg-type]


def test_a_full_generator_says_so_and_takes_all_or_nothing(gated_generator: TextGenerator, gated: GatedSession) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    params = SamplingParams(max_tokens=2, ignore_eos=True)
    gated_generator.submit([[1], [2], [3]], params, events.put)
    with pytest.raises(OverloadedError, match="full") as caught:
        gated_generator.submit([[4], [5]], params, events.put)
    assert caught.value.reason == "queue_full"
    gated_generator.submit([[4]], params, events.put)
    with pytest.raises(InputError, match="at once"):
        gated_generator.submit([[4]] * 5, params, events.put)
    gated.open()
    assert len(collect(events, 4)) == 8
    gated_generator.generate([[1]] * 9, params)  # a caller in the same process waits instead


def test_an_abort_makes_room(gated_generator: TextGenerator, gated: GatedSession) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    sequences = gated_generator.submit([[1]] * 4, SamplingParams(max_tokens=100, ignore_eos=True), events.put)
    gated_generator.abort(sequences[1:])
    gated.allow(2)
    ended = [e for e in collect(events, 3) if isinstance(e, TokenEvent) and e.finish_reason]
    assert sorted(e.choice for e in ended) == [1, 2, 3]
    assert {e.finish_reason for e in ended} == {"abort"}
    gated_generator.submit([[1]] * 3, SamplingParams(), events.put)


def test_draining_finishes_what_runs_and_takes_nothing_new(gated_generator: TextGenerator, gated: GatedSession) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    gated_generator.submit([[1]], SamplingParams(max_tokens=3, ignore_eos=True), events.put)
    assert gated.entered.acquire(timeout=30)
    assert not gated_generator.drain(0)
    assert gated_generator.status == "draining"
    with pytest.raises(OverloadedError) as caught:
        gated_generator.submit([[1]], SamplingParams(), events.put)
    assert caught.value.reason == "shutting_down"
    gated.open()
    assert gated_generator.drain(30)
    assert len(collect(events, 1)) == 3


def test_draining_refuses_what_waits_and_finishes_what_runs(gated_generator: TextGenerator, gated: GatedSession) -> None:
    running: queue.SimpleQueue[Event] = queue.SimpleQueue()
    waiting: queue.SimpleQueue[Event] = queue.SimpleQueue()
    gated_generator.submit([[1]] * 2, SamplingParams(max_tokens=3, ignore_eos=True), running.put)
    assert gated.entered.acquire(timeout=30)
    gated_generator.submit([[1]] * 2, SamplingParams(max_tokens=3, ignore_eos=True), waiting.put)
    gated_generator.drain(0)
    gated.allow(2)  # the step that was under way reads and decodes; before the next one those that wait are refused
    refused = collect(waiting, 2)
    assert [e.error.reason for e in refused if isinstance(e, FailureEvent)] == ["shutting_down"] * 2  # type: ignore[attr-defined]
    gated.open()
    assert gated_generator.drain(30)
    assert len(collect(running, 2)) == 6


def test_what_waits_or_runs_for_too_long_is_refused(gated: GatedSession, text_tokenizer: TextTokenizer) -> None:
    config = RuntimeConfig(max_num_seqs=1, max_num_queued_reqs=2, queue_timeout_s=0.05, request_timeout_s=0.3)
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    with TextGenerator(gated, text_tokenizer, config) as generator:
        generator.submit([[1]], SamplingParams(max_tokens=200, ignore_eos=True), events.put)
        assert gated.entered.acquire(timeout=30)
        generator.submit([[1]], SamplingParams(max_tokens=200, ignore_eos=True), events.put)
        gated.trickle(0.01)
        late, slow = (e.error for e in collect(events, 2) if isinstance(e, FailureEvent))
        assert isinstance(late, OverloadedError)
        assert late.reason == "queue_timeout"
        assert isinstance(slow, TookTooLongError)
        assert (generator.load.running, generator.load.waiting) == (0, 0)
        gated.open()


def test_when_to_come_again_follows_how_fast_answers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    pace = Pace()
    assert pace.estimate_wait_s(5) == 1
    for _ in range(4):
        pace.count()
        clock[0] += 3.0
    assert [pace.estimate_wait_s(n) for n in (1, 5, 1000)] == [3, 15, 120]


def test_closing_ends_what_runs_with_an_abort(gated_generator: TextGenerator, gated: GatedSession) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    gated_generator.submit([[1]] * 3, SamplingParams(max_tokens=200, ignore_eos=True), events.put)
    gated.entered.acquire()
    gated.allow(2)
    gated_generator.close()
    ended = [e for e in collect(events, 3) if isinstance(e, TokenEvent) and e.finish_reason]
    assert [e.finish_reason for e in ended] == ["abort"] * 3
    assert gated_generator.status == "stopped"
    gated_generator.close()


def test_a_breakdown_reaches_everybody_and_is_final(
    gated_generator: TextGenerator, gated: GatedSession, caplog: pytest.LogCaptureFixture
) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    gated_generator.submit([[1], [2], [3]], SamplingParams(max_tokens=50, ignore_eos=True), events.put)
    gated.fail_with = RuntimeError("out of memory")
    gated.open()
    failures = collect(events, 3)
    assert all(isinstance(e, FailureEvent) and isinstance(e.error, GeneratorDeadError) for e in failures)
    gated_generator._thread.join()
    assert gated_generator.status == "dead"
    assert "out of memory" in caplog.text
    with pytest.raises(GeneratorDeadError):
        gated_generator.submit([[1]], SamplingParams(), events.put)
    with pytest.raises(GeneratorDeadError):
        gated_generator.generate(["x"])


def test_unusable_numbers_end_one_answer_and_spare_the_others(gated_generator: TextGenerator, gated: GatedSession) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    sequences = gated_generator.submit([[1], [2]], SamplingParams(max_tokens=4, ignore_eos=True), events.put)
    gated.nan_rows = (0,)
    gated.allow(1)
    first = events.get(timeout=30)
    assert isinstance(first, FailureEvent)
    assert isinstance(first.error, NumericError)
    gated.nan_rows = ()
    gated.open()
    collect(events, 1)
    assert [len(s.tokens) for s in sequences] == [0, 4]
    assert gated_generator.status == "ready"


def test_a_reader_that_breaks_does_not_hurt_the_others(generator: TextGenerator, caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("the loop is closed")

    (lost,) = generator.submit([[1]], SamplingParams(max_tokens=200, ignore_eos=True), broken)
    (answer,) = generator.generate([[2]], SamplingParams(max_tokens=5, ignore_eos=True))
    assert len(answer.tokens) == 5
    assert "lost its reader" in caplog.text
    assert lost.finish_reason == "abort"


def test_settings_out_of_range_are_named(sparse_bundle: Path) -> None:
    for flag, config in [
        ("--max-num-seqs", {"max_num_seqs": 0}),
        ("--max-num-queued-reqs", {"max_num_queued_reqs": -1}),
        ("--max-model-len", {"max_model_len": 1}),
        ("--threads", {"threads": 0}),
    ]:
        with pytest.raises(ConfigError, match=flag):
            RuntimeConfig(**config)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--max-model-len is 257"):
        load(sparse_bundle, RuntimeConfig(max_model_len=257))


def test_hashes_are_checked_when_asked(sparse_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(sparse_bundle, bundle)
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    with pytest.raises(FormatError, match=r"model\.onnx\.data differs"):
        load(bundle, RuntimeConfig(provider="cpu", check_hashes=True))


def test_a_generator_needs_no_torch(sparse_bundle: Path, text_tokenizer: TextTokenizer) -> None:
    code = (
        "import sys; from pathlib import Path; from maskpro_deploy.runtime import load, RuntimeConfig, SamplingParams\n"
        "import maskpro_deploy.runtime.http.lifecycle\n"
        f"e = load(Path({str(sparse_bundle)!r}), RuntimeConfig(provider='cpu', threads=1))\n"
        "e.generate(['x'], SamplingParams(max_tokens=2)); e.close()\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'maskpro_deploy.exporters'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_earlier_names_stay() -> None:
    assert runtime.Engine is TextGenerator
    assert runtime.EngineDeadError is GeneratorDeadError

from __future__ import annotations

import json
from typing import Any

import pytest

from maskpro_deploy.bench.load.client import Failure, Record, Recording
from maskpro_deploy.bench.load.columns import ServerFigures, figures_json
from maskpro_deploy.bench.load.figures import Figures, Limits, Slo
from maskpro_deploy.errors import ConfigError

# the fields of vLLM's `bench serve --save-detailed` that say how a server did
VLLM = {
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput"),
    *("output_throughput", "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests", "num_prompts"),
    *("input_lens", "output_lens", "ttfts", "itls", "errors", "start_times"),
    *(f"{figure}_{metric}_ms" for figure in ("mean", "median", "std", "p99") for metric in ("ttft", "tpot", "itl", "e2el")),
}
ANSWERED = Record(
    index=0, scheduled_s=1.0, sent_s=1.5, done_s=3.2, arrivals_s=(2.0, 2.5, 3.0), input_tokens=7, output_tokens=3, counted=True
)
SHORT = Record(index=1, scheduled_s=2.0, sent_s=2.0, done_s=2.2, arrivals_s=(2.1,), input_tokens=5, output_tokens=1, counted=True)
FAILED = Record(index=2, scheduled_s=3.0, sent_s=3.0, done_s=3.9, failure=Failure(kind="http 500", message="broken"))


def figures(*records: Record, duration_s: float = 4.0) -> Figures:
    return Figures([Recording(records=records, duration_s=duration_s)])


def to_json(taken: Figures, slo: Slo) -> dict[str, Any]:
    return figures_json(ServerFigures(load="a load", server="a server", figures=taken, slo=slo))


def test_the_figures_of_three_requests() -> None:
    value = to_json(figures(ANSWERED, SHORT, FAILED), Slo.parse("ttft:900,e2el:1000"))
    assert set(value) >= VLLM
    assert (value["completed"], value["failed"], value["failures"]) == (2, 1, {"http 500": 1})
    assert (value["total_input_tokens"], value["total_output_tokens"]) == (12, 4)
    assert value["request_throughput"] == 0.5
    assert value["request_goodput"] == 0.25  # one of them took 1000 ms to its first token
    assert value["output_throughput"] == 1.0
    assert value["total_token_throughput"] == 4.0
    assert value["mean_ttft_ms"] == pytest.approx((1000 + 100) / 2)
    assert value["mean_tpot_ms"] == pytest.approx(500)  # the answer of one token has none
    assert value["mean_itl_ms"] == pytest.approx(500)
    assert value["median_e2el_ms"] == pytest.approx((2000 + 100) / 2)
    assert value["p99_ttft_ms"] is None  # too few
    assert value["ttfts"] == pytest.approx([1.0, 0.1, 0.0])
    assert value["itls"] == [[0.5, 0.5], [], []]
    assert value["output_lens"] == [3, 1, 0]
    assert value["errors"] == ["", "", "http 500: broken"]
    assert value["queue_times"] == [0.5, 0.0, 0.0]
    assert value["max_output_tokens_per_s"] == 3.0  # two pieces at 2.x and one at 2.1
    assert value["max_concurrent_requests"] == 2
    json.dumps(value, allow_nan=False)


def test_percentiles_come_with_enough_samples() -> None:
    many = [
        Record(index=i, scheduled_s=None, sent_s=0.0, done_s=1.0, arrivals_s=(0.1 + i / 1e4,), output_tokens=1)
        for i in range(1000)
    ]
    value = figures(*many).to_json()
    assert value["p99_ttft_ms"] == pytest.approx(198.9, abs=0.2)
    assert figures(*many[:999]).to_json()["p99_ttft_ms"] is None


def test_how_tokens_were_counted_is_said() -> None:
    base = {"scheduled_s": None, "sent_s": 0.0, "done_s": 1.0}
    packed = Record(index=0, **base, arrivals_s=(0.1, 0.2), output_tokens=8, counted=True)
    guessed = Record(index=1, **base, arrivals_s=(0.1, 0.2), output_tokens=2)
    whole = Record(index=2, **base, arrivals_s=(0.2,), output_tokens=8, counted=True, streamed=False)
    notes = "\n".join(figures(packed, guessed, whole).notes(8))
    assert "1 answers had events of several tokens" in notes
    assert "did not count the tokens of 1 answers" in notes
    assert "1 answers came whole" in notes
    assert "1 of 3 answers have another length than the 8" in notes
    assert figures(packed).values_ms("tpot") == pytest.approx([100 / 7])  # tokens, not pieces
    assert figures(whole).to_json()["median_ttft_ms"] is None


def test_unknown_prompt_lengths_stay_unknown() -> None:
    value = figures(Record(index=0, scheduled_s=None, sent_s=0.0, done_s=1.0, arrivals_s=(0.1,), output_tokens=1)).to_json()
    assert value["total_input_tokens"] is None
    assert value["total_token_throughput"] is None


def test_a_clock_that_stands_still_is_no_speed() -> None:
    still = Record(index=0, scheduled_s=None, sent_s=1.0, done_s=1.0, arrivals_s=(1.0,), output_tokens=1)
    assert "did not advance" in figures(still).invalid_reasons(Limits())[0]


def test_the_lag_bound_grows_with_the_latency() -> None:
    assert Limits().lag_bound_ms([20.0]) == 5.0
    assert Limits().lag_bound_ms([400.0]) == 20.0
    assert Limits(max_lag_ms=1.0).lag_bound_ms([400.0]) == 1.0
    for wrong in ({"max_failed": 1.0}, {"max_failed": -0.1}, {"max_lag_ms": 0.0}):
        with pytest.raises(ConfigError, match="out of range"):
            Limits(**wrong)

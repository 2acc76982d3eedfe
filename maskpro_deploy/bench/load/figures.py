"""The figures of recorded requests under the names of vLLM's `bench serve`, and the reasons not to believe them.

    ttft   first piece of the answer, after the scheduled (open loop) or actual (closed loop) send time
    e2el   last piece, after the same; neither a trailing usage event nor the end of the connection extends it
    tpot   (e2el - ttft) / (output tokens - 1), for answers of two tokens or more
    itl    gaps between pieces, pooled over requests
    lag    actual minus scheduled send time

Percentiles stand only where there are enough samples (`stats.percentile`); unknown figures are null. Times with `_ms` are
milliseconds, the raw lists are in seconds as vLLM's are.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpro_deploy.bench import stats
from maskpro_deploy.bench.load.client import Record, Recording
from maskpro_deploy.bench.results.run import vllm_json
from maskpro_deploy.errors import ConfigError, check_known, check_range

METRICS = ("ttft", "tpot", "e2el")  # of a request
LATENCIES = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level objectives: upper bounds in ms by metric that users are promised; empty: none were set.

    Goodput, the requests a second that keep all of them, as in DistServe (Zhong et al. 2024, arXiv 2401.09670).
    """

    bounds_ms: Mapping[str, float]

    def __post_init__(self) -> None:
        resolution_ms = 1e3 * time.get_clock_info("perf_counter").resolution
        for name, bound in self.bounds_ms.items():
            check_known("--slo", name, METRICS)
            if not bound > max(resolution_ms, 1e-3) or bound == float("inf"):
                raise ConfigError(f"--slo {name}:{bound:g} is impossible: a bound is a number of ms above 0.001.")
        ttft, whole = self.bounds_ms.get("ttft"), self.bounds_ms.get("e2el")
        if ttft is not None and whole is not None and ttft > whole:
            raise ConfigError(f"--slo: the first token ({ttft:g} ms) cannot be later than the whole answer ({whole:g} ms).")

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read "ttft:500,tpot:50,e2el:2000" (ms); a `ConfigError` if it is no such list, or asks for what cannot be."""
        bounds: dict[str, float] = {}
        for part in text.replace(" ", ",").split(","):
            name, colon, value = part.partition(":")
            try:
                bound = float(value)
            except ValueError:
                colon = ""
            if not colon or name in bounds:
                raise ConfigError(f"--slo {text!r}: expected each metric once with its bound in ms, such as ttft:500,tpot:50.")
            bounds[name] = bound
        return cls(bounds_ms=bounds)

    def holds_for(self, latencies_ms: Mapping[str, float | None]) -> bool:
        """Whether one request kept all bounds; an answer of one token has no time per output token and keeps that bound."""
        values = ((latencies_ms.get(name), bound) for name, bound in self.bounds_ms.items())
        return all(value is None or value <= bound for value, bound in values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where a run stops being valid."""

    LAG_MS = 5.0
    LAG_PART = 0.05

    max_failed: float = 0.01  # part of the requests that may fail
    # bound on the 99th percentile of the generator's lag; None: `LAG_MS`, or `LAG_PART` of the median time to the first token if
    # that is more
    max_lag_ms: float | None = None

    def __post_init__(self) -> None:
        check_range("--max-failed", self.max_failed, least=0, below=1)
        check_range("--max-lag", self.max_lag_ms, above=0)

    def lag_bound_ms(self, ttft_ms: Sequence[float]) -> float:
        """The bound for requests with these times to the first token."""
        if self.max_lag_ms is not None:
            return self.max_lag_ms
        return max(self.LAG_MS, self.LAG_PART * float(np.median(ttft_ms)) if len(ttft_ms) else 0.0)


def compute_latencies_ms(record: Record) -> dict[str, float | None]:
    """One answered request's ttft, tpot and e2el."""
    first, last, tokens = record.arrivals_s[0], record.arrivals_s[-1], record.output_tokens
    ttft = 1e3 * (first - record.since_s) if record.streamed else None
    tpot = 1e3 * (last - first) / (tokens - 1) if tokens > 1 and record.streamed else None
    return {"ttft": ttft, "tpot": tpot, "e2el": 1e3 * (last - record.since_s)}


def list_gaps_s(record: Record) -> list[float]:
    """Times between the pieces of one answer."""
    return [b - a for a, b in itertools.pairwise(record.arrivals_s)]


@dataclass(frozen=True, slots=True)
class Figures:
    """All sub-runs of one server under one load."""

    recordings: Sequence[Recording]

    @property
    def records(self) -> list[Record]:
        return [r for recording in self.recordings for r in recording.records]

    @property
    def answered(self) -> list[Record]:
        return [r for r in self.records if r.failure is None]

    @property
    def failed(self) -> int:
        return sum(r.failure is not None for r in self.records)

    @property
    def duration_s(self) -> float:
        return sum(r.duration_s for r in self.recordings)

    @property
    def failures(self) -> dict[str, int]:
        """Kind -> number of failed requests."""
        return dict(Counter(r.failure.kind for r in self.records if r.failure is not None).most_common())

    def values_ms(self, metric: str) -> list[float]:
        """The samples of a latency, in the order of sending."""
        if metric == "itl":
            return [1e3 * gap for r in self.answered for gap in list_gaps_s(r)]
        return [v for r in self.answered if (v := compute_latencies_ms(r)[metric]) is not None]

    def summary(self, metric: str) -> stats.Summary | None:
        """The same in a few figures; None without samples."""
        return stats.summarise_if_any(self.values_ms(metric))

    def lag_ms(self) -> list[float]:
        """How late each request was sent; empty in a closed loop."""
        return [1e3 * r.lag_s for r in self.records if r.scheduled_s is not None]

    def beats_ms(self) -> list[float]:
        """How late each beat of the event loop came."""
        return [1e3 * b for recording in self.recordings for b in recording.beats_s]

    def per_s(self, count: float | None) -> float | None:
        """A rate over the time under load."""
        return count / self.duration_s if count is not None and self.duration_s > 0 else None

    @property
    def input_tokens(self) -> int | None:
        """Tokens of all answered prompts; None where the server does not say."""
        counts = [r.input_tokens for r in self.answered]
        return sum(c for c in counts if c is not None) if None not in counts else None

    @property
    def output_tokens(self) -> int:
        return sum(r.output_tokens for r in self.answered)

    @property
    def request_rate(self) -> float | None:
        """Answered requests a second."""
        return self.per_s(len(self.answered))

    @property
    def token_rate(self) -> float | None:
        """Generated tokens a second."""
        return self.per_s(self.output_tokens)

    def goodput(self, slo: Slo | None) -> float | None:
        """Requests a second that kept all bounds."""
        return self.per_s(sum(slo.holds_for(compute_latencies_ms(r)) for r in self.answered)) if slo is not None else None

    def invalid_reasons(self, limits: Limits) -> list[str]:
        """Why the figures prove nothing; empty if they may be believed."""
        total, failed = len(self.records), self.failed
        if total == failed:
            return [f"none of {total} requests was answered ({self._failure_words()})."]
        reasons = []
        if failed > limits.max_failed * total:
            reasons.append(
                f"{failed} of {total} requests failed ({self._failure_words()}); "
                f"{100 * limits.max_failed:g} % are allowed (--max-failed)."
            )
        reasons += [r.clock_jump for r in self.recordings if r.clock_jump is not None][:1]
        if self.duration_s <= 0 or any(r.arrivals_s[-1] <= r.sent_s for r in self.answered):
            reasons.append("the clock did not advance while requests were answered: their times cannot be measured.")
        bound, lag, beats = limits.lag_bound_ms(self.values_ms("ttft")), self.lag_ms(), self.beats_ms()
        if lag and (late := float(np.quantile(lag, 0.99))) > bound:
            held = f"the generator fell behind: 1 % of the requests were sent more than {late:.3g} ms late"
            reasons.append(f"{held}, {bound:.3g} ms are allowed (--max-lag).")
        elif beats and (late := float(np.quantile(beats, 0.99))) > bound:
            held = f"the generator was held up: 1 % of its beats came more than {late:.3g} ms late"
            reasons.append(f"{held}, {bound:.3g} ms are allowed (--max-lag).")
        return reasons

    def _failure_words(self) -> str:
        first = next((r.failure.message for r in self.records if r.failure is not None), "")
        return ", ".join(f"{n} x {kind}" for kind, n in self.failures.items()) + (f": {first}" if first else "")

    def notes(self, output_len: int | None) -> list[str]:
        """What the reader should know of how tokens were counted."""
        answered = self.answered
        notes = []
        if uncounted := sum(not r.counted for r in answered):
            notes.append(f"the server did not count the tokens of {uncounted} answers: pieces of the stream are counted instead.")
        if whole := sum(not r.streamed for r in answered):
            notes.append(f"{whole} answers came whole, not streamed: they have no time to the first token.")
        if packed := sum(r.counted and r.streamed and len(r.arrivals_s) < r.output_tokens for r in answered):
            notes.append(
                f"{packed} answers had events of several tokens or tokens without an event: their inter-token latency (itl) is "
                "between events, their time per output token (tpot) counts tokens."
            )
        if output_len is not None and (short := sum(r.output_tokens != output_len for r in answered)):
            notes.append(f"{short} of {len(answered)} answers have another length than the {output_len} tokens asked for.")
        return notes

    def to_json(self) -> dict[str, Any]:
        """The figures that are not in the table, and the raw samples."""
        records = self.records
        output, given = self.output_tokens, self.input_tokens
        most = max((_count_most_at_once(r.records) for r in self.recordings), default=0)
        value: dict[str, Any] = {
            "duration": self.duration_s,
            "num_prompts": len(records),
            "failures": self.failures,
            "total_input_tokens": given,
            "total_output_tokens": output,
            "total_token_throughput": self.per_s(None if given is None else given + output),
            "max_output_tokens_per_s": self._most_tokens_per_s(),
            "max_concurrent_requests": most,
        }
        for metric in LATENCIES:
            value |= vllm_json(metric, self.summary(metric))
        for name, values in (("lag", self.lag_ms()), ("loop_delay", self.beats_ms())):
            summary = stats.summarise_if_any(values)
            value |= {f"{n}_{name}_ms": getattr(summary, n) if summary else None for n in ("median", "p90", "p99", "maximum")}
        value |= {
            "input_lens": [r.input_tokens for r in records],
            "output_lens": [r.output_tokens if r.failure is None else 0 for r in records],
            "ttfts": [r.arrivals_s[0] - r.since_s if r.failure is None and r.streamed else 0.0 for r in records],
            "itls": [list_gaps_s(r) if r.failure is None else [] for r in records],
            "latencies": [r.arrivals_s[-1] - r.since_s if r.failure is None else 0.0 for r in records],
            "start_times": [r.sent_s for r in records],
            "queue_times": [r.lag_s for r in records],
            "errors": ["" if r.failure is None else f"{r.failure.kind}: {r.failure.message}" for r in records],
        }
        for name in ("session", "block", "position"):
            value[f"{name}s"] = [getattr(recording, name) for recording in self.recordings for _ in recording.records]
        return value

    def _most_tokens_per_s(self) -> float | None:
        """Pieces that came in the busiest whole second."""
        times = [[t for r in recording.records if r.failure is None for t in r.arrivals_s] for recording in self.recordings]
        return max((float(np.bincount(np.asarray(several).astype(int)).max()) for several in times if several), default=None)


def _count_most_at_once(records: Sequence[Record]) -> int:
    """The most requests under way at the same time."""
    edges: list[tuple[float, int]] = [(r.sent_s, 1) for r in records] + [(r.done_s, -1) for r in records]
    steps: npt.NDArray[np.int64] = np.array([step for _, step in sorted(edges)], dtype=np.int64)
    return int(np.cumsum(steps).max()) if len(steps) else 0

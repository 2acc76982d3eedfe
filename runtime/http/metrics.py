"""Prometheus metrics: vLLM's names with the prefix `maskpro_`, so that its dashboards port by replacing one word.

Each app has a registry of its own. Time buckets start at 0.1 ms: a small model makes a token faster than that of most servers'
first bucket.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from maskpro_deploy._version import __version__
from maskpro_deploy.runtime.generate.generator import Load
from maskpro_deploy.runtime.generate.sampling_params import SamplingParams
from maskpro_deploy.runtime.generate.scheduler import StepCount
from maskpro_deploy.runtime.generate.sequence import Event, FailureEvent, GenerationSequence, TokenEvent

_TOKEN_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUEST_S = (1e-4, 1e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_METHODS = ("GET", "POST", "HEAD", "OPTIONS")
_SETTLE_AT = 512  # observations that wait at most
_TOKENS = tuple(float(2**i) for i in range(18))


class Metrics:
    """The metrics of one server, labelled with its model; an `Observer` of its generator. Reading them asks for its `load`."""

    def __init__(self, model_name: str, load: Callable[[], Load]) -> None:
        self._registry = CollectorRegistry()
        self._model = model_name
        self._gauge("num_requests_running", "Sequences that run.", lambda: load().running)
        self._gauge("num_requests_waiting", "Sequences that wait.", lambda: load().waiting)
        self._gauge(
            "kv_cache_usage_perc",
            "Tokens in the cache, as a part (0 to 1) of what may run at once.",
            lambda: load().cached_tokens / load().capacity_tokens,
        )
        self._gauge(
            "prefix_cache_tokens", "Tokens kept for later prompts; they give way to sequences.", lambda: load().prefix_tokens
        )
        self._prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked for among those that are kept.")
        self._prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found there, and not read again.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens read.")
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.")
        self._success = self._open_counter("request_success", "Sequences that ended, by reason.", "finished_reason")
        self._preemptions = self._counter("num_preemptions", "Times that a sequence gave up its place for want of cache.")
        self._failure = self._counter("request_failure", "Sequences that ended with an error.")
        self._rejections = self._open_counter("admission_rejections", "Requests refused for want of room.", "reason")
        self._ttft = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", _REQUEST_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Between two tokens of a sequence.", _TOKEN_S)
        self._tpot = self._histogram("request_time_per_output_token_seconds", "Mean time of a token after the first.", _TOKEN_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", _REQUEST_S)
        self._queued = self._histogram("request_queue_time_seconds", "From arrival to the start.", _REQUEST_S)
        self._prefill = self._histogram("request_prefill_time_seconds", "From the start to the first token.", _REQUEST_S)
        self._decode = self._histogram("request_decode_time_seconds", "From the first to the last token.", _REQUEST_S)
        self._inference = self._histogram("request_inference_time_seconds", "From the start to the last token.", _REQUEST_S)
        self._prompt_length = self._histogram("request_prompt_tokens", "Tokens of a prompt.", _TOKENS)
        self._answer_length = self._histogram("request_generation_tokens", "Tokens of an answer.", _TOKENS)
        self._max_tokens = self._histogram("request_params_max_tokens", "max_tokens of a request.", _TOKENS)
        self._n = self._histogram("request_params_n", "n of a request.", (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0))
        self._iteration = self._histogram("iteration_tokens_total", "Tokens read and generated in one step.", _TOKENS)
        self._answers = Counter(
            "maskpro_http_requests", "Requests that are over, by route and status; 0 is a client that left.",
            ["model_name", "method", "path", "status"], registry=self._registry,
        )  # fmt: skip
        Gauge("maskpro_build_info", "The version that runs.", ["version"], registry=self._registry).labels(__version__).set(1)
        ProcessCollector(registry=self._registry)  # memory, processor time, open files, start: `process_…`, on Linux
        self._last: dict[GenerationSequence, float] = {}  # time of the last token of running sequences
        self._observed: deque[tuple[Histogram, float]] = deque()  # what the histograms do not have yet

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        self._settle()
        return generate_latest(self._registry)

    def count_accepted(self, params: SamplingParams, n: int) -> None:
        self._max_tokens.observe(params.max_tokens)
        self._n.observe(n)

    def count_answer(self, method: str, path: str, status: int | None) -> None:
        """A request that is over; `path` is that of a route, or one word for all others."""
        method = method if method in _METHODS else "other"
        self._answers.labels(self._model, method, path, str(status or 0)).inc()

    def count_rejected(self, reason: str) -> None:
        self._rejections.labels(self._model, reason).inc()

    def count_step(self, count: StepCount) -> None:
        self._observed.append((self._iteration, count.prompt_tokens + count.generated_tokens))
        if count.prompt_tokens:
            self._prompt_tokens.inc(count.prompt_tokens)
        if count.preempted:
            self._preemptions.inc(count.preempted)
        if count.prefix_queries:
            self._prefix_queries.inc(count.prefix_queries)
            self._prefix_hits.inc(count.prefix_hits)
        if len(self._observed) >= _SETTLE_AT:
            self._settle()

    def _settle(self) -> None:
        """Give the histograms what every token observed: many at once, since one by one holds up the steps. From any thread."""
        while self._observed:
            with suppress(IndexError):  # another thread took the last one
                histogram, value = self._observed.popleft()
                histogram.observe(value)

    def count_event(self, sequence: GenerationSequence, event: Event) -> None:
        if isinstance(event, FailureEvent):
            self._failure.inc()
            self._last.pop(sequence, None)
        elif isinstance(event, TokenEvent):
            self._count_token(sequence, event)

    def _count_token(self, sequence: GenerationSequence, event: TokenEvent) -> None:
        times = sequence.times
        if event.score is not None:
            self._generation_tokens.inc()
            before = self._last.get(sequence)
            if before is None:
                self._ttft.observe(times.first_token - times.arrived)
                self._queued.observe(times.started - times.arrived)
                self._prefill.observe(times.first_token - times.started)
            else:
                self._observed.append((self._itl, times.last_token - before))
            self._last[sequence] = times.last_token
        if event.finish_reason is not None:
            self._last.pop(sequence, None)
            self._count_end(sequence, event.finish_reason)

    def _count_end(self, sequence: GenerationSequence, reason: str) -> None:
        times, count = sequence.times, len(sequence.tokens)
        self._success.labels(self._model, reason).inc()
        self._prompt_length.observe(len(sequence.prompt))
        self._answer_length.observe(count)
        self._e2e.observe((times.last_token or time.perf_counter()) - times.arrived)
        if count:
            self._decode.observe(times.last_token - times.first_token)
            self._inference.observe(times.last_token - times.started)
        if count > 1:
            self._tpot.observe((times.last_token - times.first_token) / (count - 1))

    def _gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        gauge = Gauge(f"maskpro_{name}", text, ["model_name"], registry=self._registry)
        gauge.labels(self._model).set_function(value)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"maskpro_{name}", text, ["model_name"], registry=self._registry).labels(self._model)

    def _open_counter(self, name: str, text: str, label: str) -> Counter:
        return Counter(f"maskpro_{name}", text, ["model_name", label], registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"maskpro_{name}", text, ["model_name"], buckets=buckets, registry=self._registry).labels(self._model)

"""Spans, as a collector gets them: what they say, whose trace they belong to, and what a collector that is away costs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx2
import pytest
from test_request_log import read

from maskpro_deploy.errors import ConfigError, MissingExtraError
from maskpro_deploy.runtime import RuntimeConfig
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server
from maskpro_deploy.runtime.http.traces import Tracer, check_endpoint
from maskpro_deploy.system import extras

pytest.importorskip("opentelemetry.sdk")
CPU = RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4)
KEY = "a long secret"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, SimpleQueue[bytes]]]:
    """A receiver of OTLP over HTTP: its address, and the bodies that come to the path that the protocol names."""
    received: SimpleQueue[bytes] = SimpleQueue()
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf":
                received.put(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()
        thread.join()


def spans_of(bodies: SimpleQueue[bytes], count: int) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    found: list[Any] = []
    while len(found) < count:
        told = ExportTraceServiceRequest.FromString(bodies.get(timeout=20))
        for resource in told.resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert names["service.name"] == "maskpro-deploy"
            found += [span for scope in resource.scope_spans for span in scope.spans]
    return found


def attributes_of(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        return [plain(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)

    return {a.key: plain(a.value) for a in span.attributes}


def test_each_request_is_a_span_of_its_callers_trace(
    sparse_bundle: Path, tmp_path: Path, collector: tuple[str, SimpleQueue[bytes]]
) -> None:
    url_of_collector, received = collector
    log = tmp_path / "log"
    config = ServeConfig(
        port=0, runtime=CPU, served_model_name="mine", otlp_traces_endpoint=url_of_collector, api_key=KEY, request_log=str(log)
    )
    headers = {"Authorization": f"Bearer {KEY}", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"prompt": "words that nobody else reads", "max_tokens": 4, "ignore_eos": True, "n": 2}
    with running_server(sparse_bundle, config) as url:
        began = time.time_ns()
        with httpx2.Client(base_url=url) as http:
            whole = http.post("/v1/completions", json=body, headers=headers).json()
            chat = {"messages": [{"role": "user", "content": "nobody"}], "max_tokens": 2, "ignore_eos": True, "stream": True}
            http.post("/v1/chat/completions", json=chat, headers={**headers, "traceparent": "nonsense"})
            http.post("/v1/completions", json=body)
            http.get("/health")
            http.get("/version")
        spans = spans_of(received, 4)
        ended = time.time_ns()
        lines = read(log, lambda found: len(found) == 4)
    completion, streamed, refused, version = spans
    assert completion.trace_id.hex() == TRACE
    assert completion.parent_span_id.hex() == PARENT
    assert began <= completion.start_time_unix_nano <= completion.end_time_unix_nano <= ended
    assert (completion.name, streamed.name, version.name) == ("text_completion mine", "chat mine", "GET /version")
    told = attributes_of(completion)
    first = told.pop("gen_ai.response.time_to_first_chunk")
    assert 0 < first <= (ended - began) / 1e9
    assert told.pop("gen_ai.latency.time_to_first_token") == first
    assert 0 <= told.pop("gen_ai.latency.time_in_queue") <= first
    assert told == {
        "http.request.method": "POST", "url.path": "/v1/completions", "http.response.status_code": 200,
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "maskpro-deploy", "gen_ai.request.model": "mine",
        "gen_ai.response.model": "mine", "gen_ai.request.choice.count": 2, "gen_ai.request.max_tokens": 4,
        "gen_ai.request.stream": False, "gen_ai.usage.input_tokens": whole["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 8, "gen_ai.response.finish_reasons": ["length", "length"],
    }  # fmt: skip
    assert attributes_of(streamed)["gen_ai.request.stream"]
    assert streamed.trace_id.hex() not in (TRACE, "0" * 32)  # a parent that is none begins a trace
    assert attributes_of(refused)["error.type"] == "invalid_api_key"
    assert "nobody" not in str(spans)
    assert "secret" not in str(spans)
    assert [line["trace"] for line in lines] == [span.trace_id.hex() for span in spans]
    assert [line.get("error") for line in lines] == [None, None, "invalid_api_key", None]


def test_the_attributes_are_those_of_the_conventions() -> None:
    """All but those that are told to be vLLM's."""
    from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

    from maskpro_deploy.runtime.http import traces

    facts = {"answers": 1, "max_tokens": 1, "stream": False, "prompt_tokens": 1, "completion_tokens": 1, "finished": ["stop"]}
    told = traces._describe_generation({**facts, "first_token_s": 0.1, "queued_s": 0.1}, "chat", "mine")
    known = {value for value in vars(gen_ai_attributes).values() if isinstance(value, str)}
    assert {name for name in told if name not in known} == {"gen_ai.latency.time_to_first_token", "gen_ai.latency.time_in_queue"}


@pytest.mark.parametrize("kind", ["nobody listens", "never answers"])
def test_a_collector_that_is_away_costs_no_answer_and_no_long_end(
    sparse_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if kind == "nobody listens":
            silent.close()
        config = ServeConfig(port=0, runtime=CPU, otlp_traces_endpoint=f"http://127.0.0.1:{port}")
        with running_server(sparse_bundle, config) as url, httpx2.Client(base_url=url) as http:
            for _ in range(60):
                started = time.perf_counter()
                assert http.post("/v1/completions", json={"prompt": [1], "max_tokens": 1}).status_code == 200
                assert time.perf_counter() - started < 2
            started = time.perf_counter()
        assert time.perf_counter() - started < 10
    assert len(caplog.messages) < 20


def test_an_endpoint_is_a_url_without_secrets() -> None:
    assert check_endpoint("http://host:4318") == "http://host:4318/v1/traces"
    assert check_endpoint("https://host/v1/traces") == "https://host/v1/traces"
    assert check_endpoint("https://host/own/path") == "https://host/own/path"
    for wrong in ("host:4318", "grpc://host:4317", "http://", ""):
        with pytest.raises(ConfigError, match="--otlp-traces-endpoint"):
            ServeConfig(otlp_traces_endpoint=wrong)
    with pytest.raises(ConfigError, match="HEADERS") as caught:
        check_endpoint("http://me:hidden@host")
    assert "hidden" not in str(caught.value)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"maskpro-deploy\[otel\]"):
        Tracer("http://127.0.0.1:4318/v1/traces", "mine")

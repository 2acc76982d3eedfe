"""A span for every request, sent to an OpenTelemetry collector over OTLP/HTTP (extra `otel`). Never a text, never a key.

A request that names its own trace (W3C `traceparent`) gets its span there. Spans of requests that generate have the attributes of
the GenAI semantic conventions; those that the conventions do not have are called as vLLM calls them. Spans wait in a queue of
bounded length for a thread that sends them: a collector that does not answer costs spans, and no request any time.

Sampling, further headers for the collector and the name of the service are set by OpenTelemetry's own variables.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from maskpro_deploy._version import __version__
from maskpro_deploy.errors import ConfigError
from maskpro_deploy.runtime.http.request_log import is_quiet
from maskpro_deploy.system.extras import require

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

OPTION = "--otlp-traces-endpoint"
# loggers of what sends; the server throttles them
LOGGERS = (
    "opentelemetry.sdk._shared_internal", "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.exporter.otlp.common.http",
)  # fmt: skip
_PATH = "/v1/traces"
_SEND_TIMEOUT_S, _CLOSE_TIMEOUT_S = 5.0, 3.0
_OPERATIONS = {"/v1/completions": "text_completion"}  # all others are chats


def check_endpoint(url: str) -> str:
    """The URL that spans are sent to, with the path of collectors where none is given; a ConfigError if it is no URL."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{OPTION} {url[:100]!r} is not a URL of http or https.\nExample: http://127.0.0.1:4318{_PATH}")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{OPTION} may not hold a password.\nPut it into OTEL_EXPORTER_OTLP_TRACES_HEADERS.")
    return url if parts.path.strip("/") else parts._replace(path=_PATH).geturl()


class Tracer:
    """Makes spans and sends them; `model` is what clients call the model.

    Raises:
        MissingExtraError: the extra `otel` is not installed.
    """

    def __init__(self, endpoint: str, model: str) -> None:
        require("otel", OPTION)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "maskpro-deploy"}
        self._model = model
        self._provider = TracerProvider(
            resource=Resource.create({"service.version": __version__, **name}), shutdown_on_exit=False
        )  # its own end would wait for the collector
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=_SEND_TIMEOUT_S)))
        self._tracer = self._provider.get_tracer("maskpro-deploy", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, headers: Mapping[str, str], facts: Mapping[str, Any], started_ns: int, ended_ns: int) -> str | None:
        """A span of a request that is over, times since 1970; the id of its trace. None for a probe that went well.

        `facts` are those of the request log.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode, format_trace_id

        if is_quiet(facts):
            return None
        generated = "answers" in facts
        carrier = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        operation = _OPERATIONS.get(facts["path"], "chat")
        span = self._tracer.start_span(
            f"{operation} {self._model}" if generated else f"{facts['method']} {facts['path']}",
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            attributes=_describe_http(facts) | (_describe_generation(facts, operation, self._model) if generated else {}),
            start_time=started_ns,
        )
        if facts["status"] is None or facts["status"] >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(ended_ns)
        return format_trace_id(span.get_span_context().trace_id)

    def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, name="maskpro-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)


def _describe_http(facts: Mapping[str, Any]) -> dict[str, AttributeValue]:
    status = facts["status"]
    failed = {} if status is not None and status < 400 else {"error.type": facts.get("error") or str(status or "client_left")}
    answered = {} if status is None else {"http.response.status_code": status}
    return {"http.request.method": facts["method"], "url.path": facts["path"], **answered, **failed}


def _describe_generation(facts: Mapping[str, Any], operation: str, model: str) -> dict[str, AttributeValue]:
    first, queued = facts["first_token_s"], facts["queued_s"]
    times = {"gen_ai.response.time_to_first_chunk": first, "gen_ai.latency.time_to_first_token": first}
    times["gen_ai.latency.time_in_queue"] = queued
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "maskpro-deploy",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.request.choice.count": facts["answers"],
        "gen_ai.request.max_tokens": facts["max_tokens"],
        "gen_ai.request.stream": facts["stream"],
        "gen_ai.usage.input_tokens": facts["prompt_tokens"],
        "gen_ai.usage.output_tokens": facts["completion_tokens"],
        "gen_ai.response.finish_reasons": [reason or "abort" for reason in facts["finished"]],
        **{name: value for name, value in times.items() if value is not None},
    }

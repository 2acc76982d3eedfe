"""A client for OpenAI-compatible servers: completions and chat, streamed as server-sent events or whole.

The clock is read once for each read from the socket. Fields that not every server takes are left out where they are refused.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from maskpro_deploy.bench.arms import Clock
from maskpro_deploy.bench.load.client import Answer, Failure, Request, describe_error
from maskpro_deploy.bench.load.generator import ask
from maskpro_deploy.bench.load.stream import Stream, read_refusal, read_whole_answer
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError, check_known, check_range
from maskpro_deploy.system.extras import require

if TYPE_CHECKING:
    import aiohttp

COMPLETIONS, CHAT = "completions", "chat"
_UNANSWERED = "unanswered"
_IDLE_S = 3.0  # connections unused for longer are not used again: many servers close theirs after 5 s


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """How to ask."""

    base_url: str  # such as "http://127.0.0.1:8000"; a "/v1" at its end is allowed
    endpoint: str = COMPLETIONS  # COMPLETIONS or CHAT
    model: str | None = None  # what the server calls it; None takes the first one that it names
    stream: bool = True  # ask for the answer piece by piece
    # ask the server to go on to the full length (vLLM's field; servers that do not know it ignore it or refuse)
    ignore_eos: bool = True
    temperature: float = 0.0  # 0 is greedy
    api_key: str | None = field(default=None, repr=False)  # sent as a bearer token

    def __post_init__(self) -> None:
        check_known("--endpoint", self.endpoint, (COMPLETIONS, CHAT))
        check_range("--temperature", self.temperature, least=0, most=10)
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.base_url} is not the URL of a server: it has to look like http://127.0.0.1:8000.")
        if parts.username or parts.password:
            shown = "a URL with a name or password in it would show up in reports"
            raise ConfigError(f"{shown}: give a key by --api-key-env instead.")

    @property
    def root(self) -> str:
        return self.base_url.rstrip("/").removesuffix("/v1").rstrip("/")


class OpenAIClient:
    """Asks a server; to be used as `async with OpenAIClient(config) as client`. A `MissingExtraError` without aiohttp."""

    def __init__(self, config: ClientConfig, *, clock: Clock = time.perf_counter) -> None:
        require("load", "asking a server over HTTP")
        self._config, self._clock = config, clock
        self._session: aiohttp.ClientSession | None = None
        self.model = config.model or ""
        self._refused: tuple[str, ...] = ()  # fields that this server does not take
        path = "chat/completions" if config.endpoint == CHAT else "completions"
        self._url = f"{config.root}/v1/{path}"

    async def __aenter__(self) -> Self:
        import aiohttp

        key = self._config.api_key
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
            trace_configs=[_note_reuse()],
            timeout=aiohttp.ClientTimeout(total=None),  # the generator has its own
            headers={"Authorization": f"Bearer {key}"} if key else None,
            read_bufsize=1 << 20,
            auto_decompress=False,
            skip_auto_headers=("Accept-Encoding", "User-Agent"),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    @property
    def root(self) -> str:
        return self._config.root

    async def models(self, timeout_s: float = 10.0) -> list[dict[str, Any]]:
        """What /v1/models lists; the first one's name is used from now on unless another was given.

        A `MachineError` where the server cannot be reached, a `CheckFailed` where it does not answer as an OpenAI-compatible one.
        """
        status, value = await self._json("GET", "/v1/models", None, timeout_s)
        listed = value.get("data") if isinstance(value, dict) else None
        known = [m for m in listed if isinstance(m, dict) and isinstance(m.get("id"), str)] if isinstance(listed, list) else []
        if status in (401, 403):
            raise CheckFailed(f"{self._config.root} wants an API key.\nPut it in a variable and name that with --api-key-env.")
        if not known and not self.model:
            raise CheckFailed(f"{self._config.root}/v1/models names no model (HTTP {status}).\nName one with --model.")
        if self.model and known and self.model not in [m["id"] for m in known]:
            raise CheckFailed(f"{self._config.root} has no model {self.model}: it has {', '.join(m['id'] for m in known[:5])}.")
        self.model = self.model or str(known[0]["id"])
        return known

    async def tokenize(self, text: str, timeout_s: float = 30.0) -> list[int] | None:
        """The server's token ids of a text (vLLM's /tokenize); None from a server without it."""
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            _, value = await self._json("POST", "/tokenize", body, timeout_s)
        except MachineError:
            return None
        tokens = value.get("tokens") if isinstance(value, dict) else None
        return tokens if isinstance(tokens, list) and all(type(t) is int for t in tokens) else None

    async def _json(self, method: str, path: str, body: Any, timeout_s: float) -> tuple[int, Any]:
        import aiohttp

        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._config.root + path, json=body, timeout=limit) as response:
                raw = await response.read()
                try:
                    return response.status, json.loads(raw)
                except ValueError:
                    return response.status, None
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            unreached = f"{self._config.root} cannot be reached: {describe_error(e)}"
            raise MachineError(f"{unreached}.\nIs the server running there?") from e

    def body(self, request: Request) -> dict[str, Any]:
        config = self._config
        value: dict[str, Any] = {"model": self.model, "max_tokens": request.output_len, "temperature": config.temperature}
        if config.endpoint == CHAT:
            value["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            value["prompt"] = request.prompt
        if config.ignore_eos:
            value["ignore_eos"] = True
        if config.stream:
            value |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: v for name, v in value.items() if name not in self._refused}

    async def learn_limits(self, request: Request, timeout_s: float) -> tuple[str, ...]:
        """Find out which of the optional fields a server refuses, and leave those out from now on; their names."""
        for refused in ((), ("stream_options",), ("ignore_eos",), ("stream_options", "ignore_eos")):
            self._refused = refused
            answer = await ask(self, request, timeout_s)
            if answer.failure is None or answer.failure.kind not in ("http 400", "http 422"):
                return refused
        self._refused = ()
        return ()

    async def __call__(self, request: Request) -> Answer:
        """Send a request and wait for all of its answer.

        A server may close a connection that waits for its next request at any time; what meets such
        a one, and is not answered by a byte, is sent again on another.
        """
        reused: list[None] = []
        answer = await self._send(request, reused)
        while reused and answer.failure is not None and answer.failure.kind == _UNANSWERED:  # each takes one out of the pool
            reused.clear()
            answer = await self._send(request, reused)
        if answer.failure is not None and answer.failure.kind == _UNANSWERED:
            return replace(answer, failure=replace(answer.failure, kind="connection"))
        return answer

    async def _send(self, request: Request, reused: list[None]) -> Answer:
        """One try; `reused` gets an entry if it went over a connection that had been used before."""
        import aiohttp

        assert self._session is not None
        body, kind = json.dumps(self.body(request)), _UNANSWERED
        try:
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "application/json"}, trace_request_ctx=reused
            ) as response:
                kind = "connection"
                if response.status != 200:
                    return read_refusal(response.status, await response.read())
                if not self._config.stream:
                    raw = await response.read()
                    return read_whole_answer(raw, self._clock())
                stream = Stream()
                async for chunk in response.content.iter_any():
                    stream.feed(chunk, self._clock())
                return stream.answer()
        except aiohttp.ClientPayloadError as e:
            return Answer(failure=Failure(kind="cut off", message=describe_error(e)))
        except (aiohttp.ClientError, OSError) as e:
            return Answer(failure=Failure(kind=kind, message=describe_error(e)))


def _note_reuse() -> aiohttp.TraceConfig:
    """Adds an entry to a request's `trace_request_ctx`, a list, where it goes over a connection that was used before."""
    import aiohttp

    async def note(_: object, context: Any, __: object) -> None:
        if (reused := context.trace_request_ctx) is not None:
            reused.append(None)

    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(note)
    return trace

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fake_server import Answerer, events, fake_server, streamed
from hypothesis import given
from hypothesis import strategies as st

from maskpro_deploy.bench.load.client import Answer, Request
from maskpro_deploy.bench.load.openai_client import ClientConfig, OpenAIClient
from maskpro_deploy.bench.load.stream import Stream
from maskpro_deploy.errors import CheckFailed, ConfigError, MachineError

pytest.importorskip("aiohttp")

REQUEST = Request(prompt=(1, 2, 3), output_len=4)


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"text": text, "finish_reason": finish}]}


def delta(finish: str | None = None, **fields: str) -> dict[str, Any]:
    return {"choices": [{"delta": fields, "finish_reason": finish}]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}}


def ask(answer: Answerer = streamed, request: Request = REQUEST, **settings: Any) -> tuple[Answer, dict[str, Any]]:
    async def go(url: str) -> Answer:
        async with OpenAIClient(ClientConfig(base_url=url, model="demo", **settings)) as client:
            return await client(request)

    with fake_server(answer) as (url, seen):
        return asyncio.run(go(url)), seen[0]


def read(*chunks: tuple[bytes, float]) -> Answer:
    stream = Stream()
    for data, now in chunks:
        stream.feed(data, now)
    return stream.answer()


def test_a_streamed_answer_over_http() -> None:
    answer, request = ask(api_key="secret")
    assert answer.failure is None
    assert answer.text == " 0 1 2 3"
    assert len(answer.arrivals_s) == answer.output_tokens == 4
    assert answer.input_tokens == 3
    assert request == {
        "path": "/v1/completions",
        "authorization": "Bearer secret",
        "model": "demo",
        "prompt": [1, 2, 3],
        "max_tokens": 4,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_whole_answer_of_a_chat() -> None:
    body = {"choices": [{"message": {"content": "hello"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}
    answer, request = ask(lambda *_: (200, json.dumps(body).encode()), endpoint="chat", stream=False, ignore_eos=False)
    assert (answer.text, answer.input_tokens, answer.output_tokens, answer.streamed) == ("hello", 9, 2, False)
    assert len(answer.arrivals_s) == 1
    assert request["path"] == "/v1/chat/completions"
    assert "ignore_eos" not in request
    assert "stream" not in request


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        ((503, b'{"error": {"message": "queue full"}}'), "http 503", "queue full"),
        ((500, b"<html>oops</html>"), "http 500", "<html>oops"),
        ((200, events({"error": {"message": "went away"}})), "error in stream", "went away"),
        ((200, events(piece("a"), done=False)), "cut off", "ended before"),
        ((200, b"data: {nonsense\n\n"), "bad answer", "no JSON"),
    ],
)
def test_what_is_no_answer_is_a_failure_of_its_kind(reply: tuple[int, bytes], kind: str, message: str) -> None:
    answer, _ = ask(lambda *_: reply)
    assert answer.failure is not None
    assert answer.failure.kind == kind
    assert message in answer.failure.message


def test_nobody_there() -> None:
    async def go() -> tuple[Answer, str]:
        async with OpenAIClient(ClientConfig(base_url="http://127.0.0.1:9", model="demo")) as client:
            answer = await client(REQUEST)
            with pytest.raises(MachineError, match="cannot be reached") as caught:
                await client.models()
            return answer, str(caught.value)

    answer, said = asyncio.run(go())
    assert answer.failure is not None
    assert answer.failure.kind == "connection"
    assert "Is the server running" in said


@given(st.data())
def test_the_answer_does_not_depend_on_how_the_bytes_come(data: st.DataObject) -> None:
    whole = b": a comment\n\n" + events(piece("a"), piece(" b"), piece("", None), piece(" ü", "length"), usage(3, 4)).replace(
        b"\n", b"\r\n"
    )
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    parts = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    answer = read(*((part, float(i)) for i, part in enumerate(parts)))
    assert answer.failure is None
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("a b ü", 3, 4)
    assert len(answer.arrivals_s) == 4
    assert list(answer.arrivals_s) == sorted(answer.arrivals_s)


def test_only_pieces_of_the_answer_have_times() -> None:
    answer = read(
        (events(delta(role="assistant", content=""), done=False), 1.0),  # names the role only
        (events(delta(content="a"), done=False), 2.0),
        (events(delta(reasoning_content="b"), done=False), 3.0),
        (events(delta(finish="stop"), done=False), 4.0),  # ends, without a token
        (events(usage(5, 2)), 9.0),  # counts only
    )
    assert list(answer.arrivals_s) == [2.0, 3.0]
    assert answer.output_tokens == 2


def test_a_last_token_without_text_has_a_time_if_the_server_counts_it() -> None:
    start, end = (events(piece("a"), done=False), 1.0), (events(piece("", "length"), done=False), 2.0)
    assert list(read(start, end, (events(usage(1, 2)), 3.0)).arrivals_s) == [1.0, 2.0]
    assert list(read(start, end, (events(usage(1, 1)), 3.0)).arrivals_s) == [1.0]


def test_a_server_without_counts() -> None:
    answer = read((events(piece("a"), piece("b", "stop")), 1.0))
    assert answer.failure is None
    assert answer.output_tokens is None
    assert answer.input_tokens is None


def test_fields_that_a_server_refuses_are_left_out() -> None:
    def strict(request: dict[str, Any], number: int) -> tuple[int, bytes]:
        return (400, b'{"error": {"message": "unknown field"}}') if "ignore_eos" in request else streamed(request)

    async def go(url: str) -> tuple[tuple[str, ...], Answer]:
        async with OpenAIClient(ClientConfig(base_url=url, model="demo")) as client:
            return await client.learn_limits(REQUEST, 5.0), await client(REQUEST)

    with fake_server(strict) as (url, _):
        refused, answer = asyncio.run(go(url))
    assert refused == ("ignore_eos",)
    assert answer.failure is None


@pytest.mark.parametrize(
    ("models", "model", "said"),
    [({"data": []}, None, "names no model"), ("demo", "other", "has no model other: it has demo"), ([1], None, "names no model")],
)
def test_what_is_no_such_server(models: object, model: str | None, said: str) -> None:
    async def go(url: str) -> None:
        async with OpenAIClient(ClientConfig(base_url=url, model=model)) as client:
            await client.models()

    with fake_server(models=models) as (url, _), pytest.raises(CheckFailed, match=said):
        asyncio.run(go(url))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "http://", "http://user:word@host"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="URL"):
        ClientConfig(base_url=url)


def test_the_key_is_not_shown_and_v1_may_be_there() -> None:
    config = ClientConfig(base_url="http://host:1/v1/", api_key="secret")
    assert "secret" not in repr(config)
    assert config.root == "http://host:1"


WHOLE = b'{"choices": [{"text": "x", "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'


def ask_a_closing_server(*, answers: int) -> tuple[list[Answer], int]:
    """Three requests at once, then three in turn; the server closes each connection after so many answers. What it saw."""
    seen = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        for left in range(answers, -1, -1):
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
            seen += 1
            if left:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE) + WHOLE)
                await writer.drain()
        writer.close()

    async def go() -> list[Answer]:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with OpenAIClient(ClientConfig(base_url=url, model="demo", stream=False)) as client:
                at_once = await asyncio.gather(*(client(REQUEST) for _ in range(3)))
                return [*at_once, *[await client(REQUEST) for _ in range(3)]]

    return asyncio.run(go()), seen


def test_a_connection_that_the_server_has_given_up_is_no_failure() -> None:
    answers, seen = ask_a_closing_server(answers=1)
    assert [answer.failure for answer in answers] == [None] * 6
    assert 6 < seen <= 12  # those in turn met connections that had been given up


def test_a_server_that_closes_fresh_connections_fails() -> None:
    answers, seen = ask_a_closing_server(answers=0)
    assert [answer.failure.kind for answer in answers if answer.failure] == ["connection"] * 6
    assert seen == 6

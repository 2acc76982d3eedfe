"""The HTTP API, driven by the unmodified openai client over a real connection."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import openai
import pytest
from gated_session import GatedSession
from real_socket import serving

from maskpro_deploy import __version__
from maskpro_deploy.runtime import RuntimeConfig, SamplingParams, TextGenerator
from maskpro_deploy.runtime.generate.tokenizer import TextTokenizer
from maskpro_deploy.runtime.http.config import ServeConfig
from maskpro_deploy.runtime.http.lifecycle import running_server

MODEL = "tiny-sparse"
HELLO = [{"role": "user", "content": "hello"}]
KEY = "a secret"


@pytest.fixture(scope="module")
def url(sparse_bundle: Path) -> Iterator[str]:
    config = ServeConfig(
        port=0, served_model_name=MODEL, runtime=RuntimeConfig(provider="cpu", threads=1, max_num_seqs=4), max_body_bytes=100_000
    )
    with running_server(sparse_bundle, config) as served:
        yield served


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url) as made:
        yield made


def test_the_model_is_listed_as_clients_expect(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert (model.model_extra or {})["max_model_len"] == 256
    assert (model.model_extra or {})["root"]
    assert client.models.retrieve(MODEL).id == MODEL


def test_completions_in_all_four_prompt_forms(client: openai.OpenAI, http: httpx2.Client) -> None:
    text = "Once upon"
    tokens = http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    answers = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0)
        for prompt in (text, [text, "b"], tokens, [tokens, [1, 2]])
    ]
    assert len({a.choices[0].text for a in answers}) == 1
    assert [len(a.choices) for a in answers] == [1, 2, 1, 2]
    assert answers[0].usage is not None
    assert answers[0].usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": len(tokens),
        "completion_tokens": 6,
        "total_tokens": len(tokens) + 6,
    }
    assert answers[0].choices[0].finish_reason == "length"


def test_a_stream_is_one_event_per_token_and_adds_up(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": MODEL,
        "prompt": "The sea",
        "max_tokens": 20,
        "seed": 4,
        "extra_body": {"ignore_eos": True},
    }
    whole = client.completions.create(**settings)
    chunks = list(client.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    *tokens, last = chunks
    assert len(tokens) == 20
    assert "".join(c.choices[0].text for c in tokens) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in tokens] == [None] * 19 + ["length"]
    assert last.choices == []
    assert last.usage == whole.usage
    assert {c.usage for c in tokens} == {None}
    assert len({c.id for c in chunks}) == 1


def test_chat_streams_its_role_first_and_adds_up(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 8, "temperature": 0, "n": 2}
    whole = client.chat.completions.create(**settings)
    texts, roles = {0: "", 1: ""}, {0: [], 1: []}  # type: ignore[var-annotated]
    for chunk in client.chat.completions.create(**settings, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index].append(choice.delta.role)
    assert [c.message.content for c in whole.choices] == [texts[0], texts[1]]
    assert texts[0] == texts[1]
    for seen in roles.values():
        assert seen[0] == "assistant"
        assert set(seen[1:]) == {None}


def test_chat_reads_the_template(client: openai.OpenAI, http: httpx2.Client) -> None:
    rendered = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nhello<|end|>\n<|start|>assistant\n"
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]},
    ]
    chat = client.chat.completions.create(model=MODEL, messages=messages, max_tokens=5, temperature=0)
    plain = client.completions.create(model=MODEL, prompt=rendered, max_tokens=5, temperature=0)
    assert chat.choices[0].message.content == plain.choices[0].text
    assert chat.usage is not None
    assert plain.usage is not None
    assert chat.usage.prompt_tokens == plain.usage.prompt_tokens
    assert http.post("/tokenize", json={"messages": messages}).json()["count"] == plain.usage.prompt_tokens


def test_chat_without_a_length_uses_the_room_there_is(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, extra_body={"ignore_eos": True})  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 256


def test_completion_logprobs_and_echo(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="hello", max_tokens=3, temperature=0, logprobs=2, echo=True)
    choice = answer.choices[0]
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert choice.text.startswith("hello")
    assert "".join(logprobs.tokens[:3]) == "hello"
    assert logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    assert all(lp < 0 for lp in logprobs.token_logprobs[1:])
    assert [len(t) if t else 0 for t in logprobs.top_logprobs or ()] == [0, 2, 2, 2, 2, 2]
    assert (logprobs.text_offset or [])[:3] == [0, 2, 4]
    scored = client.completions.create(model=MODEL, prompt="hello", max_tokens=0, logprobs=2, echo=True).choices[0]
    assert scored.text == "hello"
    assert scored.logprobs is not None
    assert scored.logprobs.token_logprobs == pytest.approx(logprobs.token_logprobs[:3], abs=1e-4)


def test_chat_logprobs_carry_bytes(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=6, seed=1, logprobs=True, top_logprobs=3)  # type: ignore[arg-type]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    raw = b"".join(bytes(t.bytes or []) for t in logprobs.content)
    assert raw.decode(errors="replace") == answer.choices[0].message.content
    for token in logprobs.content:
        assert [t.logprob for t in token.top_logprobs] == sorted((t.logprob for t in token.top_logprobs), reverse=True)
        assert len(token.top_logprobs) == 3


def test_streamed_logprobs_are_those_of_the_whole(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 5, "temperature": 0, "logprobs": 1, "echo": True}
    whole = client.completions.create(**settings).choices[0].logprobs
    assert whole is not None
    streamed = [c.choices[0].logprobs for c in client.completions.create(**settings, stream=True)]
    assert [t for s in streamed if s for t in s.tokens or ()] == whole.tokens
    assert [o for s in streamed if s for o in s.text_offset or ()][:2] == (whole.text_offset or [])[:2]


def test_concurrent_requests_get_the_answers_of_sequential_ones(client: openai.OpenAI) -> None:
    def ask(i: int) -> str:
        settings: dict[str, Any] = {"seed": i} if i % 2 else {"temperature": 0}
        answer = client.completions.create(model=MODEL, prompt="word " * (i + 1), max_tokens=16 + i, **settings)
        return answer.choices[0].text

    sequential = [ask(i) for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(ask, range(10))) == sequential


def test_seeds_repeat_and_differ(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        return client.completions.create(model=MODEL, prompt="x", max_tokens=20, seed=seed).choices[0].text

    assert ask(3) == ask(3) != ask(4)
    assert ask(None) != ask(None)


def test_vllms_extras_arrive(client: openai.OpenAI, http: httpx2.Client) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="x", max_tokens=30, extra_body={"ignore_eos": True, "min_tokens": 30, "top_k": 1, "min_p": 0.1}
    )
    greedy = client.completions.create(
        model=MODEL, prompt="x", max_tokens=30, temperature=0, extra_body={"ignore_eos": True, "top_k": -1}
    )
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 30
    assert answer.choices[0].text == greedy.choices[0].text
    tokens = http.post("/tokenize", json={"prompt": "x" + greedy.choices[0].text}).json()["tokens"]
    assert http.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "x" + greedy.choices[0].text


def test_stop_texts_end_the_answer(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="x", max_tokens=30, seed=6).choices[0].text
    stop = whole[8:10]
    answer = client.completions.create(model=MODEL, prompt="x", max_tokens=30, seed=6, stop=stop).choices[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def error_of(http: httpx2.Client, status: int, body: object, path: str = "/v1/completions") -> dict[str, Any]:
    content = body if isinstance(body, (str, bytes)) else json.dumps(body)
    response = http.post(path, content=content)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"logprobs": 99}, "logprobs"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"stop": [""]}, "stop"),
        ({"stop_token_ids": [-4]}, "stop_token_ids"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"stream_options": {"include_usage": True}}, None),
    ],
)
def test_a_wrong_field_is_named(http: httpx2.Client, extra: dict[str, object], param: str | None) -> None:
    error = error_of(http, 400, {"prompt": "x", **extra})
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


@pytest.mark.parametrize(
    "extra",
    [
        {"functions": [{"name": "f"}]},
        {"audio": {"voice": "x"}},
        {"documents": [{"text": "x"}]},
    ],
)
def test_what_is_known_but_not_supported_is_refused(http: httpx2.Client, extra: dict[str, object]) -> None:
    error = error_of(http, 400, {"messages": HELLO, **extra}, "/v1/chat/completions")
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == next(iter(extra))


def test_what_asks_for_nothing_or_is_unknown_is_ignored(client: openai.OpenAI) -> None:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=HELLO,  # type: ignore[arg-type]
        max_tokens=1,
        tool_choice="none",
        response_format={"type": "text"},
        user="me",
        store=False,
        extra_body={"a_field_of_tomorrow": 1},
    )
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 1


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "king", "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "hi",
    ],
)
def test_messages_that_cannot_be_read_are_refused(http: httpx2.Client, messages: object) -> None:
    error = error_of(http, 400, {"messages": messages}, "/v1/chat/completions")
    assert error["param"].startswith("messages")


@pytest.mark.parametrize("body", ["{", "[]", '"x"', "", b"\xff", "[" * 100_000, '{"prompt": "x", "temperature": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(http: httpx2.Client, body: str | bytes) -> None:
    assert error_of(http, 400, body)["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", '{"prompt": "\\ud800"}'),
        ("/v1/completions", '{"prompt": "x", "logit_bias": {"\\ud800": 1}}'),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "\\ud800"}]}'),
        ("/tokenize", '{"prompt": "\\ud800"}'),
        ("/v1/completions", '{"prompt": [1000000000000000000000000000000]}'),
        ("/v1/completions", '{"prompt": "x", "max_tokens": 1000000000000000000000000000000}'),
        ("/v1/completions", '{"prompt": "x", "temperature": 1e999}'),
    ],
)
def test_hostile_values_are_the_clients_error(http: httpx2.Client, path: str, body: str) -> None:
    assert error_of(http, 400, body, path)["type"] == "invalid_request_error"


def test_half_a_surrogate_pair_is_no_text(http: httpx2.Client) -> None:
    assert error_of(http, 400, '{"prompt": "x", "model": "\\ud800"}')["code"] == "invalid_json"
    assert error_of(http, 400, '{"prompt": "x", "max_tokens": 2, "stop": "\\ud800"}')["code"] == "invalid_json"


def test_errors_are_the_clients_own_classes(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as context:
        client.completions.create(model=MODEL, prompt=[1] * 200, max_tokens=100)
    assert context.value.code == "context_length_exceeded"
    assert "300" in context.value.message
    assert "256" in context.value.message
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-9", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_unknown_routes_and_methods_are_openai_shaped(http: httpx2.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert http.get("/v1/completions").status_code == 405
    assert http.get("/v1/completions").json()["error"]["type"] == "invalid_request_error"


def test_a_body_that_is_too_long_is_refused(http: httpx2.Client) -> None:
    assert error_of(http, 413, {"prompt": "x" * 100_000})["code"] == "request_too_large"


def test_tokens_outside_the_vocabulary_are_refused(http: httpx2.Client) -> None:
    assert error_of(http, 400, {"tokens": [320]}, "/detokenize")["param"] == "tokens"


def test_health_version_and_request_ids(http: httpx2.Client) -> None:
    assert http.get("/health").status_code == 200
    assert http.get("/live").status_code == 200
    assert http.get("/version").json() == {"version": __version__}
    assert http.get("/health", headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
    assert len(http.get("/health", headers={"X-Request-Id": "no good;"}).headers["X-Request-Id"]) == 32
    assert "access-control-allow-origin" not in http.get("/health", headers={"Origin": "http://evil"}).headers


def sample(http: httpx2.Client, name: str) -> float:
    """The value of one metric, its labels but the model's left aside."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and f'model_name="{MODEL}"' in line)


def test_metrics_count_what_happened(client: openai.OpenAI, http: httpx2.Client) -> None:
    names = {
        "maskpro_prompt_tokens_total{": 3,
        "maskpro_generation_tokens_total{": 7,
        'maskpro_request_success_total{finished_reason="length"': 1,
        "maskpro_time_to_first_token_seconds_count{": 1,
        "maskpro_inter_token_latency_seconds_count{": 6,
        "maskpro_request_time_per_output_token_seconds_count{": 1,
        "maskpro_e2e_request_latency_seconds_count{": 1,
        "maskpro_request_params_max_tokens_sum{": 7,
        "maskpro_num_requests_running{": 0,
        "maskpro_num_requests_waiting{": 0,
    }
    before = {name: sample(http, name) for name in names}
    client.completions.create(model=MODEL, prompt=[5, 6, 7], max_tokens=7, extra_body={"ignore_eos": True})
    assert {name: sample(http, name) - before[name] for name in names} == names


@pytest.fixture
def gated_url(gated: GatedSession, gated_generator: TextGenerator) -> Iterator[str]:
    with serving(gated_generator, ServeConfig(served_model_name=MODEL)) as served:
        yield served
        gated.open()


LONG = {"prompt": [1], "max_tokens": 200, "ignore_eos": True}


def idle_after(gated: GatedSession, generator: TextGenerator, steps: int) -> bool:
    """Whether everything has ended within this many further steps."""
    for _ in range(steps):
        gated.allow(1)
        if generator.drain(0.5):
            return True
    return False


def test_a_stream_that_is_given_up_ends_its_generation(
    gated_url: str, gated: GatedSession, gated_generator: TextGenerator
) -> None:
    gated.allow(3)
    with (
        httpx2.Client(base_url=gated_url) as http,
        http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert next(response.iter_lines()).startswith("data: {")
    assert idle_after(gated, gated_generator, 10)


def test_a_request_that_is_given_up_ends_its_generation(
    gated_url: str, gated: GatedSession, gated_generator: TextGenerator
) -> None:
    where = urlsplit(gated_url)
    body = json.dumps(LONG).encode()
    with socket.create_connection((where.hostname or "", where.port or 0)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert gated.entered.acquire(timeout=30)
    assert idle_after(gated, gated_generator, 10)


def test_a_full_server_is_tried_again_by_the_client(gated_url: str, gated: GatedSession, gated_generator: TextGenerator) -> None:
    gated_generator.submit([[1]] * 4, SamplingParams(max_tokens=1), lambda event: None)
    with httpx2.Client(base_url=gated_url) as http, openai.OpenAI(base_url=f"{gated_url}/v1", api_key="x") as client:
        refused = http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["type"] == "overloaded_error"
        assert sample(http, 'maskpro_admission_rejections_total{model_name="tiny-sparse",reason="queue_full"') == 1
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(client.completions.create, model=MODEL, prompt="x", max_tokens=2)
            while sample(http, "maskpro_admission_rejections_total{") < 2:
                pass
            gated.open()
            assert asking.result(timeout=30).choices[0].finish_reason == "length"


def test_draining_shows_in_health_and_refuses(gated_url: str, gated: GatedSession, gated_generator: TextGenerator) -> None:
    gated_generator.drain(0)
    with httpx2.Client(base_url=gated_url) as http:
        assert http.get("/health").status_code == 503
        assert http.get("/health").json()["error"]["code"] == "draining"
        assert http.get("/live").status_code == 200
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 503


def test_a_breakdown_shows_everywhere(gated_url: str, gated: GatedSession, gated_generator: TextGenerator) -> None:
    gated.fail_with = RuntimeError("out of memory")
    with httpx2.Client(base_url=gated_url) as http, ThreadPoolExecutor(2) as pool:
        whole = pool.submit(http.post, "/v1/completions", json=LONG)
        streamed = pool.submit(http.post, "/v1/completions", json={**LONG, "stream": True})
        while gated_generator.load.running + gated_generator.load.waiting + len(gated_generator._live) < 2:
            pass
        gated.open()
        assert whole.result().status_code == 500
        assert whole.result().json()["error"]["type"] == "server_error"
        assert '"server_error"' in streamed.result().text
        assert "[DONE]" not in streamed.result().text
        assert http.get("/health").status_code == 503
        assert http.get("/live").status_code == 503
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 500


def test_an_error_in_a_stream_raises_in_the_client(gated_url: str, gated: GatedSession) -> None:
    gated.allow(2)
    with openai.OpenAI(base_url=f"{gated_url}/v1", api_key="x", max_retries=0) as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=50, stream=True)
        next(iter(stream))
        gated.fail_with = RuntimeError("out of memory")
        gated.open()
        with pytest.raises(openai.APIError, match="out of memory"):
            list(stream)


def test_the_key_guards_the_model_and_nothing_else(
    session: Any, text_tokenizer: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServeConfig(api_key=KEY, served_model_name=MODEL)
    assert KEY not in repr(config)
    with (
        TextGenerator(session, text_tokenizer) as generator,
        serving(generator, config) as url,
        httpx2.Client(base_url=url) as http,
    ):
        for headers in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {KEY}"}, {"Authorization": KEY}):
            for method, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/completions"),
                ("POST", "/tokenize"),
                ("POST", "/detokenize"),
            ):
                response = http.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]["code"] == "invalid_api_key"
                assert response.headers["WWW-Authenticate"] == "Bearer"
        for path in ("/health", "/live", "/metrics", "/version"):
            assert http.get(path).status_code == 200
        with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
            assert client.completions.create(model=MODEL, prompt="x", max_tokens=1).choices
        with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert KEY not in caplog.text


def test_origins_that_are_allowed_get_their_headers(session: Any, text_tokenizer: TextTokenizer) -> None:
    config = ServeConfig(allowed_origins=("http://page.example",), api_key=KEY)
    with (
        TextGenerator(session, text_tokenizer) as generator,
        serving(generator, config) as url,
        httpx2.Client(base_url=url) as http,
    ):
        preflight = http.options(
            "/v1/completions",
            headers={
                "Origin": "http://page.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "http://page.example"
        assert "access-control-allow-origin" not in http.get("/health", headers={"Origin": "http://other.example"}).headers


def test_a_wrong_character_at_the_end_is_given_out_too(client: openai.OpenAI, http: httpx2.Client) -> None:
    """A stream that ends inside a character still adds up to the whole text."""
    ((stray,),) = [[t] for t in range(320) if http.post("/detokenize", json={"tokens": [t]}).json()["prompt"] == "\ufffd"][:1]
    settings: dict[str, Any] = {"model": MODEL, "prompt": "x", "max_tokens": 3, "temperature": 0, "logit_bias": {str(stray): 100}}
    whole = client.completions.create(**settings).choices[0].text
    assert whole == "\ufffd" * 3
    assert "".join(c.choices[0].text for c in client.completions.create(**settings, stream=True)) == whole


def test_logprobs_match_the_model(client: openai.OpenAI, session: Any) -> None:
    answer = client.completions.create(model=MODEL, prompt=[5, 6], max_tokens=1, temperature=0, logprobs=0)
    logits = session.logits(np.array([[5, 6]]))[0, -1].astype(np.float64)
    expected = logits.max() - np.log(np.exp(logits).sum())
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.token_logprobs == pytest.approx([expected], abs=1e-4)

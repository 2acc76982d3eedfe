"""Bodies as long as a server takes them, each of which could cost it much time."""

from __future__ import annotations

import json
from collections.abc import Iterator

TEXT_PART = {"type": "text", "text": "x"}


def list_floods(size: int, tokens: int) -> Iterator[tuple[str, str, bytes]]:
    """Name, path and body of each; `size` is the longest body, in bytes, and `tokens` the context."""
    objects = 16 * tokens - 8  # as many brackets as are taken

    def fill(before: str, item: str, after: str, most: int | None = None) -> bytes:
        count = (size - len(before) - len(after)) // (len(item) + 1)
        return (before + ",".join([item] * (count if most is None else min(count, most))) + after).encode()

    def text(before: str, piece: str, after: str) -> bytes:
        return (before + piece * ((size - len(before) - len(after)) // len(piece)) + after).encode()

    user = '{"messages":[{"role":"user","content":'
    for path, before, after in (
        ("/v1/completions", '{"max_tokens":1,"prompt":"', '"}'), ("/v1/chat/completions", user + '"', '"}]}'),
        ("/v1/responses", '{"input":"', '"}'), ("/tokenize", '{"prompt":"', '"}'), ("/tokenize", user + '"', '"}]}'),
    ):  # fmt: skip
        yield "one letter", path, text(before, "a", after)
        yield "a sentence", path, text(before, "The sea is grey. ", after)
        yield "escapes", path, text(before, "\\u0001", after)
        yield "spaces", path, text(before, " ", after)
    yield "numbers", "/v1/completions", fill('{"prompt":[', "1", "]}")
    yield "a prompt as long as the context", "/v1/completions", fill('{"max_tokens":1,"prompt":[', "1", "]}", tokens - 1)
    scored = '{"max_tokens":1,"echo":true,"logprobs":20,"prompt":['
    yield "a prompt with scores", "/v1/completions", fill(scored, "1", "]}", tokens - 1)
    yield "a streamed prompt with scores", "/v1/completions", fill('{"stream":true,' + scored[1:], "1", "]}", tokens - 1)
    yield "texts", "/v1/completions", fill('{"prompt":[', '"x"', "]}")
    yield "lists", "/v1/completions", fill('{"prompt":[', "[1]", "]}", objects)
    yield "a long number", "/v1/completions", text('{"prompt":"x","seed":', "9", "}")
    yield "brackets", "/v1/completions", b'{"prompt":' + b"[" * (size // 2) + b"]" * (size // 2 - 20) + b"}"
    yield "nothing but fields", "/v1/completions", json.dumps({f"f{i}": i for i in range(size // 17)}).encode()
    yield "one long field name", "/v1/completions", text('{"prompt":"x","', "f", '":1}')
    yield "the same field", "/v1/completions", fill('{"prompt":"x",', '"seed":1', "}")
    yield "biases", "/v1/completions", json.dumps({"prompt": "x", "logit_bias": {str(i): 1 for i in range(8192)}}).encode()
    yield "a long stop text", "/v1/completions", text('{"prompt":"x","max_tokens":64,"stop":"', "ab", '"}')
    yield "messages", "/v1/chat/completions", fill('{"messages":[', '{"role":"user","content":"x"}', "]}", tokens)
    yield "parts", "/v1/chat/completions", fill(user + "[", json.dumps(TEXT_PART, separators=(",", ":")), "]}]}", objects)
    yield "calls", "/v1/chat/completions", fill(user + '"x","tool_calls":[', '{"a":[1]}', "]}]}", objects // 2)
    variables = '{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"a":['
    yield "variables of a template", "/v1/chat/completions", fill(variables, "{}", "]}}", objects)
    yield "numbers for a template", "/v1/chat/completions", fill(variables, "1", "]}}")
    yield "items", "/v1/responses", fill('{"input":[', '{"role":"user","content":"x"}', "]}", tokens)
    yield "a long instruction", "/v1/responses", text('{"input":"x","instructions":"', "a", '"}')
    yield "a long value", "/v1/responses", text('{"input":"x","metadata":{"a":"', "a", '"}}')
    yield "includes", "/v1/responses", fill('{"input":"x","include":[', '"x"', "]}")
    yield "a long model name", "/v1/responses", text('{"input":"x","model":"', "a", '"}')
    yield "tokens as text", "/detokenize", fill('{"tokens":[', "300", "]}", 1 << 16)
    yield "too many tokens as text", "/detokenize", fill('{"tokens":[', "300", "]}")
    yield "texts for tokens", "/detokenize", fill('{"tokens":[', '"1"', "]}", 1 << 16)

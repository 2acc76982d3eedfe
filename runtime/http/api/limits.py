"""How large a request may be: counted before anything of it is validated, encoded or kept.

What a model of some context can use bounds everything: the bytes of a body, the prompts, the tokens of each, the messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from maskpro_deploy.runtime.generate.generator import TextGenerator
from maskpro_deploy.runtime.http.api.errors import invalid_request

_BODY_BASE, _BODY_PER_TOKEN = 1 << 20, 256  # bytes: for what is no prompt, and for each token of the context
_OPENINGS_PER_TOKEN = 16  # objects and lists, for each token of the context
_MOST_FIELDS = 256
_MOST_DETOKENIZED = 1 << 16
# fields whose items cost time before their values are looked at -> the most items
_FEW = {
    "stop": 64,
    "stop_token_ids": 1024,
    "logit_bias": 8192,
    "chat_template_kwargs": 64,
    "stream_options": 64,
    "metadata": 16,
    "include": 64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may hold."""

    prompts: int  # prompts, or answers to all of them
    tokens: int  # of a prompt, and messages of a conversation

    @classmethod
    def of(cls, generator: TextGenerator) -> RequestLimits:
        """Those of a generator."""
        return cls(prompts=generator.capacity, tokens=generator.max_model_len)

    @property
    def body_bytes(self) -> int:
        """The longest body."""
        return _BODY_BASE + _BODY_PER_TOKEN * self.tokens

    def check_structure(self, body: bytes) -> None:
        """Refuse a body of more objects and lists than a prompt could use (ApiError); those inside of texts count, too."""
        if (openings := body.count(b"[") + body.count(b"{")) > (most := _OPENINGS_PER_TOKEN * self.tokens):
            raise invalid_request(f"the body has {openings} brackets; this server takes {most} at most.", "too_many_items")

    def check(self, fields: Mapping[str, object]) -> None:
        """Refuse a request whose lists are too long, or whose prompt is of no form there is (ApiError)."""
        _count("the request", fields, _MOST_FIELDS, "fields")
        for name, most in _FEW.items():
            _count(name, fields.get(name), most, "items")
        _count("messages", fields.get("messages"), self.tokens, "messages")
        _count("input", fields.get("input"), self.tokens, "items")
        _count("tokens", fields.get("tokens"), max(self.tokens, _MOST_DETOKENIZED), "tokens")
        if "prompt" in fields:
            self._check_prompt(fields["prompt"])

    def _check_prompt(self, prompt: object) -> None:
        """A text, tokens, texts, or lists of tokens: told by the first item, which all others have to be like."""
        if not isinstance(prompt, list) or not prompt:
            return
        first = type(prompt[0])
        _count("prompt", prompt, self.tokens if first is int else self.prompts, "tokens" if first is int else "prompts")
        for place, item in enumerate(prompt):
            if type(item) is not first:
                raise invalid_request(f"prompt.{place}: all items have to be of one kind.", "invalid_value", "prompt")
            if first is list:
                _count(f"prompt.{place}", item, self.tokens, "tokens")


def _count(name: str, value: object, most: int, what: str) -> None:
    if isinstance(value, (list, dict)) and len(value) > most:
        param = None if " " in name else name
        raise invalid_request(f"{name} has {len(value)} {what}; this server takes {most} at most.", "too_many_items", param)

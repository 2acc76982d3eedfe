"""The sampling parameters, each defined once: name, type, default, help and range.

A new parameter is one more field of `SamplingParams`, and its use in `sampling` or `sequence`. Its range is checked here, and the
HTTP API takes it from here under the same name (`http/requests.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from maskpro_deploy.errors import ConfigError

MAX_LOGPROBS = 20
MAX_STOPS = 16


class SamplingError(ConfigError):
    """A sampling parameter is out of its range; `field` names it as a request would."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} {value!r} is out of range: {allowed}.")
        self.field = field


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `low` to `high`; with `open_low` without `low` itself."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.open_low and value == self.low)  # false for NaN

    def __str__(self) -> str:
        return f"{'above' if self.open_low else 'from'} {self.low}" + ("" if self.high == math.inf else f" to {self.high}")


def _parameter(default: Any, text: str, allowed: Range | None = None) -> Any:
    """A field with its help and its range; None, where it is the default, is always allowed."""
    metadata = {"help": text, "range": allowed}
    return field(default_factory=default, metadata=metadata) if callable(default) else field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt."""

    max_tokens: int = _parameter(16, "Most tokens of the answer; 0 only reads the prompt.", Range(0))
    min_tokens: int = _parameter(0, "End-of-text and stop tokens are banned, and stop texts ignored, before this many.", Range(0))
    temperature: float = _parameter(1.0, "Divides the logits; 0 is greedy.", Range(0, 2))
    top_k: int = _parameter(0, "Keep the k likeliest tokens; 0 keeps all.", Range(0))
    top_p: float = _parameter(1.0, "Keep the likeliest tokens that together reach this probability.", Range(0, 1, open_low=True))
    min_p: float = _parameter(0.0, "Keep tokens at least this likely relative to the likeliest.", Range(0, 1))
    repetition_penalty: float = _parameter(
        1.0,
        "Divides positive and multiplies negative logits of tokens seen in the prompt or the answer.",
        Range(0, 10, open_low=True),
    )
    presence_penalty: float = _parameter(0.0, "Subtracted from the logit of each token in the answer.", Range(-2, 2))
    frequency_penalty: float = _parameter(0.0, "The same, times how often the token is in the answer.", Range(-2, 2))
    logit_bias: Mapping[int, float] = _parameter(dict, "Added to single logits, by token.")
    logprobs: int | None = _parameter(
        None, "Report so many of the likeliest tokens with the chosen one; None reports nothing.", Range(0, MAX_LOGPROBS)
    )
    prompt_logprobs: int | None = _parameter(None, "The same for the tokens of the prompt.", Range(0, MAX_LOGPROBS))
    seed: int | None = _parameter(None, "Makes the draws repeatable; None takes fresh randomness.")
    stop: tuple[str, ...] = _parameter((), "Texts that end the answer; they are not part of it.")
    stop_token_ids: tuple[int, ...] = _parameter((), "Tokens that end the answer, in addition to the end-of-text tokens.")
    ignore_eos: bool = _parameter(False, "Go on after end-of-text tokens (for measurements of fixed length).")
    skip_special_tokens: bool = _parameter(True, "Omit special tokens from the text.")

    def __post_init__(self) -> None:
        for name, allowed in _RANGES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise SamplingError(name, value, str(allowed))
        if self.min_tokens > self.max_tokens:
            raise SamplingError("min_tokens", self.min_tokens, f"from 0 to {self.max_tokens} (max_tokens)")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise SamplingError("logit_bias", {token: bias}, "token ids from 0 up, with values from -100 to 100")
        if len(self.stop) > MAX_STOPS or not all(self.stop):
            raise SamplingError("stop", list(self.stop), f"up to {MAX_STOPS} texts, none empty")


_RANGES: dict[str, Range] = {p.name: p.metadata["range"] for p in fields(SamplingParams) if p.metadata["range"] is not None}

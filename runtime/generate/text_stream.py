"""Tokens to text, one by one.

A character may be spread over several tokens, and a stop text over several pieces: what is not settled is held back.
"""

from __future__ import annotations

from collections.abc import Sequence

from maskpro_deploy.runtime.generate.tokenizer import UNDECODED, TextTokenizer

_MAX_HELD_TOKENS = 64  # garbage bytes could otherwise be held back without end


class Detokenizer:
    """Text of tokens that arrive one by one; the pieces together are exactly the text of all tokens."""

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._tokens: list[int] = []
        self._prefix = 0  # decoding starts here: a few known tokens give the rest its context (spaces between words)
        self._read = 0  # tokens before this one have been given out

    def add(self, token: int) -> str:
        """The text that is settled now."""
        self._tokens.append(token)
        return self._settle(force=len(self._tokens) - self._read > _MAX_HELD_TOKENS)

    def flush(self) -> str:
        """What was held back, now that nothing will follow."""
        return self._settle(force=True)

    def _settle(self, *, force: bool) -> str:
        known = self._decode(self._tokens[self._prefix : self._read])
        text = self._decode(self._tokens[self._prefix :])
        if len(text) <= len(known) or (text.endswith(UNDECODED) and not force):
            return ""
        self._prefix, self._read = self._read, len(self._tokens)
        return text[len(known) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip)


class StopFilter:
    """Lets text through up to the first stop text, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that may be given out, and whether a stop text has been met."""
        if not self._stops:
            return text, False
        self._held += text
        starts = {stop: self._held.find(stop) for stop in self._stops}
        # the stop that is complete first, and of those the longest: so the result does not depend on how the text was cut
        ends = [(start + len(stop), start) for stop, start in starts.items() if start >= 0]
        if ends:
            out, self._held = self._held[: min(ends)[1]], ""
            return out, True
        settled = len(self._held) - self._open_length()
        out, self._held = self._held[:settled], self._held[settled:]
        return out, False

    def flush(self) -> str:
        """What was held back, now that nothing will follow."""
        out, self._held = self._held, ""
        return out

    def _open_length(self) -> int:
        """Length of the longest end of the held text that begins a stop text."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0

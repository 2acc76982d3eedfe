"""One call, `{"name": ..., "arguments": {...}}`, read character by character: the arguments are known while they are written.

The keys may come in any order and with any white space; what the arguments hold is passed on as it is.
"""

from __future__ import annotations

import json

_SPACE = " \t\r\n"
_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})
_MOST_HEAD = 4096  # characters of a value other than the arguments


class CallObject:
    """A call that arrives piece by piece."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: str | None = None  # what is there of them; None before their first character
        self.done = False  # its last brace has come
        self.bad = False  # it is no call
        self._expect = self._open
        self._key = ""
        self._value = ""
        self._depth = 0
        self._quoted = self._escaped = False

    def add(self, text: str) -> int:
        """Read on, up to the end of the object or of the text; how many characters were read."""
        for at, char in enumerate(text):
            if self.done or self.bad:
                return at
            self._expect(char)
        return len(text)

    def _open(self, char: str) -> None:
        if char == "{":
            self._expect = self._before_key
        elif char not in _SPACE:
            self.bad = True

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._value, self._quoted, self._expect = char, True, self._in_key
        elif char == "}":
            self._end()
        elif char not in _SPACE:
            self.bad = True

    def _in_key(self, char: str) -> None:
        self._value += char
        if self._closes(char):
            self._key = self._value[1:-1]
            self._expect = self._colon
        self.bad = len(self._value) > _MOST_HEAD or (self._expect == self._colon and self._key not in _KEYS)

    def _colon(self, char: str) -> None:
        if char == ":":
            self._expect = self._before_value
        elif char not in _SPACE:
            self.bad = True

    def _before_value(self, char: str) -> None:
        if char in _SPACE:
            return
        self._value, self._quoted, self._depth = char, char == '"', int(char in "{[")
        self._expect = self._in_value if self._quoted or self._depth else self._in_scalar
        if self._streams:
            self.arguments = char

    def _in_scalar(self, char: str) -> None:
        if char not in _SPACE + ",}":
            self._value += char
            self.bad = len(self._value) > _MOST_HEAD
            return
        self._take_value()
        if not self.bad:
            self._after_value(char)

    def _in_value(self, char: str) -> None:
        self._value += char
        if self._streams:
            self.arguments = self._value
        if self._quoted:
            if self._closes(char) and not self._depth:
                self._take_value()
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if not self._depth:
                self._take_value()

    def _after_value(self, char: str) -> None:
        if char == ",":
            self._expect = self._before_key
        elif char == "}":
            self._end()
        elif char not in _SPACE:
            self.bad = True

    def _closes(self, char: str) -> bool:
        """Whether a character of a quoted text ends it."""
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._quoted = False
        return not self._quoted

    @property
    def _streams(self) -> bool:
        """Whether the value at hand is the arguments, as an object."""
        return self._key in ("arguments", "parameters") and self._value[0] == "{"

    def _take_value(self) -> None:
        self._expect = self._after_value
        if self._streams:
            return
        try:
            value = json.loads(self._value)
        except ValueError:
            self.bad = True
            return
        if self._key == "name":
            self.name = value if isinstance(value, str) else None
            self.bad = self.name is None
        elif self._key in ("arguments", "parameters"):  # none, or an object within a text
            self.arguments = "{}" if value is None else value if isinstance(value, str) else None
            self.bad = self.arguments is None

    def _end(self) -> None:
        self.done = self.name is not None
        self.bad = not self.done
        if self.done and self.arguments is None:
            self.arguments = "{}"

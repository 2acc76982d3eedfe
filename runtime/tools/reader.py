"""From the text of an answer to content and calls, while it is generated.

Text is held back only where it may begin a call. What turns out to be none, or to call a function that was not offered, is
content: nothing that the model said is lost.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

from maskpro_deploy.runtime.tools.call_objects import CallObject
from maskpro_deploy.runtime.tools.formats import ToolFormat


@dataclass(slots=True)
class CallPiece:
    """What is new of a call: first its id and its name, then more of its arguments."""

    index: int  # which call of the answer
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class Piece:
    """What is new of an answer."""

    content: str
    calls: list[CallPiece]


class CallReader:
    """Reads one answer."""

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self._form = form
        self._names = names
        self._held = ""  # not read yet
        self._raw = ""  # read, and content if it turns out to be no call
        self._space = ""  # white space at the end of the content: it goes if a call follows
        self._call: CallObject | None = None
        self._given = 0  # characters of its arguments that are out
        self._named = False  # whether its name is out
        self._content: list[str] = []
        self._pieces: dict[int, CallPiece] = {}
        self._state = self._find_marker if form.marker else self._begin
        self._complete = 0  # calls

    @property
    def broken(self) -> bool:
        """Whether a call whose name is out has no end yet."""
        return self._named

    def add(self, text: str) -> Piece:
        """More text of the answer."""
        self._held += text
        while self._held and self._state():
            pass
        return self._take()

    def finish(self) -> Piece:
        """Nothing follows: what was held back."""
        closing = self._form.after.strip() or self._form.last
        if not (self._named or (self._state == self._after_call and closing.startswith(self._held))):
            self._say(self._raw + self._held)
        if not self._complete and not self._named:
            self._content.append(self._space)
        self._held = self._raw = self._space = ""
        return self._take()

    def finish_reason(self, reason: str) -> str:
        """Why the answer ended, given why its text did: "tool_calls" for whole calls, "length" for one that was broken off."""
        if self.broken:
            return "length"
        return "tool_calls" if self._complete and reason == "stop" else reason

    # each state reads of what is held; whether it got on

    def _begin(self) -> bool:
        """Before the first character that is no space: a call begins with a brace."""
        text = self._held.lstrip()
        if not text:
            return False
        self._raw, self._held = self._held[: len(self._held) - len(text)], text
        if text[0] == "{":
            self._start_call()
        else:
            self._give_up()
        return True

    def _find_marker(self) -> bool:
        marker = self._form.marker
        before, found, after = self._held.partition(marker)
        if found:
            self._say(before)
            self._raw, self._held, self._state = marker, after, self._after_marker
            return True
        keep = next((n for n in range(min(len(marker) - 1, len(before)), 0, -1) if marker.startswith(before[-n:])), 0)
        self._say(before[: len(before) - keep])
        self._held = before[len(before) - keep :]
        return False

    def _after_marker(self) -> bool:
        if not self._skip_space():
            return False
        wanted = self._form.first.strip()
        if wanted and self._held[0] != wanted:
            self._give_up()
            return True
        self._read(len(wanted))
        self._start_call()
        return True

    def _in_call(self) -> bool:
        call = self._call
        assert call is not None
        self._read(call.add(self._held))
        if call.name is not None and call.name not in self._names:
            call.bad = True
        if call.bad and not self._named:
            self._give_up()
            return True
        if call.name is not None and call.arguments is not None:
            self._give(call, call.name)
        if call.done or call.bad:  # what is bad behind whole arguments does no harm to them
            self._raw, self._named = "", False
            self._complete += 1
            self._state = self._after_call
        return bool(self._held)

    def _after_call(self) -> bool:
        if not self._skip_space():
            return False
        for wanted in (self._form.after.strip(), self._form.last):
            if wanted and self._held.startswith(wanted):
                self._raw, self._held, self._state = "", self._held[len(wanted) :], self._between
                return True
            if wanted and wanted.startswith(self._held):
                return False
        again = self._form.again.strip()
        if not self._form.after and self._held.startswith(again):
            self._read(len(again))
            self._start_call()
            return True
        self._state = self._between
        return True

    def _between(self) -> bool:
        """After calls: more of them, where each has a marker, or content."""
        self._state = self._find_marker if self._form.marker else self._pass_on
        self._say(self._raw)
        self._raw = ""
        return True

    def _pass_on(self) -> bool:
        self._say(self._held)
        self._held = ""
        return False

    def _start_call(self) -> None:
        self._call, self._given, self._named, self._state = CallObject(), 0, False, self._in_call

    def _give_up(self) -> None:
        """What was read is no call."""
        self._say(self._raw)
        self._raw = ""
        self._state = self._find_marker if self._form.marker else self._pass_on

    def _skip_space(self) -> bool:
        """Read white space; whether something follows."""
        self._read(len(self._held) - len(self._held.lstrip()))
        return bool(self._held)

    def _read(self, count: int) -> None:
        self._raw += self._held[:count]
        self._held = self._held[count:]

    def _say(self, text: str) -> None:
        whole = self._space + text
        said = whole.rstrip()
        self._space = whole[len(said) :]
        if said:
            self._content.append(said)

    def _give(self, call: CallObject, name: str) -> None:
        assert call.arguments is not None
        piece = self._pieces.setdefault(self._complete, CallPiece(self._complete))
        if not self._named:
            piece.id, piece.name, self._named, self._space = f"call_{uuid.uuid4().hex[:24]}", name, True, ""
        piece.arguments += call.arguments[self._given :]
        self._given = len(call.arguments)

    def _take(self) -> Piece:
        piece = Piece("".join(self._content), list(self._pieces.values()))
        self._content, self._pieces = [], {}
        return piece

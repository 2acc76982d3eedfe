"""Responses: what POST /v1/responses answers, whole or as the events of a stream.

A response has one output item, a message, with one part, a text. A stream says so step by step, each event with its number:

    response.created, response.in_progress
      response.output_item.added, response.content_part.added       with the first token
      response.output_text.delta                                    for every piece of text
      response.output_text.done, response.content_part.done, response.output_item.done
    response.completed, or response.incomplete, or response.failed
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskpro_deploy.runtime.generate.sampling import Score
from maskpro_deploy.runtime.generate.sequence import LENGTH, Completion, Event, TokenEvent
from maskpro_deploy.runtime.http.api.formats import AnswerFormat, Json

_PLACE: Json = {"output_index": 0, "content_index": 0}


def count_usage(counts: Json) -> Json:
    """Token counts as this API calls them, from those of the others."""
    details: Any = counts.get("prompt_tokens_details") or {}
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": details.get("cached_tokens", 0)},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }


@dataclass(kw_only=True)
class ResponseFormat(AnswerFormat):
    """Answers of /v1/responses."""

    _item_id: str = field(init=False)
    _number: int = 0  # of the next event
    _text: list[str] = field(default_factory=list)
    _scores: list[Json] = field(default_factory=list)
    _finish_reason: str | None = None

    ends_with_done = False

    def __post_init__(self) -> None:
        self.id = f"resp_{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._item_id = f"msg_{uuid.uuid4().hex}"

    def whole(self, answers: Sequence[Completion], counts: Json) -> Json:
        """The answer to a request without stream."""
        (answer,) = answers
        self._text, self._scores, self._finish_reason = [answer.text], self._logprobs(answer.scores), answer.finish_reason
        return self._finished(counts)

    def opening(self) -> Iterator[Json]:
        """It has arrived, and is in work."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=self._response("in_progress", []))

    def pieces(self, event: Event) -> Iterator[Json]:
        """The first token opens the message; each with a text adds to it."""
        assert isinstance(event, TokenEvent)
        if not self._item_is_open:
            yield self._event("response.output_item.added", output_index=0, item=self._item("in_progress", []))
            yield self._event("response.content_part.added", **self._place, part=self._part("", []))
        scores = self._logprobs([event.score] if event.score else [])
        self._text.append(event.text)
        self._scores += scores
        if event.text or scores:
            yield self._event("response.output_text.delta", **self._place, delta=event.text, logprobs=scores)
        self._finish_reason = event.finish_reason

    def closing(self, counts: Json) -> Iterator[Json]:
        """Every level is done, and all of it together."""
        response, part = self._finished(counts), self._part("".join(self._text), self._scores)
        yield self._event("response.output_text.done", **self._place, text=part["text"], logprobs=self._scores)
        yield self._event("response.content_part.done", **self._place, part=part)
        yield self._event("response.output_item.done", output_index=0, item=self._item(self._status, [part]))
        yield self._event(f"response.{self._status}", response=response)

    def failure(self, error: Json) -> Iterator[Json]:
        """It cannot be finished; what there is of the text goes along."""
        inner: Any = error["error"]
        output = [self._item("incomplete", [self._part("".join(self._text), self._scores)])] if self._item_is_open else []
        response = self._response("failed", output) | {"error": {"code": "server_error", "message": inner["message"]}}
        yield self._event("response.failed", response=response)

    @property
    def _item_is_open(self) -> bool:
        return bool(self._text)

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish_reason == LENGTH else "completed"

    @property
    def _place(self) -> Json:
        return {"item_id": self._item_id, **_PLACE}

    def _event(self, kind: str, **content: object) -> Json:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **content}

    def _finished(self, counts: Json) -> Json:
        output = [self._item(self._status, [self._part("".join(self._text), self._scores)])]
        response = self._response(self._status, output) | {"usage": count_usage(counts)}
        if self._finish_reason == LENGTH:
            return response | {"incomplete_details": {"reason": "max_output_tokens"}}
        return response | {"completed_at": int(time.time())}

    def _response(self, status: str, output: list[Json]) -> Json:
        return {
            "id": self.id, "object": "response", "created_at": self.created, "completed_at": None, "status": status,
            "error": None, "incomplete_details": None, "model": self.model, "output": output, "usage": None, **self.repeated,
        }  # fmt: skip

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self, text: str, scores: list[Json]) -> Json:
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": scores}

    def _logprobs(self, scores: Sequence[Score]) -> list[Json]:
        if not self.logprobs:
            return []
        return [
            self.score_entry(s.token, s.logprob) | {"top_logprobs": [self.score_entry(*top) for top in s.top]} for s in scores
        ]

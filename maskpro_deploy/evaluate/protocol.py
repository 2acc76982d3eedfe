"""How text becomes windows of tokens, and which of the tokens are scored.

- The text becomes one stream of tokens. `JOIN_SEPARATOR`: document by document, an end-of-text token after each.
  `JOIN_BLANK_LINE`, `JOIN_SPACE`: all documents joined by a blank line or by a space, tokenised at once.
- Begin-of-text: none (`BOS_NONE`), one at the start of the stream (`BOS_FIRST`), or what the tokenizer itself adds when it is
  called on the whole text (`BOS_TOKENIZER`, as the code of most papers does).
- Windows of `T` tokens begin every `stride` tokens; what is left after the last whole window is dropped. In the first window
  tokens 2 to T are scored, each given those before it in the window. With stride = T the same holds for all windows, so their
  first tokens are never scored. With a shorter stride each further window scores its last `stride` tokens, the new ones: every
  token after the first is scored once, with at least T - stride tokens before it.

Shapes: `W` windows, `T` tokens in a window.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from maskpro_deploy import data
from maskpro_deploy.errors import ConfigError, check_known, check_range

Ints = npt.NDArray[np.int64]

JOIN_SEPARATOR, JOIN_BLANK_LINE, JOIN_SPACE = "separator", "blank-line", "space"
BOS_NONE, BOS_FIRST, BOS_TOKENIZER = "none", "first", "tokenizer"
JOININGS = {
    JOIN_SEPARATOR: "end-of-text after each document",
    JOIN_BLANK_LINE: "documents joined by blank lines and tokenised at once",
    JOIN_SPACE: "documents joined by spaces and tokenised at once",
}
BOS_RULES = {
    BOS_NONE: "no begin-of-text",
    BOS_FIRST: "begin-of-text at the start",
    BOS_TOKENIZER: "the tokenizer's own special tokens, once",
}
_GLUE = {JOIN_BLANK_LINE: "\n\n", JOIN_SPACE: " "}


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """A text cut into windows.

    Attributes:
        tokens: the windows. `# (W, T)`
        stride: tokens from the start of a window to that of the next.
        unread: tokens after the last window.
    """

    tokens: Ints
    stride: int
    unread: int

    def scored(self, window: int) -> int:
        """How many tokens at the end of a window are scored."""
        return scored_tokens(window, self.tokens.shape[1], self.stride)

    @property
    def total_scored(self) -> int:
        """Scored tokens of all windows."""
        return sum(self.scored(w) for w in range(len(self.tokens)))


def scored_tokens(window: int, length: int, stride: int) -> int:
    """How many tokens at the end of window number `window` are scored."""
    return length - 1 if window == 0 or stride == length else stride


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalProtocol:
    """How text becomes windows; see the module's docstring.

    Attributes:
        window: tokens in a window.
        stride: tokens from one window to the next; None for windows that do not overlap.
        joining: one of JOININGS.
        bos: one of BOS_RULES.
        max_windows: take the first so many; None takes all.
    """

    window: int = 512
    stride: int | None = None
    joining: str = JOIN_SEPARATOR
    bos: str = BOS_NONE
    max_windows: int | None = None

    def __post_init__(self) -> None:
        check_range("--window", self.window, least=2, note="the first token of a window is not scored")
        check_range("--stride", self.stride, least=1, most=self.window, note="--window")
        check_known("--joining", self.joining, JOININGS)
        check_known("--bos", self.bos, BOS_RULES)
        if self.bos == BOS_TOKENIZER and self.joining == JOIN_SEPARATOR:
            raise ConfigError(
                "--bos tokenizer means that the whole text is tokenised at once: it needs --joining blank-line or space."
            )
        check_range("--max-windows", self.max_windows, least=1)

    @property
    def step(self) -> int:
        """Tokens from one window to the next."""
        return self.window if self.stride is None else self.stride

    @property
    def scored(self) -> str:
        """Which tokens are scored, in words."""
        if self.step == self.window:
            return f"tokens 2 to {self.window} of each window"
        return f"tokens 2 to {self.window} of the first window, the last {self.step} of each further one"

    def to_json(self) -> dict[str, Any]:
        """The protocol as it is written with a figure."""
        return {
            **dataclasses.asdict(self),
            "stride": self.step,
            "scored": self.scored,
            "mean": "of the negative log-likelihood over all scored tokens; perplexity is its exponential",
        }

    def windows(self, text: data.Text, tokenizer: Tokenizer, *, separator: int | None, bos_token: int | None) -> Windows:
        """Cut a text into windows.

        Args:
            text: the documents.
            tokenizer: the model's.
            separator: token after each document, for JOIN_SEPARATOR.
            bos_token: the model's begin-of-text token, for BOS_FIRST.

        Raises:
            ConfigError: the text is shorter than one window, or BOS_FIRST is asked for and the model has no such token.
        """
        stream = self._stream(text, tokenizer, separator)
        if self.bos == BOS_FIRST:
            if bos_token is None:
                raise ConfigError("--bos first: this model has no begin-of-text token.\nUse --bos none.")
            stream = np.concatenate([np.asarray([bos_token], dtype=stream.dtype), stream])
        tokens = data.windows(stream, self.window, text.name, self.step)[: self.max_windows].astype(np.int64)
        end = (len(tokens) - 1) * self.step + self.window
        return Windows(tokens=tokens, stride=self.step, unread=len(stream) - end)

    def _stream(self, text: data.Text, tokenizer: Tokenizer, separator: int | None) -> npt.NDArray[np.int32]:
        if self.joining == JOIN_SEPARATOR:
            return data.token_stream(text.documents, tokenizer, separator)
        joined = _GLUE[self.joining].join(text.documents)
        ids = tokenizer.encode(joined, add_special_tokens=self.bos == BOS_TOKENIZER).ids
        return np.asarray(ids, dtype=np.int32)

"""In which order a run sees the windows of its texts: shuffled, and several texts in equal shares.

Texts take turns, window by window. Each is shuffled, and again whenever it was seen to its end, so a short one comes back more
often; an epoch is over when every text was seen whole. The same seed gives the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from maskpro_deploy.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """One text among several."""

    windows: int  # of this text
    turns: int = 1  # of it in a round


class WindowOrder:
    """The order of windows of some texts, which are stored one after the other.

    Raises:
        ConfigError: a text has no window.
    """

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        if not parts or any(part.windows < 1 for part in parts):
            raise ConfigError("there is no text to go through.")
        self._parts, self._seed = tuple(parts) if len(parts) > 1 else (Part(parts[0].windows),), seed
        self._rounds = max(-(-part.windows // part.turns) for part in self._parts)

    def __len__(self) -> int:
        """Windows in an epoch; one that comes twice counts twice."""
        return self._rounds * sum(part.turns for part in self._parts)

    def draw(self, epoch: int) -> npt.NDArray[np.int64]:
        """The windows of an epoch, by number."""
        if len(self._parts) == 1:
            return np.random.default_rng((self._seed, epoch)).permutation(self._parts[0].windows)
        columns, start = [], 0
        for number, part in enumerate(self._parts):
            columns.append(start + self._draw_part(epoch, number).reshape(self._rounds, part.turns))
            start += part.windows
        return np.concatenate(columns, axis=1).reshape(-1)

    def _draw_part(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """The windows of one text in an epoch, in its order."""
        part = self._parts[number]
        wanted = self._rounds * part.turns
        passes = -(-wanted // part.windows)
        shuffled = [np.random.default_rng((self._seed, epoch, number, p)).permutation(part.windows) for p in range(passes)]
        return np.concatenate(shuffled)[:wanted]

"""Prompts: random token ids of a fixed length, or text.

Every request of a run has its own prompt, so that a server's prefix cache does not answer in the model's place. The same seed
gives the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from maskpro_deploy.bench.load.sending.client import Request
from maskpro_deploy.bench.load.sending.schedule import Seed
from maskpro_deploy.errors import ConfigError, check_range

RequestSource = Callable[[Seed], Request]


def draw_random_tokens(vocabulary: Sequence[int], input_len: int, output_len: int) -> RequestSource:
    """Prompts of exactly `input_len` ids, drawn evenly from `vocabulary`.

    Raises:
        ConfigError: a length is below 1, or there are fewer than two ids.
    """
    check_lengths(input_len, output_len)
    if len(vocabulary) < 2:
        raise ConfigError(f"random prompts need at least two token ids, not {len(vocabulary)}.")
    ids = np.asarray(vocabulary, dtype=np.int64)

    def make(seed: Seed) -> Request:
        drawn = np.random.default_rng(seed).integers(len(ids), size=input_len)
        return Request(prompt=tuple(ids[drawn].tolist()), output_len=output_len, input_len=input_len)

    return make


def cut_text_windows(documents: Sequence[str], words: int, output_len: int) -> RequestSource:
    """Prompts of `words` words of running text, each from a place drawn at random.

    Raises:
        ConfigError: a length is below 1.
        ConfigError: all text together is shorter than a prompt.
    """
    check_lengths(words, output_len)
    every = [word for document in documents for word in document.split()]
    if len(every) < words:
        raise ConfigError(
            f"the text has {len(every)} words, fewer than a prompt of {words}.\nGive more text, or a shorter --input-len."
        )

    def make(seed: Seed) -> Request:
        start = int(np.random.default_rng(seed).integers(len(every) - words + 1))
        return Request(prompt=" ".join(every[start : start + words]), output_len=output_len)

    return make


def take_prompts(prompts: Sequence[str], output_len: int) -> RequestSource:
    """Prompts as they are, in a drawn order; they repeat where there are fewer than requests.

    Raises:
        ConfigError: there are none.
    """
    check_lengths(1, output_len)
    if not prompts:
        raise ConfigError("there are no prompts.")

    def make(seed: Seed) -> Request:
        *run, index = seed  # the whole list is gone through before one comes again
        order = np.random.default_rng((*run, index // len(prompts))).permutation(len(prompts))
        return Request(prompt=prompts[order[index % len(prompts)]], output_len=output_len)

    return make


def check_lengths(input_len: int, output_len: int) -> None:
    """Refuse lengths below 1.

    Raises:
        ConfigError: naming the flag.
    """
    for flag, value in (("--input-len", input_len), ("--output-len", output_len)):
        check_range(flag, value, least=1)

"""The place of a generator that may still be loading."""

from __future__ import annotations

import time

from maskpro_deploy.runtime.generate.generator import Load, TextGenerator
from maskpro_deploy.runtime.generate.refusals import OverloadedError
from maskpro_deploy.runtime.http.metrics import Metrics


class GeneratorSlot:
    """A generator, or the fact that it is still loading; with the name and the metrics that clients see meanwhile."""

    def __init__(self, model_name: str, generator: TextGenerator | None = None) -> None:
        self.model_name = model_name
        self.metrics = Metrics(model_name, self._load)
        self._generator: TextGenerator | None = None
        self.created = int(time.time())
        if generator is not None:
            self.fill(generator)

    def fill(self, generator: TextGenerator) -> None:
        """The generator is there."""
        generator.observer = self.metrics
        self._generator = generator

    def get(self) -> TextGenerator:
        """The generator.

        Raises:
            OverloadedError: it is still loading.
        """
        if self._generator is None:
            raise OverloadedError("the model is loading.", "loading")
        return self._generator

    @property
    def status(self) -> str:
        """The generator's status, or "loading"."""  # fmt: skip
        return self._generator.status if self._generator is not None else "loading"

    def _load(self) -> Load:
        return self._generator.load if self._generator is not None else Load()
